"""FLUX.1, dev and schnell: pooled CLIP, the states of T5, packed latents, and the guidance scale as an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.models.components import Components, Conditioning
from pipelines.models.families.clip import caption_ids
from pipelines.models.families.language import bare, token_rows, word_places
from pipelines.models.families.rectified_flow import (
    RectifiedFlow,
    grid_ids,
    levels,
    pack,
    packed_tokens,
    unpack,
)
from pipelines.models.flow import linear_mu

T5_TOKENS = 512
_DOUBLE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_ATTENTION = (*_DOUBLE, *_TEXT)
_FEED = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
_TRANSFORMER = (*_ATTENTION, *_FEED, "proj_mlp", "proj_out")


class Flux1(RectifiedFlow):
    """The family of FLUX.1."""

    name = "flux1"
    pipe = "FluxPipeline"
    trained_text = (0,)
    base = "black-forest-labs/FLUX.1-dev"
    targets: Mapping[str, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "transformer": _TRANSFORMER,
        "all": (*_TRANSFORMER, "norm1.linear", "norm1_context.linear", "norm.linear"),
    }
    shift = 3.1582
    """The sampling shift of 1024 x 1024 pixels, exp(1.15)."""

    def quick(self, components: Components) -> bool:
        """Return whether it is schnell, which reads no guidance scale, or says that it is quick."""
        return not self.reads_scale(components) or super().quick(components)

    def mu(self, components: Components, steps: int, shape: tuple[int, ...]) -> float:
        """Return a line in the number of tokens."""
        return linear_mu(packed_tokens(shape), components.scheduler_config, 4096)

    def reads_scale(self, components: Components) -> bool:
        """Return whether the transformer embeds the guidance scale: dev does, schnell does not."""
        return bool(components.denoiser.config["guidance_embeds"])

    def told_scale(self, components: Components, scale: float, count: int) -> Conditioning:
        """Return the scale of each picture, if the transformer reads it."""
        if not self.reads_scale(components):
            return {}
        return {"guidance": torch.full((count,), scale, device=components.device, dtype=torch.float32)}

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return the states of T5 (B, 512, dim) and CLIP's pooled text, of its first window."""
        texts = bare(prompts, plain)
        pooled = components.text_encoders[0](caption_ids(components, 0, texts)).pooler_output
        states = components.text_encoders[1](token_rows(components, 1, texts, T5_TOKENS, ends=1).ids)[0]
        told = {"encoder_hidden_states": states, "pooled_projections": pooled}
        return {key: one.to(components.device, components.dtype) for key, one in told.items()}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words with their places in T5."""
        return word_places(components, 1, prompt, T5_TOKENS)

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity of packed latents, text at the origin and pictures on a grid of positions."""
        height, width = latents.shape[-2:]
        length = conditioning["encoder_hidden_states"].shape[1]
        out = components.denoiser(
            hidden_states=pack(latents),
            timestep=levels(t, latents),
            txt_ids=torch.zeros(length, 3, device=latents.device, dtype=latents.dtype),
            img_ids=grid_ids(height // 2, width // 2, 3, 1, latents.device).to(latents.dtype),
            return_dict=False,
            **conditioning,
        )[0]
        return unpack(out, height, width)
