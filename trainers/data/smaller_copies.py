"""Copies of training pictures made smaller and moved, so that a thing is learned at any size and place.

Custom Diffusion (Kumari et al., arXiv:2212.04488, appendix B) scales its pictures at random. Unlike there, captions
stay as they are ("very small" means nothing to a small base), and the surroundings go on from the picture's rim: on a
plain background that is the true picture; otherwise the surroundings count as little as what lies outside a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from trainers.data.folders import Example

SMALLEST = 0.4
"""Smallest side of a copy, as a share of the picture's."""
PLAIN = 6.0
"""Mean distance of the rim's pixels from their median colour, of 255, up to which a background is plain."""


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
        for _ in range(count):
            size, across, down = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            listed.append(_smaller(example, SMALLEST**size, across, down))
    return listed


def _smaller(example: Example, scale: float, across: float, down: float) -> Example:
    """Return a copy scaled by `scale`, at a place given as shares of the free room."""
    picture = example.picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    left, top = round(across * (picture.width - width)), round(down * (picture.height - height))
    room = ((top, picture.height - height - top), (left, picture.width - width - left))
    small = np.asarray(picture.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST))
    copy = Image.fromarray(np.pad(small, (*room, (0, 0)), mode="edge"))
    mask = example.mask
    if mask is None and not _plain(picture):
        mask = Image.new("L", picture.size, 255)
    if mask is not None:
        inside = np.asarray(mask.convert("L").resize((width, height), Image.Resampling.BOX))
        mask = Image.fromarray(np.pad(inside, room))
    return replace(example, picture=copy, mask=mask)


def _plain(picture: Image.Image) -> bool:
    """Return whether the rim has one colour."""
    pixels = np.asarray(picture, dtype=np.float32)
    rim = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    return bool((np.abs(rim - np.median(rim, axis=0)).mean() if len(rim) else 0.0) < PLAIN)
