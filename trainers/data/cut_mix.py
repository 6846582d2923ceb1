"""Cut-Mix: training pictures of two subjects side by side, so that they are learned apart, and at small sizes.

Source: SVDiff (Han et al., arXiv:2303.11305, 3.3), without its term on attention maps. Two differences: whole pictures
are scaled down instead of cut in half, as a half of a thing is no thing, and they stand one above the other as well.
Pictures whose rims are alike come together, so that the seam is seldom seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from trainers.data.folders import Example
from trainers.data.latents import fitted
from trainers.data.stored import Composed
from trainers.settings import SubjectConfig

FEWEST, MOST = 48, 240
"""Composed pictures: enough that none is learned by heart, and no more than are soon encoded."""

SIDE = (0.44, 0.50)
"""Smallest and largest side of a picture in a composed one, as a share of its side."""

ORDERS = {"across": ("to the left of", "to the right of"), "down": ("above", "below")}
"""Layouts of two things, with the words for the first and for the second."""


def cut_mixed(
    examples: Sequence[Example],
    config: SubjectConfig,
    templates: Sequence[str],
    *,
    side: int,
    crop: bool,
    generator: torch.Generator,
) -> list[Example]:
    """Return the examples with composed ones, which are `config.cut_mix` of all that are seen.

    Args:
        examples: the pictures, each with the word of its subject; some of each subject.
        config: the subjects, and the share.
        templates: prompt templates with one `{}`.
        side: of a composed picture in pixels.
        crop: crop pictures to squares rather than squeeze them.
        generator: draws pairs, sizes and places.
    """
    shown = {subject.trigger: [e for e in examples if e.word == subject.trigger] for subject in config.subjects}
    odds = config.cut_mix / (1 - config.cut_mix) * sum(e.repeats for e in examples)
    times = max(1, -int(-FEWEST // odds))
    words = list(shown)
    pairs = [(a, b) for place, a in enumerate(words) for b in words[place + 1 :]]
    likest = {pair: _alike(*(shown[word] for word in pair)) for pair in pairs}  # reads every picture from its file
    composed: list[Example] = []
    wanted = round(odds * times)
    count = min(wanted, MOST)
    for number in range(count):
        alike = likest[pairs[number % len(pairs)]]
        one, other = alike[_below(len(alike), generator)]
        if _below(2, generator):
            one, other = other, one
        composed.append(_composed(f"cut-mix {number}", (one, other), templates, side, crop, generator))
    often = round(wanted / count)
    return [replace(e, repeats=e.repeats * times) for e in examples] + [replace(e, repeats=often) for e in composed]


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _alike(ones: Sequence[Example], others: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Return the quarter of all pairs whose rims differ least in colour."""
    rims = {id(e): _rim(e.picture) for e in (*ones, *others)}
    pairs = [(a, b) for a in ones for b in others]
    pairs.sort(key=lambda pair: float(np.abs(rims[id(pair[0])] - rims[id(pair[1])]).sum()))
    return pairs[: max(1, len(pairs) // 4)]


def _rim(picture: Image.Image) -> np.ndarray:
    """Return the median colour (3,) of the outermost pixels."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.median(rim, axis=0)


def _composed(
    name: str,
    pair: tuple[Example, Example],
    templates: Sequence[str],
    side: int,
    crop: bool,
    generator: torch.Generator,
) -> Example:
    """Return two pictures in one; the first stands left or on top."""
    direction = tuple(ORDERS)[_below(2, generator)]
    halves: list[_Half] = []
    for place, example in enumerate(pair):
        share = SIDE[0] + (SIDE[1] - SIDE[0]) * float(torch.rand((), generator=generator))
        inner = max(1, min(side // 2, round(share * side)))
        half = side // 2 if place == 0 else side - side // 2
        shape = (side, half) if direction == "across" else (half, side)
        room = [extent - inner for extent in shape]
        offsets = [_below(extent + 1, generator) for extent in room]
        around = tuple((offset, extent - offset) for offset, extent in zip(offsets, room, strict=True))
        halves.append(_Half(example, inner, around))
    axis = 1 if direction == "across" else 0
    (first, second), (said, conversely) = pair, ORDERS[direction]
    captions = [
        wording.replace("{}", f"{a} {relation} {'a ' if 'a {}' in wording else ''}{b}")
        for wording in templates
        for a, relation, b in ((first.word, said, second.word), (second.word, conversely, first.word))
    ]
    masked = any(example.mask_source is not None for example in pair)
    whole = Composed((side, side), partial(_joined, tuple(halves), axis, crop))
    mask = Composed((side, side), partial(_joined_masks, tuple(halves), axis, crop)) if masked else None
    return Example(name, whole, tuple(captions), mask, word=first.word)


@dataclass(frozen=True)
class _Half:
    """A picture in a half of a composed one.

    Attributes:
        example: the picture.
        inner: its side there in pixels.
        around: pixels above and below, left and right of it.
    """

    example: Example
    inner: int
    around: tuple[tuple[int, int], ...]


def _joined(halves: Sequence[_Half], axis: int, crop: bool) -> Image.Image:
    """Return both pictures in one, the surroundings of each as its rim."""
    small = [np.asarray(fitted(one.example.picture, (one.inner, one.inner), crop)) for one in halves]
    padded = [np.pad(pixels, [*one.around, (0, 0)], mode="edge") for one, pixels in zip(halves, small, strict=True)]
    return Image.fromarray(np.concatenate(padded, axis))


def _joined_masks(halves: Sequence[_Half], axis: int, crop: bool) -> Image.Image:
    """Return both masks in one; a picture without one counts with its surroundings."""
    masks: list[np.ndarray] = []
    for one in halves:
        own = one.example.mask
        mask = np.asarray(fitted(own or Image.new("L", one.example.size, 255), (one.inner, one.inner), crop))
        masks.append(np.pad(mask, one.around, mode="constant" if own else "edge"))
    return Image.fromarray(np.concatenate(masks, axis))
