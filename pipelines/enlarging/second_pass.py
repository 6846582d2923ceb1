"""The second pass of a request: pictures are enlarged, noised in part and drawn again in overlapping tiles.

At every step the predictions of all tiles are averaged where they overlap (MultiDiffusion, arXiv:2302.08113, eq. 5), so
that there are no seams; each tile is as large as the pictures that the base was made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.condition import Branch, Step, least_strength
from pipelines.enlarging.tiles import Tiles, tiles_over
from pipelines.errors import RequestError
from pipelines.models.components import Components, Conditioning, encode
from pipelines.request.request import Request

LARGEST = 4096
"""Most pixels along a side."""


def enlarged_size(components: Components, request: Request) -> tuple[int, int]:
    """Return width and height of the second pass in pixels, as the base can draw them.

    Raises:
        RequestError: if a side is too long.
    """
    factor, multiple = request.enlarge.factor, components.multiple
    width, height = (
        max(multiple, round(int(side or 0) * factor / multiple) * multiple) for side in (request.width, request.height)
    )
    if max(width, height) > LARGEST:
        raise RequestError(
            f"Enlarged {factor:g} times the picture would have {width} x {height} pixels; {LARGEST} along a side is"
            " the most.",
            "Use a smaller factor.",
        )
    return width, height


def tiles_of(components: Components, request: Request, size: tuple[int, int]) -> Tiles:
    """Return tiles of the size that the base was made for, over a picture of a width and height in pixels.

    They are the first pass's own size where that is larger.
    """
    usual, factor = components.defaults.size, components.factor
    width, height = (min(side, max(usual, int(own or 0))) for side, own in zip(size, _own(request), strict=True))
    return tiles_over((size[1] // factor, size[0] // factor), (height // factor, width // factor))


def _own(request: Request) -> tuple[int | None, int | None]:
    return request.width, request.height


def require_enlargeable(components: Components, request: Request) -> None:
    """Refuse a second pass on a base that only repaints, or beyond what a picture may be.

    Raises:
        RequestError: with the next step.
    """
    if not request.enlarge.acts:
        return
    if components.input_channels != components.channels:
        raise RequestError(
            f"The UNet of {components.name} repaints, and draws no tiles of its own.",
            "Enlarge with the text-to-image base it was made of, or leave enlarge out.",
        )
    size = enlarged_size(components, request)
    if request.enlarge.strength and not second_steps(request):
        raise RequestError(
            f"The strength {request.enlarge.strength:g} of {request.steps} steps is less than one step of the second"
            f" pass to {size[0]} x {size[1]}.",
            f"Use at least {least_strength(int(request.steps or 1)):g}, more steps, or 0 to enlarge alone.",
        )


def second_steps(request: Request) -> int:
    """Return the steps of the second pass; 0 if there is none."""
    return int(float(request.enlarge.strength or 0) * int(request.steps or 1) + 1e-9) if request.enlarge.acts else 0


def larger(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1] at a width and height, by bicubic interpolation if need be."""
    if pictures.shape[-2:] == (size[1], size[0]):
        return pictures.float()
    return interpolate(pictures.float(), (size[1], size[0]), mode="bicubic", antialias=True).clamp(-1, 1)


class Enlarging:
    """The canvas of the second pass: starts from enlarged latents, noised to the strength.

    Args:
        components: the base.
        request: with nothing left open.
        latents: (B, C, h, w) of the first pass.
        pictures: (B, 3, H, W) of it.
        size: width and height in pixels.
    """

    def __init__(
        self, components: Components, request: Request, latents: Tensor, pictures: Tensor, size: tuple[int, int]
    ) -> None:
        self.kept = second_steps(request)
        if request.enlarge.by == "latents":
            cells = (size[1] // components.factor, size[0] // components.factor)
            self.clean = interpolate(latents.float(), cells, mode="bicubic", antialias=True)
        else:
            grown = larger(pictures, size)
            self.clean = torch.cat([encode(components, one).mean.float() for one in grown.split(1)])

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Change nothing."""
        yield

    def sized(self, request: Request, components: Components) -> Request:
        """Return the request as it is."""
        return request

    def begin(self, noise: Tensor, scheduler: Any) -> tuple[Tensor, Tensor]:
        """Return the noised start (B, C, h, w), and the last share of the timesteps."""
        timesteps: Tensor = scheduler.timesteps
        if self.kept == len(timesteps):
            return noise * scheduler.init_noise_sigma, timesteps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(len(timesteps) - self.kept)
        timesteps = timesteps[-self.kept :]
        return scheduler.add_noise(self.clean.to(noise), noise, timesteps[:1].expand(len(noise))), timesteps

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return nothing."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents as they are."""
        return latents

    def finish(self, pictures: list[Any]) -> list[Any]:
        """Return the pictures as they are."""
        return pictures


def second_noise(like: Tensor, generators: Sequence[torch.Generator], size: tuple[int, int], factor: int) -> Tensor:
    """Return unit noise for the second pass (B, C, h, w), of each picture from where its generator stands."""
    shape = (1, like.shape[1], size[1] // factor, size[0] // factor)
    drawn = [torch.randn(shape, generator=one, dtype=like.dtype) for one in generators]
    return torch.cat(drawn).to(like.device)
