"""Scores: an exact detector for sticker pictures, and the judge's similarities.

The detector is geometry, not a network: the background is the colour of the picture's rim, things are connected
regions that differ from it, and each is cut out and named by the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from pipelines.measures.judge import INPUT, Judge

FOREGROUND = 0.25
"""Distance from the background, in [-1, 1] units of the most different channel, from which a pixel is of a thing."""
SMALLEST = 0.012
"""Share of the picture below which a region is a speck: a 7 px square in 64."""
OVERLAP = 0.4
"""Share of a region's box inside that of a larger one from which it is part of it."""
MARGIN = 1.2
"""Side of a crop relative to the thing in it."""


@dataclass(frozen=True)
class FoundSticker:
    """One thing in a picture: its box as x0 y0 x1 y1 in fractions, and its crop (3, 64, 64) in [-1, 1]."""

    box: tuple[float, float, float, float]
    crop: Tensor

    @property
    def centre(self) -> tuple[float, float]:
        """Return the middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def background(image: Tensor) -> Tensor:
    """Return the colour (3,) of the rim of a picture (3, H, W): the median, robust against a thing at the rim."""
    rim = torch.cat((image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]), dim=1)
    return rim.median(dim=1).values


def nearest_colour(image: Tensor, colours: dict[str, tuple[int, int, int]]) -> str:
    """Return the name of the colour nearest to the background of a picture (3, H, W) in [-1, 1]."""
    table = torch.tensor(list(colours.values()), dtype=torch.float32) / 127.5 - 1
    distance = (table - background(image)[None].cpu()).square().sum(1)
    return list(colours)[int(distance.argmin())]


def detect(image: Tensor, foreground: float = FOREGROUND) -> list[FoundSticker]:
    """Return the things in a picture (3, H, W) in [-1, 1], largest first: regions that differ from the background.

    A region whose box lies mostly within that of a larger one is part of it: a stripe in the background colour may cut
    a thing in two.
    """
    height, width = image.shape[1:]
    mask = ((image - background(image)[:, None, None]).abs().amax(0) > foreground).cpu().numpy()
    labelled: Any = ndimage.label(mask)
    regions, count = labelled
    if not count:
        return []
    sizes: list[float] = ndimage.sum_labels(mask, regions, range(1, count + 1)).tolist()
    places: list[Any] = ndimage.find_objects(regions)
    things: list[list[float]] = []  # x0 y0 x1 y1 size
    for label in sorted(range(count), key=lambda label: -sizes[label]):
        rows, columns = places[label]
        box = [columns.start / width, rows.start / height, columns.stop / width, rows.stop / height]
        home = next((thing for thing in things if _share_inside(box, thing) > OVERLAP), None)
        if home is None:
            things.append([*box, sizes[label]])
        else:
            home[:] = [
                min(home[0], box[0]),
                min(home[1], box[1]),
                max(home[2], box[2]),
                max(home[3], box[3]),
                home[4] + sizes[label],
            ]
    kept = sorted((t for t in things if t[4] >= SMALLEST * height * width), key=lambda thing: -thing[4])
    boxes = [(t[0], t[1], t[2], t[3]) for t in kept]
    return [FoundSticker(box, crop(image, box)) for box in boxes]


def _share_inside(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the share of the area of `box` that lies in `other`."""
    across = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    down = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    return across * down / ((box[2] - box[0]) * (box[3] - box[1]))


def crop(image: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """Return the square around a box with a margin, (3, 64, 64), padded with the rim's pixels."""
    x0, y0, x1, y1 = box
    half = max((x1 - x0) * image.shape[2], (y1 - y0) * image.shape[1]) / 2 * MARGIN
    axis = torch.linspace(-1, 1, INPUT)
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack((grid_x * 2 * half / image.shape[2], grid_y * 2 * half / image.shape[1]), -1)
    grid = grid + torch.tensor([x0 + x1 - 1, y0 + y1 - 1])
    return F.grid_sample(image[None], grid[None].to(image), padding_mode="border", align_corners=False)[0]


@torch.no_grad()
def name(judge: Judge, crops: Sequence[Tensor], names: Sequence[str]) -> list[str]:
    """Return the judge's word for each crop, out of `names`."""
    if not crops:
        return []
    texts = judge.embed_texts([f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in names])
    seen = judge.embed_pictures(torch.stack(list(crops)))
    return [names[int(i)] for i in (seen @ texts.T).argmax(1)]


class Standing(Protocol):
    """Anything that stands somewhere in a picture."""

    @property
    def centre(self) -> tuple[float, float]:
        """Return the middle of its box, in fractions."""
        ...


def holds(relation: str, first: Standing, second: Standing) -> bool:
    """Return whether a relation holds between two things, by their boxes.

    Left/right and above/below compare middles and demand that the named direction is the larger difference.
    """
    (ax, ay), (bx, by) = first.centre, second.centre
    dx, dy = bx - ax, by - ay
    if relation in ("left of", "right of"):
        return abs(dx) > abs(dy) and (dx > 0) == (relation == "left of")
    if relation in ("above", "below"):
        return abs(dy) > abs(dx) and (dy > 0) == (relation == "above")
    raise KeyError(relation)


@torch.no_grad()
def picture_similarity(judge: Judge, made: Tensor, real: Tensor) -> float:
    """Return the mean cosine between all made and all real pictures (CLIP-I of DreamBooth), in [-1, 1]."""
    return float((judge.embed_pictures(made) @ judge.embed_pictures(real).T).mean())


@torch.no_grad()
def text_alignment(judge: Judge, made: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean cosine between each picture and its prompt (CLIP-T), in [-1, 1]."""
    return float((judge.embed_pictures(made) * judge.embed_texts(list(prompts))).sum(1).mean())
