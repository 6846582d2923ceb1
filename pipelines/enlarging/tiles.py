"""Overlapping tiles of latents and pictures, which are put together without seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.condition import Step

OVERLAP = 0.25
"""Least share of a tile that it has in common with the next."""

Predictor = Callable[[Tensor, Tensor, Step], Tensor]


@dataclass(frozen=True)
class Tiles:
    """Places of tiles on latents or a picture.

    Attributes:
        side: height and width of each.
        tops: first rows.
        lefts: first columns.
    """

    side: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        """Return their number."""
        return len(self.tops) * len(self.lefts)

    def places(self) -> Iterator[tuple[slice, slice]]:
        """Return rows and columns of each tile."""
        height, width = self.side
        for top in self.tops:
            for left in self.lefts:
                yield slice(top, top + height), slice(left, left + width)

    def over(self, predict: Predictor) -> Predictor:
        """Return a prediction of the whole from those of its tiles, each weighted towards its middle."""
        if len(self) == 1:
            return predict

        def whole(sample: Tensor, time: Tensor, step: Step) -> Tensor:
            return self.joined(sample, lambda tile: predict(tile, time, step))

        return whole

    def joined(self, sample: Tensor, change: Callable[[Tensor], Tensor], scale: int = 1) -> Tensor:
        """Return what `change` makes of each tile, averaged where they overlap, each weighted towards its middle.

        Args:
            sample: (B, C, H, W) that the tiles lie on.
            change: (B, C, h, w) to (B, C, h * scale, w * scale).
            scale: times that a tile's sides grow.
        """
        window = _window((self.side[0] * scale, self.side[1] * scale)).to(sample)
        shape = (*sample.shape[:-2], sample.shape[-2] * scale, sample.shape[-1] * scale)
        total, weight = sample.new_zeros(shape), sample.new_zeros(shape[-2:])
        for rows, columns in self.places():
            there = tuple(slice(one.start * scale, one.stop * scale) for one in (rows, columns))
            total[..., *there] += change(sample[..., rows, columns]).to(sample) * window
            weight[there] += window
        return total / weight


def tiles_over(whole: tuple[int, int], side: tuple[int, int], overlap: float = OVERLAP) -> Tiles:
    """Return tiles of a height and width that cover a whole of a height and width."""
    return Tiles(side, starts(whole[0], side[0], overlap), starts(whole[1], side[1], overlap))


def _window(side: tuple[int, int]) -> Tensor:
    """Return weights (h, w) that fall linearly from the middle of a tile to its rim, never to 0."""
    height, width = (1 - (torch.arange(n) + 0.5 - n / 2).abs() / (n / 2) + 1 / n for n in side)
    return height[:, None] * width[None, :]


def starts(whole: int, tile: int, overlap: float = OVERLAP) -> tuple[int, ...]:
    """Return the beginnings of evenly spread tiles that cover a length and overlap by at least a share of them.

    >>> starts(16, 8), starts(8, 8), starts(20, 8)
    ((0, 4, 8), (0,), (0, 6, 12))
    """
    if whole <= tile:
        return (0,)
    count = math.ceil((whole - tile) / (tile * (1 - overlap))) + 1
    return tuple(round(i * (whole - tile) / (count - 1)) for i in range(count))
