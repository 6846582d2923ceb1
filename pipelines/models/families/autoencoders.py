"""KL autoencoders: pictures to scaled latents and back, as most families share them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipelines.models.components import Posterior


def kl_factor(vae: Any) -> int:
    """Return the pixels per latent along a side."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def kl_encode(vae: Any, images: Tensor) -> Posterior:
    """Return the posterior of pictures (B, 3, H, W), shifted and scaled as the configuration says."""
    scale, shift = vae.config["scaling_factor"], vae.config["shift_factor"] or 0.0
    latent = vae.encode(images, return_dict=False)[0]
    return Posterior((latent.mean - shift) * scale, latent.std * scale)


def kl_decode(vae: Any, latents: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) of scaled latents."""
    raw = latents / vae.config["scaling_factor"] + (vae.config["shift_factor"] or 0.0)
    return vae.decode(raw, return_dict=False)[0]
