"""Stable Diffusion 3 and 3.5: two CLIPs and T5 beside each other, latents read as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.models.components import Components, Conditioning
from pipelines.models.families.clip import caption_ids
from pipelines.models.families.language import bare, token_rows, word_places
from pipelines.models.families.rectified_flow import RectifiedFlow, levels
from pipelines.models.flow import Flow, linear_mu
from pipelines.request.request import Defaults

T5_TOKENS = 256
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_TRANSFORMER = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


class StableDiffusion3(RectifiedFlow):
    """The family of SD3 (Esser et al., arXiv:2403.03206)."""

    name = "sd3"
    pipe = "StableDiffusion3Pipeline"
    base = "stabilityai/stable-diffusion-3.5-medium or -large"
    targets: Mapping[str, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "transformer": _TRANSFORMER,
        "all": (*_TRANSFORMER, "norm1.linear", "norm1_context.linear"),
    }

    def channels(self, components: Components) -> int:
        """Return the channels that the transformer reads."""
        return int(components.denoiser.config["in_channels"])

    def multiple(self, components: Components) -> int:
        """Return the pixels of a patch."""
        return self.factor(components) * int(components.denoiser.config["patch_size"])

    def defaults(self, components: Components) -> Defaults:
        """Return the settings of 3.5 at the size of the transformer."""
        size = int(components.denoiser.config["sample_size"]) * self.factor(components)
        return super().defaults(components).model_copy(update={"size": size})

    def process(self, components: Components) -> Flow:
        """Return the flow on the scheduler's own levels, whose shift is fixed."""

        def mu(steps: int, shape: tuple[int, ...]) -> float:
            tokens = shape[-2] * shape[-1] // int(components.denoiser.config["patch_size"]) ** 2
            return linear_mu(tokens, components.scheduler_config, 4096)

        return Flow(components.scheduler_config, self.shift, mu, linear=False)

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return states (B, 77 + 256, dim) and pooled text; without T5 its states are zeros, as in diffusers."""
        texts = bare(prompts, plain)
        states: list[Tensor] = []
        pooled: list[Tensor] = []
        for which, encoder in enumerate(components.text_encoders[:2]):
            out = encoder(caption_ids(components, which, texts), output_hidden_states=True)
            states.append(out.hidden_states[-(2 + skip)])
            pooled.append(out.text_embeds)
        width = int(components.denoiser.config["joint_attention_dim"])
        clip = torch.cat(states, dim=-1)
        clip = F.pad(clip, (0, width - clip.shape[-1]))
        if len(components.text_encoders) > 2:
            ids = token_rows(components, 2, texts, T5_TOKENS, ends=1).ids
            t5 = components.text_encoders[2](ids)[0].to(clip)
        else:
            t5 = torch.zeros(len(texts), T5_TOKENS, width).to(clip)
        told: dict[str, Any] = {
            "encoder_hidden_states": torch.cat([clip, t5], dim=-2),
            "pooled_projections": torch.cat(pooled, dim=-1),
        }
        return {key: one.to(components.device, components.dtype) for key, one in told.items()}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words with their places in the first window of CLIP, and in T5 behind it."""
        window = components.tokenizers[0].model_max_length
        found = word_places(components, 0, prompt, window - 2, 1)
        if len(components.text_encoders) > 2:
            behind = word_places(components, 2, prompt, T5_TOKENS, window)
            found = [(word, [*own, *more]) for (word, own), (_, more) in zip(found, behind, strict=True)]
        return found

    def seats(self, tokens: int, pictured: int) -> tuple[int, int] | None:
        """Return where picture and text begin: the picture first."""
        return 0, pictured

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity; the transformer counts levels in thousandths."""
        return components.denoiser(
            hidden_states=latents, timestep=levels(t * 1000, latents), return_dict=False, **conditioning
        )[0]
