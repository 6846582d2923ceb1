"""Conditions for a batch of canvases: each row has its own picture and mask; rows may be layouts of one question.

`pipelines.conditions.inpaint` paints on one picture of a person's and pastes the untouched part back; here only a cell
is wanted of each canvas, so nothing is pasted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.errors import RequestError
from pipelines.models.components import CONCAT, Components, Conditioning, encode
from pipelines.pictures.grids import Grid
from pipelines.request.request import Request


@dataclass(frozen=True)
class Detail:
    """Details of the query that the model would lose, put back into its answer.

    Beside each question goes another one with the same noise, whose examples change nothing: its right answer is the
    query itself, so what the model makes of it shows what it loses. After each step that row is put to where the noised
    query is, and the answer moves by as much (Xu et al., "Inversion-Free Image Editing", arXiv:2312.04965, eq. 10 to
    12, with an example in the place of a prompt). As the noise falls the loss does, and the answer is the model's own.

    Attributes:
        source: for each row, the row of its unchanged question; that one's own is itself.
        shares: for each row, the share of the steps in which it is moved.
    """

    source: Sequence[int]
    shares: Sequence[float]


class Canvases:
    """The canvases without the cells to be painted, as inputs of an inpainting UNet.

    Args:
        images: (B, 3, H, W) in [-1, 1]; with details kept, the cells to be painted hold the query.
        masks: (B, 1, H, W), 1 where it is painted; whole latents.
        strength: share of the steps that are carried out, in (0, 1]; below 1 the start is the noised canvas.
        unguided: (B, 3, H, W), what the negative branch sees instead, so that guidance follows what differs: the
            examples, as it follows the prompt (Brooks et al., arXiv:2211.09800, 3.2.1, for pictures).
        detail: what is put back of the query, or None.
    """

    def __init__(
        self,
        images: Tensor,
        masks: Tensor,
        strength: float = 1.0,
        unguided: Tensor | None = None,
        detail: Detail | None = None,
    ) -> None:
        self.images, self.masks, self.strength = images, masks, strength
        self.unguided, self.detail = unguided, detail
        self._seen: dict[Branch, Tensor] = {}
        self._clean: Tensor | None = None
        self._noised: tuple[Tensor, Any] | None = None

    def sized(self, request: Request, components: Components) -> Request:
        """Return the request at the size of the canvases."""
        return request.model_copy(update={"width": self.images.shape[-1], "height": self.images.shape[-2]})

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Encode the canvases once for the run.

        Raises:
            RequestError: if the UNet is none for inpainting.
        """
        into, out = components.input_channels, components.channels
        if into != 2 * out + 1:
            raise RequestError(
                f"The UNet of {components.name} reads {into} channels; a grid is painted with {2 * out + 1}.",
                "Use an inpainting model: studio train inpainting makes one.",
            )
        masks, factor = self.masks.to(self.images), components.factor
        mask = masks[..., ::factor, ::factor].to(components.device, components.dtype)
        seen = torch.cat([mask, _encoded(components, self.images * (1 - masks))], dim=1)
        self._seen = dict.fromkeys(Branch, seen)
        if self.unguided is not None:
            blank = _encoded(components, self.unguided * (1 - masks))
            self._seen[Branch.NEGATIVE] = torch.cat([mask, blank], dim=1)
        if self.strength < 1 or self.detail is not None:
            self._clean = _encoded(components, self.images)
        try:
            yield
        finally:
            self._seen, self._clean, self._noised = {}, None, None

    def begin(self, noise: Tensor, scheduler: Any) -> tuple[Tensor, Tensor]:
        """Return start latents (B, C, h, w) and the timesteps left: all for strength 1, else its last share."""
        timesteps: Tensor = scheduler.timesteps
        kept = max(1, int(self.strength * len(timesteps) + 1e-9))
        self._noised = noise, scheduler
        if self._clean is None or self.strength == 1:
            return noise * scheduler.init_noise_sigma, timesteps
        if hasattr(scheduler, "set_begin_index"):  # those that count steps, which DDIM does not
            scheduler.set_begin_index(len(timesteps) - kept)
        timesteps = timesteps[-kept:]
        return scheduler.add_noise(self._clean, noise, timesteps[:1].expand(len(noise))), timesteps

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return the mask and the canvases."""
        return {CONCAT: self._seen[branch]}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents with details put back; the rest of the canvas is an input of the UNet."""
        if self.detail is None or self._clean is None or self._noised is None:
            return latents
        known, (noise, scheduler) = self._clean, self._noised
        if step.following is not None:
            known = scheduler.add_noise(known, noise, step.following.reshape(1).expand(len(known)))
        source = torch.tensor(self.detail.source, device=latents.device)
        moved = torch.tensor([step.within(share) for share in self.detail.shares], device=latents.device)
        return latents + moved.to(latents.dtype)[:, None, None, None] * (known - latents)[source]

    def finish(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Return the pictures as they are: only the answer is used, and it is cropped later."""
        return pictures


def _encoded(components: Components, images: Tensor) -> Tensor:
    """Return latents (B, C, h, w) of pictures: the mean of the posterior, since inputs need no noise of their own."""
    return torch.cat([encode(components, part).mean for part in images.split(16)]).to(components.dtype)


class Agreement:
    """The average of the answers of rows that ask the same in several layouts, after every step.

    A step is linear in the prediction, and the answer starts alike in all rows: the mean of the answers is the answer
    of the mean prediction. Mirrored arrangements are averaged among themselves, because the latents of a mirrored
    picture are not the mirrored latents of the picture.

    Args:
        grids: the arrangements; row k * B + i of B * len(grids) is question i in grid k.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.grids = tuple(grids)

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Prepare nothing."""
        yield

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return nothing."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return latents (len(grids) * B, C, h, w) with the answers' cells of a question averaged."""
        parts = list(latents.chunk(len(self.grids)))
        for mirrored in (False, True):
            group = [index for index, grid in enumerate(self.grids) if grid.mirrored == mirrored]
            if len(group) < 2:
                continue
            agreed = torch.stack([self.grids[k].crop(parts[k]) for k in group]).mean(0)
            for k in group:
                parts[k] = laid(self.grids[k], parts[k], agreed)
        return torch.cat(parts) if len(self.grids) > 1 else latents


def laid(grid: Grid, canvas: Tensor, answer: Tensor) -> Tensor:
    """Return the canvas (B, C, H, W) with the answer (B, C, h, w) in its cell, the inverse of `Grid.crop`."""
    everywhere = grid.compose(answer[:, None, None].expand(-1, grid.pairs, 2, *answer.shape[1:]))
    return torch.where(grid.mask(*answer.shape[-2:]).bool().to(canvas.device), everywhere, canvas)
