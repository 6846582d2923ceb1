"""Stable Diffusion XL: two CLIP text encoders, pooled text and the sizes of pictures beside the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from pipelines.models import schedulers
from pipelines.models.components import Components, Conditioning
from pipelines.models.families.sd import StableDiffusion

ADDED = "added_cond_kwargs"


class StableDiffusionXL(StableDiffusion):
    """The family of SDXL (Podell et al., arXiv:2307.01952)."""

    trained_text = (0, 1)

    def __init__(self) -> None:
        super().__init__("sdxl")

    def _told(self, components: Components, context: Tensor, pooled: Tensor | None) -> Conditioning:
        told = super()._told(components, context, pooled)
        return (
            {**told, ADDED: {"text_embeds": pooled.to(components.device, components.dtype)}}
            if pooled is not None
            else told
        )

    def framed(self, components: Components, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """Return the conditioning with sizes and crops (section 2.2)."""
        ids = frames.to(components.device, components.dtype)
        return {**conditioning, ADDED: {**conditioning[ADDED], "time_ids": ids}}

    def pipeline(self, components: Components, parts: Mapping[str, Any]) -> Any:
        """Return `StableDiffusionXLPipeline`."""
        return StableDiffusionXLPipeline(
            **parts,
            scheduler=schedulers.build("ddim", components.scheduler_config, 1, "cpu"),
            force_zeros_for_empty_prompt=components.zero_empty,
        )
