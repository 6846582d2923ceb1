"""Real diffusers and transformers classes with small random weights, built in memory in a fraction of a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from pipelines.models.components import Components
from pipelines.models.loading import from_pipeline
from trainers.data.batches import Example
from trainers.pretrain.vocabulary import build_tokenizer


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = build_tokenizer()
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]]
    return dict(model["vocab"]), merges  # pyright: ignore


def tokenizer(length: int = 77) -> CLIPTokenizer:
    vocab, merges = _vocabulary()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), model_max_length=length)


def _text(tok: CLIPTokenizer, dim: int, projection: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tok),
        hidden_size=dim,
        intermediate_size=2 * dim,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )


def _unet(dim: int, gated: bool | str = False, **extra: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=dim,
        attention_head_dim=4,
        attention_type="gated" if gated else "default",
        **extra,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.18215,
    )


def _scheduler(**settings: object) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **settings,
    )


def sd_pipeline(seed: int = 0, dim: int = 32, **settings: object) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x in small, or 2.x with `dim` 1024; `settings` go to the scheduler."""
    torch.manual_seed(seed)
    tok = tokenizer()
    if dim == 1024:
        tok.pad_token = "!"  # Stable Diffusion 2.x pads with an exclamation mark
    pipeline = StableDiffusionPipeline(
        vae=_vae().eval(),
        text_encoder=CLIPTextModel(_text(tok, dim)).eval(),
        tokenizer=tok,
        unet=_unet(dim, gated=True).eval(),
        scheduler=_scheduler(**settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def lcm_pipeline(xl: bool = False, seed: int = 0) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A pipeline whose UNet reads the guidance scale, as after a latent consistency distillation."""
    pipeline = sdxl_pipeline(seed) if xl else sd_pipeline(seed)
    config = {key: value for key, value in dict(pipeline.unet.config).items() if not key.startswith("_")}
    torch.manual_seed(seed)
    pipeline.register_modules(unet=UNet2DConditionModel(**(config | {"time_cond_proj_dim": 6})).eval())
    return pipeline


def inpaint_pipeline(channels: int = 9, seed: int = 0, **settings: object) -> StableDiffusionInpaintPipeline:
    """diffusers' inpainting over the same parts, with a UNet that reads 4 or 9 channels.

    Its autoencoder is sure of what it sees, so that a draw of a picture's latents is their mean.
    """
    parts = sd_pipeline(seed, **settings).components
    if channels != 4:
        torch.manual_seed(seed)
        parts["unet"] = _unet(32, gated=True, in_channels=channels, out_channels=4).eval()
    parts["vae"].quant_conv.weight.data[4:] = 0
    parts["vae"].quant_conv.bias.data[4:] = -30
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sdxl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL in small: two text encoders, pooled text and sizes as added conditions."""
    torch.manual_seed(seed)
    tok = tokenizer()
    unet = _unet(
        32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae().eval(),
        text_encoder=CLIPTextModel(_text(tok, 32)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text(tok, 48)).eval(),
        tokenizer=tok,
        tokenizer_2=tokenizer(),
        unet=unet.eval(),
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sdxl_with_real_blocks() -> StableDiffusionXLPipeline:
    """SDXL whose UNet has the blocks of the real one, which kohya's names count."""
    pipeline = sdxl_pipeline()
    config = dict(pipeline.unet.config) | {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(1)
    unet = UNet2DConditionModel(**{key: value for key, value in config.items() if not key.startswith("_")}).eval()
    pipeline.register_modules(unet=unet)
    return pipeline


def frozen(components: Components) -> Components:
    for module in components.modules():
        module.eval().requires_grad_(False)
    return components


def sd(seed: int = 0, **settings: object) -> Components:
    return frozen(from_pipeline(sd_pipeline(seed, **settings), "tiny"))


def open_gates(components: Components, gate: float = 0.7) -> Components:
    """Gated layers as after a training: gates open unlike, null vectors no longer zero, things' tokens far apart."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in components.unet.named_parameters():
            if "alpha_" in name:
                parameter.fill_(gate if name.endswith("alpha_attn") else gate / 2)
            elif "null_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif name.startswith("position_net.") and parameter.ndim == 2:
                parameter.mul_(3)
    return components


def gated(seed: int = 0, **settings: object) -> Components:
    """`sd` with grounding that acts."""
    return open_gates(sd(seed, **settings))


def sd_inpaint(channels: int = 9, seed: int = 0, **settings: object) -> Components:
    return frozen(from_pipeline(inpaint_pipeline(channels, seed, **settings), "tiny-inpaint"))


def sdxl(seed: int = 0) -> Components:
    return frozen(from_pipeline(sdxl_pipeline(seed), "tiny-xl"))


def snapshot(components: Components) -> list[torch.Tensor]:
    """Copies of every weight and buffer, for bit-equality afterwards."""
    return [t.clone() for module in components.modules() for t in (*module.parameters(), *module.buffers())]


def same(before: list[torch.Tensor], components: Components) -> bool:
    after = [t for module in components.modules() for t in (*module.parameters(), *module.buffers())]
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def examples(count: int = 3, side: int = 20) -> list[Example]:
    """Small pictures of different colours."""
    return [
        Example(f"{i}.png", Image.new("RGB", (side, side), (40 + 60 * i, 200 - 50 * i, 30 * i))) for i in range(count)
    ]


def clip(folder: Path) -> Path:
    """A whole CLIP of random weights in a folder, in the transformers layout."""
    torch.manual_seed(0)
    tok = tokenizer()
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
                              image_size=32, patch_size=8, projection_dim=32)  # fmt: skip
    CLIPModel(CLIPConfig(text_config=_text(tok, 32).to_dict(), vision_config=vision.to_dict(), projection_dim=32)
              ).save_pretrained(folder)  # fmt: skip
    tok.save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def sam(folder: Path) -> Path:
    """A Segment Anything model of random weights in a folder, in the transformers layout."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    torch.manual_seed(0)
    vision = SamVisionConfig(hidden_size=32, output_channels=32, num_hidden_layers=1, num_attention_heads=2,
                             image_size=64, patch_size=8, window_size=4, num_pos_feats=16, mlp_dim=64,
                             global_attn_indexes=[0])  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8)
    decoder = SamMaskDecoderConfig(hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2,
                                   iou_head_hidden_dim=32)  # fmt: skip
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    SamModel(config).save_pretrained(folder)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    small = {"mask_size": {"longest_edge": 16}, "mask_pad_size": {"height": 16, "width": 16}}
    SamProcessor(SamImageProcessorPil(**sizes, **small)).save_pretrained(folder)
    return folder
