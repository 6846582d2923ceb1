"""Grids of example pairs as batches, and the loss of their answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pipelines.models.components import CONCAT, Components
from pipelines.models.noise import NoiseProcess, spread_evenly
from pipelines.pictures.grids import Grid
from pipelines.pictures.tensors import to_tensor
from trainers.base_models.inpainting_unet import inputs_beside
from trainers.data.folders import Example
from trainers.losses import conditioning, uncropped


def cells_of(examples: Sequence[Example], side: int) -> Tensor:
    """Return pairs as (N, 2, 3, side, side) in [-1, 1], stretched to the cell."""

    def cell(picture: Image.Image) -> Tensor:
        return to_tensor(picture.resize((side, side), Image.Resampling.LANCZOS))

    return torch.stack([torch.stack([cell(half) for half in (one.picture, one.after) if half]) for one in examples])


def drawn(pairs: Tensor, count: int, blank: float, generator: torch.Generator) -> Tensor:
    """Return cells (count, 2, 2, 3, h, w): another pair as the example, or none, and a pair to be answered.

    Args:
        pairs: (N, 2, 3, h, w), at least two.
        count: grids.
        blank: share of grids whose example is left out.
        generator: on the CPU.
    """
    query = torch.randint(len(pairs), (count,), generator=generator)
    other = (query + torch.randint(1, len(pairs), (count,), generator=generator)) % len(pairs)
    cells = torch.stack((pairs[other], pairs[query]), 1)
    cells[torch.rand(count, generator=generator) < blank, 0] = 0
    return cells


def answer_error(
    components: Components, process: NoiseProcess, cells: Tensor, prompt: str, generator: torch.Generator
) -> Tensor:
    """Return the mean squared error of the prediction in the answer's cell, at times spread evenly over the batch.

    Args:
        components: with an inpainting UNet.
        process: noise process of the base.
        cells: (B, 2, 2, 3, h, w) in [-1, 1], as `drawn`.
        prompt: for all of them.
        generator: on the CPU.
    """
    grid, count = Grid(), len(cells)
    with torch.no_grad():
        canvas = grid.compose(cells.to(components.device))
        size = (canvas.shape[-2], canvas.shape[-1])
        clean, mask, around = inputs_beside(components, canvas, grid.mask(*cells.shape[-2:]).to(canvas))
    even = spread_evenly(count, generator)
    t = process.at((even * process.count).long().clamp(max=process.count - 1).to(components.device))
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    noisy = process.noised(clean, noise, t).to(components.dtype)
    told = conditioning(components, [prompt] * count, uncropped(count, size), size)
    told[CONCAT] = torch.cat((mask, around), 1).to(components.dtype)
    guess = components.family.predict(components, noisy, t, told).float()
    error = (guess - process.target(clean, noise, t)).square() * mask
    return error.sum() / (mask.sum() * clean.shape[1])
