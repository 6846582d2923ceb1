"""Bases of rectified flow with small random weights, built of real classes in memory, their tokenizers too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from pipelines.models.components import Components
from pipelines.models.loading import from_pipeline
from tests import tiny

CHAT = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's template, as far as a picture's prompt needs it."""

WORDS = ("fox", "cat", "thing", "hat")
"""Words that are one token, alone and behind a space."""


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A byte-level tokenizer of Qwen's kind."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in (*(f"Ġ{word}" for word in WORDS), *WORDS):  # those behind a space first, for they are merged first
        for end in range(2, len(word) + 1):
            merges.append((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        vocabulary[special] = len(vocabulary)
    end = "<|endoftext|>"
    made = Qwen2Tokenizer(
        vocab=vocabulary, merges=list(dict.fromkeys(merges)), unk_token=end, pad_token=end, eos_token=end
    )
    made.chat_template = CHAT
    return made


def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer of T5's kind."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz<>-.,"]
    return T5Tokenizer(vocab=[*pieces, *((f"▁{word}", -1.5) for word in WORDS)], extra_ids=0)


VOCABULARY = 400
"""Rows in the tables of language models: more than the tokenizers have words, as in the real ones."""


def _clip(projection: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    words = tiny.tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=32,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0)
    return T5EncoderModel(config)


def _language(**more: int) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        **more,
    }


_SEEING = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}


def sure(vae: Any) -> Any:
    """The autoencoder, sure of what it sees: a draw of a picture's latents is their mean."""
    last = vae.quant_conv if getattr(vae, "quant_conv", None) is not None else vae.encoder.conv_out
    with torch.no_grad():
        last.weight[len(last.weight) // 2 :] = 0
        last.bias[len(last.bias) // 2 :] = -30
    return vae


def _kl(kind: Any = AutoencoderKL, **more: Any) -> Any:
    settings = {"latent_channels": 4, "norm_num_groups": 2} | more
    vae = kind(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **settings,
    )
    return sure(vae)


def _qwen_vae() -> Any:
    return sure(
        AutoencoderKLQwenImage(
            base_dim=12,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, 0.2, 0.3, 0.4],
            latents_std=[1.0, 2.0, 1.5, 0.5],
        )
    )


def _euler(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**settings)


def sd3_pipeline(channels: int = 4) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 in small."""
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=channels,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            out_channels=channels,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        text_encoder=_clip(True),
        text_encoder_2=_clip(True),
        text_encoder_3=_t5(64),
        tokenizer=tiny.tokenizer(),
        tokenizer_2=tiny.tokenizer(),
        tokenizer_3=t5_tokenizer(),
        vae=_kl(shift_factor=0.06, scaling_factor=1.5, latent_channels=channels),
        scheduler=_euler(shift=3.0),
    )


def flux_pipeline(guidance: bool = True) -> FluxPipeline:
    """FLUX.1 in small: dev, which reads the guidance scale, or schnell."""
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance,
        ),
        text_encoder=_clip(False),
        text_encoder_2=_t5(32),
        tokenizer=tiny.tokenizer(),
        tokenizer_2=t5_tokenizer(),
        vae=_kl(shift_factor=0.06, scaling_factor=1.5),
        scheduler=_euler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
            shift=3.0,
        ),
    )


def klein_pipeline(distilled: bool = False) -> Flux2KleinPipeline:
    """FLUX.2 Klein in small; its text encoder has the layers that are read."""
    vae = _kl(AutoencoderKLFlux2)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=256,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        text_encoder=Qwen3ForCausalLM(
            Qwen3Config(**_language(num_hidden_layers=28, head_dim=8, max_position_embeddings=1024))
        ),
        tokenizer=qwen_tokenizer(),
        vae=vae,
        scheduler=_euler(use_dynamic_shifting=True),
        is_distilled=distilled,
    )


def z_image_pipeline() -> ZImagePipeline:
    """Z-Image in small."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        norm_eps=1e-5,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 64, 64],
    )
    with torch.no_grad():  # made without values
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    config = Qwen3Config(**_language(num_hidden_layers=3, head_dim=8, max_position_embeddings=1024))
    return ZImagePipeline(
        transformer=transformer,
        vae=_kl(shift_factor=0.06, scaling_factor=1.5),
        scheduler=_euler(shift=3.0),
        tokenizer=qwen_tokenizer(),
        text_encoder=Qwen3Model(config),
    )


def qwen_image_pipeline() -> QwenImagePipeline:
    """Qwen-Image in small; the prefix of its template is as long as this tokenizer makes it."""
    rotary = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    language = _language(num_hidden_layers=2) | {"rope_parameters": rotary}
    pipeline = QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=_qwen_vae(),
        scheduler=_euler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            shift=1.0,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=language, vision_config=_SEEING)),
        tokenizer=qwen_tokenizer(),
    )
    prefix, _, _ = pipeline.prompt_template_encode.partition("{}")
    pipeline.prompt_template_encode_start_idx = len(pipeline.tokenizer(prefix).input_ids)
    return pipeline


def krea2_pipeline(distilled: bool = False) -> Krea2Pipeline:
    """Krea 2 in small; the prefix and suffix of its template are as long as this tokenizer makes them."""
    language = _language(num_hidden_layers=2, head_dim=8)
    pipeline = Krea2Pipeline(
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
            rope_theta=1000.0,
        ),
        vae=_qwen_vae(),
        scheduler=_euler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
        ),
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=language, vision_config=_SEEING)),
        tokenizer=qwen_tokenizer(),
        text_encoder_select_layers=(0, 1, 2),
        is_distilled=distilled,
    )
    words = pipeline.tokenizer
    pipeline.prompt_template_encode_start_idx = len(words(pipeline.prompt_template_encode_prefix).input_ids)
    pipeline.prompt_template_encode_num_suffix_tokens = len(words(pipeline.prompt_template_encode_suffix).input_ids)
    return pipeline


PIPELINES: Mapping[str, Callable[[], Any]] = {
    "sd3": sd3_pipeline,
    "flux1": flux_pipeline,
    "flux2": klein_pipeline,
    "z-image": z_image_pipeline,
    "qwen-image": qwen_image_pipeline,
    "krea2": krea2_pipeline,
}
"""Family -> plain pipeline of diffusers."""


def pipeline(family: str, seed: int = 0, **options: Any) -> Any:
    """The pipeline of a family, its networks in evaluation mode."""
    torch.manual_seed(seed)
    made = PIPELINES[family](**options)
    for module in made.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    made.set_progress_bar_config(disable=True)
    return made


def base(family: str, seed: int = 0, **options: Any) -> Components:
    """A base of a family."""
    return tiny.frozen(from_pipeline(pipeline(family, seed, **options), f"tiny-{family}"))
