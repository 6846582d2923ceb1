"""Stable Diffusion 1.x and 2.x, and `pocket`, which has their layout: a UNet that reads CLIP, and DDPM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor

from pipelines.guidance import classifier_free
from pipelines.models import schedulers
from pipelines.models.components import CONCAT, Components, Conditioning, Posterior
from pipelines.models.families.autoencoders import kl_decode, kl_encode, kl_factor
from pipelines.models.families.clip import caption_ids, clip_words, encode_ids, encode_prompts
from pipelines.models.families.known import KNOWN, said_distilled
from pipelines.models.noise import DDPM
from pipelines.request.request import Defaults

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_ALL = (*_TRANSFORMER, "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv")


class StableDiffusion:
    """A family of UNets with one CLIP text encoder.

    Args:
        name: sd1, sd2, or a family built on it.
    """

    network = "unet"
    world = "world"
    identifiers = True
    trained_text = (0,)
    targets: Mapping[str, tuple[str, ...]] = {"attention": _ATTENTION, "transformer": _TRANSFORMER, "all": _ALL}

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = KNOWN[name].title

    def channels(self, components: Components) -> int:
        """Return the channels that the UNet gives: one for inpainting takes more in."""
        return int(components.denoiser.config["out_channels"])

    def factor(self, components: Components) -> int:
        """Return 8, and less for small autoencoders."""
        return kl_factor(components.vae)

    def multiple(self, components: Components) -> int:
        """Return pixels per latent at the lowest level of the UNet."""
        return self.factor(components) * 2 ** (len(components.denoiser.config["block_out_channels"]) - 1)

    def defaults(self, components: Components) -> Defaults:
        """Return those of the official pipelines with a quicker sampler."""
        size = int(components.denoiser.config["sample_size"]) * self.factor(components)
        zero_snr = bool(components.scheduler_config.get("rescale_betas_zero_snr"))
        return KNOWN[self.name].defaults(size, self.reads_scale(components), 0.7 if zero_snr else 0.0)

    def process(self, components: Components) -> DDPM:
        """Return the process of the base's schedule."""
        return DDPM.of(components.scheduler_config, components.device)

    def better_base(self, components: Components) -> str:
        """Return the family's own base for one that takes its scale (LCM), or calls itself distilled."""
        told = self.reads_scale(components) or said_distilled(components.name)
        return f"the base of {self.title} that it was distilled from" if told else ""

    def reads_scale(self, components: Components) -> bool:
        """Return whether the UNet takes an embedding of the scale (Luo et al., arXiv:2310.04378, section 4.2)."""
        return components.denoiser.config["time_cond_proj_dim"] is not None

    def told_scale(self, components: Components, scale: float, count: int) -> Conditioning:
        """Return the embedding of the scale, if the UNet reads it."""
        width = components.denoiser.config["time_cond_proj_dim"]
        if width is None:
            return {}
        rows = embedded(scale, int(width)).to(components.device, components.dtype)
        return {"timestep_cond": rows.expand(count, -1)}

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return the states for cross-attention (B, windows * 77, dim)."""
        context, pooled = _states(components, prompts, skip, plain)
        return self._told(components, context, pooled)

    def _told(self, components: Components, context: Tensor, pooled: Tensor | None) -> Conditioning:
        """Return the UNet's arguments for encoded text."""
        return {"encoder_hidden_states": context.to(components.device, components.dtype)}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words with the places of their first encoder's tokens in all windows."""
        return clip_words(components, prompt)

    def seats(self, tokens: int, pictured: int) -> tuple[int, int] | None:
        """Return nothing: text is looked up by cross-attention."""
        return None

    def framed(self, components: Components, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """Return the conditioning: the UNet reads no sizes."""
        return conditioning

    def beside(self, components: Components, clean: Tensor) -> Conditioning:
        """Return nothing: inpainting UNets have channels of their own."""
        return {}

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the UNet's output for latents and the channels beside them, if there are any."""
        told = dict(conditioning)
        if CONCAT in told:
            latents = torch.cat([latents, told.pop(CONCAT)], dim=1)
        return components.denoiser(latents, t, **told).sample

    def guide(self, c: Tensor, u: Tensor, scale: float) -> Tensor:
        """Return u + scale (c - u) (arXiv:2207.12598)."""
        return classifier_free(c, u, scale)

    def encode(self, components: Components, images: Tensor) -> Posterior:
        """Return the scaled posterior."""
        if isinstance(components.vae, AutoencoderTiny):
            latent = components.vae.encode(images, return_dict=False)[0]
            return Posterior(latent * components.vae.config["scaling_factor"], torch.zeros_like(latent))
        return kl_encode(components.vae, images)

    def decode(self, components: Components, latents: Tensor) -> Tensor:
        """Return the pictures."""
        if isinstance(components.vae, AutoencoderTiny):
            raw = latents / components.vae.config["scaling_factor"] + 0.0
            return components.vae.decode(raw, return_dict=False)[0]
        return kl_decode(components.vae, latents)

    def pipeline(self, components: Components, parts: Mapping[str, Any]) -> Any:
        """Return `StableDiffusionPipeline` without a safety checker."""
        return StableDiffusionPipeline(
            **parts,
            scheduler=schedulers.build("ddim", components.scheduler_config, 1, "cpu"),
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )


def _states(components: Components, prompts: Sequence[str], skip: int, plain: bool) -> tuple[Tensor, Tensor | None]:
    """Return the states of all text encoders side by side, (B, length, dim), and the pooled text of the last."""
    if plain:
        encoded = [
            encode_ids(components, which, caption_ids(components, which, prompts))
            for which in range(len(components.text_encoders))
        ]
        return torch.cat([context for context, _ in encoded], dim=-1), encoded[-1][1]
    listed = encode_prompts(components, prompts, skip)
    pooled = [one.pooled for one in listed if one.pooled is not None]
    return torch.cat([one.context for one in listed]), torch.cat(pooled) if pooled else None


def embedded(scale: float, width: int) -> Tensor:
    """Return the embedding (1, width) float32 of a guidance scale, as distilled UNets read it.

    Sines, then cosines, of 1000 (scale - 1) at frequencies from 1 to 1/10000, as diffusers' Latent Consistency
    pipelines have it.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.tensor([scale - 1]) * 1000.0 * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


class Pocket(StableDiffusion):
    """The small model that is shipped: of the layout of Stable Diffusion 1.x, with a world of stickers."""

    world = "pocket"

    def __init__(self) -> None:
        super().__init__("pocket")

    def defaults(self, components: Components) -> Defaults:
        """Return what scored best (`docs/results`)."""
        size = int(components.denoiser.config["sample_size"]) * self.factor(components)
        return KNOWN[self.name].defaults(size, quick=False)

    def better_base(self, components: Components) -> str:
        """Return nothing: it was not distilled."""
        return ""
