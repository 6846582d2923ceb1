"""Copies of training pictures made smaller and moved, so that a thing is learned at any size and place.

Custom Diffusion (Kumari et al., arXiv:2212.04488, appendix B) scales its pictures at random. Unlike there, captions
stay as they are ("very small" means nothing to a small base), and the surroundings go on from the picture's rim: on a
plain background that is the true picture; otherwise the surroundings count as little as what lies outside a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from trainers.data.folders import Example
from trainers.data.stored import Composed
from trainers.settings import DataConfig

SMALLEST = 0.4
"""Smallest side of a copy, as a share of the picture's."""
PLAIN = 6.0
"""Mean distance of the rim's pixels from their median colour, of 255, up to which a background is plain."""


def copied(examples: Sequence[Example], data: DataConfig, seed: int) -> list[Example]:
    """Return the examples of a run with the copies that its settings of reading ask for; a seed decides which."""
    return with_smaller_copies(examples, data.smaller_copies, torch.Generator().manual_seed(seed * 7_457 + 31))


def with_smaller_copies(examples: Sequence[Example], count: int, generator: torch.Generator) -> list[Example]:
    """Return the examples, each followed by `count` copies of it.

    Args:
        examples: training pictures.
        count: copies of each.
        generator: source of sizes (even in their logarithm) and places.
    """
    listed: list[Example] = []
    for example in examples:
        listed.append(example)
        if not count:
            continue
        counts = example.mask_source is not None or not _plain(example.picture)
        for _ in range(count):
            size, across, down = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            place = (SMALLEST**size, across, down)
            copy = Composed(example.size, partial(_smaller, example, place))
            mask = Composed(example.size, partial(_smaller_mask, example, place)) if counts else None
            listed.append(replace(example, source=copy, mask_source=mask))
    return listed


Place = tuple[float, float, float]
"""Scale of a copy, and its place as shares of the free room."""


def _smaller(example: Example, place: Place) -> Image.Image:
    """Return a copy of the picture, its surroundings as its rim."""
    size, room = _room(example, place)
    way = Image.Resampling.BOX if place[0] < 1 else Image.Resampling.NEAREST
    small = np.asarray(example.picture.resize(size, way))
    return Image.fromarray(np.pad(small, (*room, (0, 0)), mode="edge"))


def _smaller_mask(example: Example, place: Place) -> Image.Image:
    """Return the mask of a copy, black around it."""
    size, room = _room(example, place)
    mask = example.mask or Image.new("L", example.size, 255)
    inside = np.asarray(mask.convert("L").resize(size, Image.Resampling.BOX))
    return Image.fromarray(np.pad(inside, room))


def _room(example: Example, place: Place) -> tuple[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]]:
    """Return the size of a copy, and the pixels above, below, left and right of it."""
    (wide, high), (scale, across, down) = example.size, place
    width, height = max(1, round(wide * scale)), max(1, round(high * scale))
    left, top = round(across * (wide - width)), round(down * (high - height))
    return (width, height), ((top, high - height - top), (left, wide - width - left))


def _plain(picture: Image.Image) -> bool:
    """Return whether the rim has one colour."""
    pixels = np.asarray(picture, dtype=np.float32)
    rim = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    return bool((np.abs(rim - np.median(rim, axis=0)).mean() if len(rim) else 0.0) < PLAIN)
