"""Batches for a 9-channel UNet: pictures with random masks, and visual prompts made of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import ConfigError, DataError
from pipelines.models.components import Components
from pipelines.pictures.grids import Grid
from pipelines.pictures.tensors import fit, to_tensor
from trainers.base_models.incontext import InContextConfig
from trainers.base_models.inpainting_unet import MaskedBatch, Source
from trainers.base_models.random_masks import random_masks
from trainers.data.folders import Example
from trainers.data.picture_pairs import task_of
from trainers.losses import Captions, uncropped
from trainers.settings import DataConfig

FEWEST = 2
"""Pairs that a visual prompt needs: an example and a query."""


def _bytes(pictures: Sequence[Any]) -> Tensor:
    """Return pictures of one size as (N, 3, H, W) uint8."""
    return torch.stack([((to_tensor(one) + 1) * 127.5).round().to(torch.uint8) for one in pictures])


def _floats(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def picture_source(
    components: Components, examples: Sequence[Example], count: int, data: DataConfig, empty: float
) -> Source:
    """Return a source of pictures with random masks; of those with masks of their own, some are these.

    Args:
        components: the base.
        examples: the pictures.
        count: pictures of a batch.
        data: their side, and the probability of mirroring one.
        empty: share of captions that are left empty.

    Raises:
        ConfigError: if the base cannot paint that size.
    """
    side = _side(components, data.resolution)
    kept = _bytes([fit(one.picture, side, side) for one in examples]).to(components.device)
    things = torch.zeros(len(examples), 1, side, side, dtype=torch.bool)
    for index, one in enumerate(examples):
        if (mask := one.mask) is not None:
            things[index] = to_tensor(fit(mask, side, side))[:1] > 0
    things = things.to(components.device)
    conditioning = Captions(components, frozen=True)

    def source(index: int, generator: torch.Generator) -> MaskedBatch:
        which = torch.randint(len(kept), (count,), generator=generator, device=generator.device)
        coins = torch.rand(3, count, generator=generator, device=generator.device)
        pictures, shown = _floats(kept[which]), things[which]
        mirrored = (coins[0] < data.flip)[:, None, None, None]
        pictures = torch.where(mirrored, pictures.flip(-1), pictures)
        masks = random_masks(count, (side, side), generator, torch.where(mirrored, shown.flip(-1), shown))
        captions = [
            "" if coin < empty or not examples[i].captions else _chosen(examples[i].captions, pick)
            for i, coin, pick in zip(which.tolist(), coins[1].tolist(), coins[2].tolist(), strict=True)
        ]
        return MaskedBatch(
            pictures, masks, conditioning(captions, uncropped(len(captions), (side, side)), (side, side))
        )

    return source


def _chosen(captions: Sequence[str], pick: float) -> str:
    return captions[int(pick * len(captions))]


def require_pairs(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Return the pairs of each task.

    Raises:
        DataError: if one has fewer pairs than a visual prompt needs, or a picture has none after the change.
    """
    if alone := [one.name for one in examples if one.after_source is None]:
        raise DataError(f"{alone[0]} has no picture after the change.", "Every pair needs both pictures.")
    tasks: dict[str, list[Example]] = {}
    for one in examples:
        tasks.setdefault(task_of(one), []).append(one)
    for name, pairs in tasks.items():
        if len(pairs) < FEWEST:
            there = f"{name or 'The folder'} holds {len(pairs)} pair{'s' * (len(pairs) != 1)}"
            raise DataError(f"{there}; at least {FEWEST} are needed.", "Add some pairs.")
    return tasks


def pair_source(
    components: Components, examples: Sequence[Example], count: int, resolution: int | None, config: InContextConfig
) -> Source:
    """Return a source of visual prompts: examples and a query of one task, in changing layouts.

    Args:
        components: the base.
        examples: the pairs.
        count: visual prompts of a batch.
        resolution: side of a picture in pixels; the base's own by default.
        config: the layouts, and what is left out.

    Raises:
        ConfigError: if the base cannot paint that size.
        DataError: as `require_pairs`.
    """
    side = _side(components, resolution)
    kept = [
        torch.stack(
            [_bytes([half.resize((side, side)) for half in (one.picture, one.after) if half]) for one in pairs]
        ).to(components.device)
        for pairs in require_pairs(examples).values()
    ]
    most = min(config.examples, min(map(len, kept)) - 1)
    conditioning = Captions(components, frozen=True)

    def source(index: int, generator: torch.Generator) -> MaskedBatch:
        grid = _grid(index, most)
        coins = torch.rand(3, count, generator=generator, device=generator.device)
        chosen: list[Tensor] = []
        for place in (coins[0] * len(kept)).long().tolist():
            order = torch.randperm(len(kept[place]), generator=generator, device=generator.device)
            chosen.append(kept[place][order[: grid.pairs]])
        cells = _floats(torch.stack(chosen))
        blank = (coins[1] < config.blank)[:, None, None, None, None, None]
        cells[:, :-1] = torch.where(blank, 0.0, cells[:, :-1])
        hints = [config.hint if coin < config.hinted else "" for coin in coins[2].tolist()]
        canvas = grid.compose(cells)
        size = (canvas.shape[-2], canvas.shape[-1])
        return MaskedBatch(canvas, grid.mask(side, side).to(canvas), conditioning(hints, uncropped(count, size), size))

    return source


def _grid(index: int, most: int) -> Grid:
    """Return the layout of a step: half of them plain, the others swapped, reversed or with several examples."""
    turn = index % 4
    if turn == 3 and most > 1:
        return Grid(2 + index // 4 % (most - 1))
    return Grid(swapped=turn == 1 and index % 8 == 1, reversed=turn == 1 and index % 8 == 5)


def _side(components: Components, asked: int | None) -> int:
    side, step = asked or components.defaults.size, components.multiple
    if side % step:
        raise ConfigError(f"A side of {side} pixels is no multiple of {step}.", f"Give {side // step * step or step}.")
    return side
