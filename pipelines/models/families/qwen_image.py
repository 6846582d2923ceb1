"""Qwen-Image: a vision-language model as the reader, an autoencoder for films, guidance renormalised per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.models.components import Components, Conditioning, Posterior
from pipelines.models.families.language import bare, length_of, token_rows, word_places
from pipelines.models.families.rectified_flow import RectifiedFlow, levels, pack, packed_tokens, unpack
from pipelines.models.flow import linear_mu

TOKENS = 1024
PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
_TRANSFORMER = (*_ATTENTION, "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")


class QwenAutoencoder(RectifiedFlow):
    """The common part of families with the autoencoder of Qwen-Image, which takes films: a picture is one frame."""

    def factor(self, components: Components) -> int:
        """Return 8 for the published model."""
        return 2 ** len(components.vae.temperal_downsample)

    def encode(self, components: Components, images: Tensor) -> Posterior:
        """Return the posterior, normalised by mean and spread of each channel."""
        found = components.vae.encode(images.unsqueeze(2), return_dict=False)[0]
        mean, spread = _statistics(components, found.mean)
        return Posterior(((found.mean - mean) / spread)[:, :, 0], (found.std / spread)[:, :, 0])

    def decode(self, components: Components, latents: Tensor) -> Tensor:
        """Return the pictures."""
        film = latents.unsqueeze(2)
        mean, spread = _statistics(components, film)
        return components.vae.decode(film * spread + mean, return_dict=False)[0][:, :, 0]


def _statistics(components: Components, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and spread (1, C, 1, 1, 1) of the latents of a film."""
    mean, spread = (
        torch.tensor(components.vae.config[name]).view(1, -1, 1, 1, 1).to(like)
        for name in ("latents_mean", "latents_std")
    )
    return mean, spread


def behind_prefix(components: Components, prompt: str, most: int) -> list[tuple[str, list[int]]]:
    """Return the words of a prompt with their places behind the system's sentence, of at most so many tokens."""
    drop = length_of(components, PREFIX)
    return word_places(components, 0, prompt, most + drop, -drop, lambda text: f"{PREFIX}{text}")


class QwenImage(QwenAutoencoder):
    """The family of Qwen-Image (arXiv:2508.02324)."""

    name = "qwen-image"
    pipe = "QwenImagePipeline"
    base = "Qwen/Qwen-Image"
    targets: Mapping[str, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "transformer": _TRANSFORMER,
        "all": (*_TRANSFORMER, "img_mod.1", "txt_mod.1"),
    }
    shift = 2.2

    def mu(self, components: Components, steps: int, shape: tuple[int, ...]) -> float:
        """Return a line in the number of tokens."""
        return linear_mu(packed_tokens(shape), components.scheduler_config, 4096)

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return the last states behind the system's sentence, and the mask of their tokens.

        The sentence is as long as the tokenizer makes it: 34 tokens with the published one, as diffusers has it.
        """
        drop = length_of(components, PREFIX)
        texts = [f"{PREFIX}{prompt}{SUFFIX}" for prompt in bare(prompts, plain)]
        rows = token_rows(components, 0, texts, TOKENS + drop, fill=False)
        out = components.text_encoders[0](
            input_ids=rows.ids, attention_mask=rows.mask.long(), output_hidden_states=True
        )
        states = out.hidden_states[-1][:, drop:].to(components.device, components.dtype)
        mask = rows.mask[:, drop:].to(components.device)
        return {"states": states * mask[..., None], "mask": mask}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words with their places behind the system's sentence."""
        return behind_prefix(components, prompt, TOKENS)

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity of packed latents."""
        height, width = latents.shape[-2:]
        mask = conditioning["mask"]
        out = components.denoiser(
            hidden_states=pack(latents),
            timestep=levels(t, latents),
            encoder_hidden_states=conditioning["states"],
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            return_dict=False,
        )[0]
        return unpack(out, height, width)

    def guide(self, c: Tensor, u: Tensor, scale: float) -> Tensor:
        """Return u + scale (c - u) with the length that c has at each token."""
        height, width = c.shape[-2:]
        own, other = pack(c), pack(u)
        guided = other + scale * (own - other)
        guided = guided * (own.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return unpack(guided, height, width)
