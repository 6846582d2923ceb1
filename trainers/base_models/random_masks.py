"""Random masks for the training of inpainting, many at once on any device; 1 = repaint."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BOXES, STROKES, FULL, THINGS, AROUND = range(5)
"""Kinds of masks: boxes, brush strokes, the whole picture, one thing of it (grown), all but the things."""

SHARES = (0.32, 0.25, 0.08, 0.25, 0.10)
"""Probability of each kind; without masks of things, those become boxes."""


def random_masks(count: int, size: tuple[int, int], generator: torch.Generator, things: Tensor | None = None) -> Tensor:
    """Return masks (count, 1, H, W) float32, each 0 or 1; none is empty.

    Args:
        count: number of items.
        size: height and width.
        generator: source of chance; its device is that of the masks.
        things: (count, N, H, W) bool, where the things of each picture are; rows may be empty.
    """
    shares = torch.tensor(SHARES, device=generator.device)
    kind = torch.multinomial(shares, count, replacement=True, generator=generator)[:, None, None]
    masks = torch.where(kind == STROKES, _strokes(count, size, generator), _boxes(count, size, generator))
    masks = masks | (kind == FULL)
    if things is not None:
        one = _one_thing(things, generator)
        # A hidden thing gives no mask: use a box then.
        masks = torch.where((kind == THINGS) & one.any((1, 2), keepdim=True), one, masks)
        masks = torch.where(kind == AROUND, ~_grown(things.any(1)), masks)
    return masks[:, None].float()


def _uniform(shape: tuple[int, ...], generator: torch.Generator, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _grid(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the middles of the pixels in fractions, x (1, 1, 1, W) and y (1, 1, H, 1)."""
    height, width = size
    x = (torch.arange(width, device=device) + 0.5) / width
    y = (torch.arange(height, device=device) + 0.5) / height
    return x[None, None, None, :], y[None, None, :, None]


def _boxes(count: int, size: tuple[int, int], generator: torch.Generator, most: int = 3) -> Tensor:
    """Return one to `most` boxes of a fifth to nine tenths of the side; of several, each is smaller."""
    x, y = _grid(size, generator.device)
    number = torch.randint(1, most + 1, (count, 1, 1), generator=generator, device=generator.device)
    sides = _uniform((count, most, 2), generator, 0.2, 0.9) / number.sqrt()
    corner = _uniform((count, most, 2), generator, 0, 1) * (1 - sides)
    (x0, y0), (x1, y1) = (t[..., None, None].unbind(2) for t in (corner, corner + sides))
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    drawn = torch.arange(most, device=generator.device) < number[:, 0]
    return (inside & drawn[..., None, None]).any(1)


def _strokes(count: int, size: tuple[int, int], generator: torch.Generator, points: int = 6) -> Tensor:
    """Return a brush stroke through a few points, 8 to 22 hundredths of the side wide."""
    x, y = _grid(size, generator.device)
    place = _uniform((count, points, 2), generator, 0.05, 0.95)
    start, way = place[:, :-1], place[:, 1:] - place[:, :-1]
    (sx, sy), (wx, wy) = (t[..., None, None].unbind(2) for t in (start, way))
    along = (((x - sx) * wx + (y - sy) * wy) / (wx**2 + wy**2 + 1e-8)).clamp(0, 1)
    apart = (x - sx - along * wx) ** 2 + (y - sy - along * wy) ** 2
    length = torch.randint(1, points, (count, 1), generator=generator, device=generator.device)
    led = torch.arange(points - 1, device=generator.device) < length
    radius = _uniform((count, 1, 1, 1), generator, 0.04, 0.11)
    return ((apart < radius**2) & led[..., None, None]).any(1)


def _one_thing(things: Tensor, generator: torch.Generator) -> Tensor:
    """Return one of the things of each picture, grown; every second time as its box."""
    there = things.any(-1).any(-1).float()
    which = torch.multinomial(there + 1e-6, 1, generator=generator)[..., None, None]
    one = things.gather(1, which.expand(-1, 1, *things.shape[2:]))[:, 0]
    rows, columns = one.any(2, keepdim=True), one.any(1, keepdim=True)
    box = _between(rows, 1) & _between(columns, 2)
    square = torch.rand(len(one), 1, 1, generator=generator, device=generator.device) < 0.5
    return _grown(torch.where(square, box, one))


def _between(marks: Tensor, axis: int) -> Tensor:
    """Return masks that are true from the first to the last mark along an axis."""
    ahead, behind = marks.int().cummax(axis).values, marks.flip(axis).int().cummax(axis).values.flip(axis)
    return (ahead & behind).bool()


def _grown(masks: Tensor) -> Tensor:
    """Return masks (B, H, W) grown by a thirtieth of the side, so that no edge of a thing shows its former place."""
    reach = max(1, masks.shape[-1] // 32)
    return F.max_pool2d(masks[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0.5
