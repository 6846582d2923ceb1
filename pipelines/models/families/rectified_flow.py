"""The common part of families of rectified flow: a transformer, packed latents, a KL autoencoder, Euler's steps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from pipelines.guidance import classifier_free
from pipelines.models.components import Components, Conditioning, Posterior
from pipelines.models.families.autoencoders import kl_decode, kl_encode, kl_factor
from pipelines.models.families.known import KNOWN, said_distilled
from pipelines.models.flow import Flow
from pipelines.request.request import Defaults

NATIVE = 128
"""Side of the latents that the published models draw: 1024 pixels with their autoencoders."""


class RectifiedFlow:
    """The common part of such families; a family says what differs.

    Attributes:
        shift: of the levels that training draws.
        base: to learn on instead of a distilled one.
        pipe: class of the plain pipeline.
    """

    name: str
    network = "transformer"
    world = "world"
    identifiers = False
    trained_text: tuple[int, ...] = ()
    targets: Mapping[str, tuple[str, ...]] = {}
    shift = 3.0
    base = ""
    pipe = ""

    @property
    def title(self) -> str:
        """As people call it."""
        return KNOWN[self.name].title

    def channels(self, components: Components) -> int:
        """Return the channels of the latents, of which the transformer reads squares of four."""
        return int(components.denoiser.config["in_channels"]) // 4

    def factor(self, components: Components) -> int:
        """Return 8 for the published models."""
        return kl_factor(components.vae)

    def multiple(self, components: Components) -> int:
        """Return the pixels of a square of four latents."""
        return self.factor(components) * 2

    def defaults(self, components: Components) -> Defaults:
        """Return the settings of the published model, or of its distilled form."""
        return KNOWN[self.name].defaults(NATIVE * self.factor(components), self.quick(components))

    def quick(self, components: Components) -> bool:
        """Return whether the base was distilled to few steps without guidance."""
        return bool(components.options.get("is_distilled")) or said_distilled(components.name)

    def better_base(self, components: Components) -> str:
        """Return the published base that is meant for learning."""
        return self.base if self.quick(components) else ""

    def process(self, components: Components) -> Flow:
        """Return the flow, its sampling shift as the base's own pipeline has it."""

        def mu(steps: int, shape: tuple[int, ...]) -> float:
            return self.mu(components, steps, shape)

        return Flow(components.scheduler_config, self.shift, mu)

    def mu(self, components: Components, steps: int, shape: tuple[int, ...]) -> float:
        """Return the logarithm of the sampling shift for latents of a shape; unused where the shift is fixed."""
        return 0.0

    def reads_scale(self, components: Components) -> bool:
        """Return no."""
        return False

    def told_scale(self, components: Components, scale: float, count: int) -> Conditioning:
        """Return nothing."""
        return {}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words of a prompt with their places in the text that the transformer reads."""
        raise NotImplementedError

    def seats(self, tokens: int, pictured: int) -> tuple[int, int] | None:
        """Return where picture and text begin: text first, the picture last."""
        return tokens - pictured, 0

    def framed(self, components: Components, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """Return the conditioning: no such family reads sizes."""
        return conditioning

    def beside(self, components: Components, clean: Tensor) -> Conditioning:
        """Return nothing."""
        return {}

    def guide(self, c: Tensor, u: Tensor, scale: float) -> Tensor:
        """Return u + scale (c - u)."""
        return classifier_free(c, u, scale)

    def encode(self, components: Components, images: Tensor) -> Posterior:
        """Return the posterior, shifted and scaled."""
        return kl_encode(components.vae, images)

    def decode(self, components: Components, latents: Tensor) -> Tensor:
        """Return the pictures."""
        return kl_decode(components.vae, latents)

    def pipeline(self, components: Components, parts: Mapping[str, Any]) -> Any:
        """Return the plain pipeline of diffusers over parts."""
        kind: Any = getattr(diffusers, self.pipe)
        missing = dict.fromkeys(KNOWN[self.name].optional)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(components.scheduler_config))
        taken = inspect.signature(kind.__init__).parameters
        said = {key: value for key, value in components.options.items() if key in taken}
        return kind(**{**missing, **parts, "scheduler": scheduler}, **said)


def pack(latents: Tensor) -> Tensor:
    """Return latents (B, C, h, w) as tokens (B, h/2 * w/2, 4 C), a square of four each."""
    batch, channels, height, width = latents.shape
    squares = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens (B, h/2 * w/2, 4 C) as latents (B, C, height, width)."""
    batch, _, channels = tokens.shape
    squares = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(batch, channels // 4, height, width)


def packed_tokens(shape: tuple[int, ...]) -> int:
    """Return the number of tokens of packed latents (B, C, h, w)."""
    return shape[-2] * shape[-1] // 4


def levels(t: Tensor, latents: Tensor) -> Tensor:
    """Return levels (B,) in the precision of the latents, of t () or (B,)."""
    return t.to(latents).expand(len(latents))


def grid_ids(height: int, width: int, axes: int, first: int, device: torch.device) -> Tensor:
    """Return positions (height * width, axes): rows on the axis `first`, columns on the next, zeros elsewhere."""
    ids = torch.zeros(height, width, axes, device=device)
    ids[..., first] = torch.arange(height, device=device)[:, None]
    ids[..., first + 1] = torch.arange(width, device=device)[None, :]
    return ids.view(height * width, axes)
