"""Tasks for visual prompts, made from the sticker world: pairs before and after a change that one rule explains.

A task makes the pairs of many grids at once, on the device its pictures are on. What an example must reveal (which
colour, which way, which of two) is drawn once for each grid and holds for all its pairs. `outline` and `flip` are held
out: no model of this repository is trained on them, so that something is left to ask of an example.

The tasks follow Bar et al. (arXiv:2209.00647: segmentation, detection, colorization, edges) and add those of editing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.stickers.world import COLOURS, NAMES, SIDES, UNIT, Placed, Scene, Stickers, article, scene

SHIFT = 12
"""Distance by which `move` moves the sticker, in 64ths of the picture."""

NOISE = (0.25, 0.5)
"""Standard deviation of the noise of `denoise`, in a range of 2: least and most."""


@dataclass(frozen=True)
class Material:
    """Pictures of a batch with the inputs of all tasks; the leading dimensions are free, (grids, pairs) in a task.

    Attributes:
        pictures: (..., 3, S, S) in [-1, 1], the shaded drawing.
        flat: (..., 3, S, S), the same scenes in the flat drawing.
        ground: (..., 1, S, S) in [0, 1], how much of the background is seen.
        masks: (..., 3, S, S) bool, the visible pixels of each sticker.
        boxes: (..., 3, 4) x0 y0 x1 y1 in fractions, of the visible pixels.
        squares: (..., 3, 3) int, left, top and side in 64ths of each sticker's square, from left to right.
        colours: (..., 3) in [-1, 1], of the background.
    """

    pictures: Tensor
    flat: Tensor
    ground: Tensor
    masks: Tensor
    boxes: Tensor
    squares: Tensor
    colours: Tensor

    @property
    def size(self) -> int:
        """The side of the pictures in pixels."""
        return self.pictures.shape[-1]


Make = Callable[[Material, torch.Generator], tuple[Tensor, Tensor]]
"""Pictures before and after, each (grids, pairs, 3, S, S) in [-1, 1]; the generator is that of their device."""


# -- pictures ---------------------------------------------------------------------------------------------------


def _movable(rng: random.Random, names: Sequence[str]) -> Scene:
    """Return a scene of one thing with room on all sides."""
    side = rng.choice([side for side in SIDES if 20 <= side <= UNIT - 2 * SHIFT - 2])
    left, top = (rng.randint(SHIFT, UNIT - SHIFT - side) for _ in range(2))
    name, colour = rng.choice(names), rng.choice(tuple(COLOURS))
    return Scene(f"{article(name)} on {article(colour)} background", (Placed(name, left, top, side),), colour)


def scenes_for(kind: str, count: int, seed: int, names: Sequence[str] = NAMES) -> list[Scene]:
    """Return scenes of the kind a task wants.

    Args:
        kind: "any" of this world, "one" thing, a "pair" side by side, or a "movable" thing.
        count: number of items.
        seed: source of chance.
        names: stickers to choose from.
    """
    rng, among = random.Random(f"{kind} {seed}"), tuple(names)
    if kind == "movable":
        return [_movable(rng, among) for _ in range(count)]
    if kind == "pair":
        return [scene(rng, names=among, relation=rng.choice(("left of", "right of"))) for _ in range(count)]
    return [scene(rng, names=among, kind="one" if kind == "one" else None) for _ in range(count)]


class Drawings(NamedTuple):
    """The stickers in both styles."""

    shaded: Stickers
    flat: Stickers

    @classmethod
    def of(cls, names: Sequence[str] = NAMES, size: int = UNIT, device: torch.device | str = "cpu") -> Drawings:
        """Return stickers of these names, for pictures of a size in pixels (a multiple of 64), on a device."""
        return cls(Stickers(size, device, "fluent", tuple(names)), Stickers(size, device, "flat", tuple(names)))


class Pool:
    """Pictures rendered once and kept on the device of the drawings as bytes, to draw batches from.

    Args:
        listed: the scenes.
        drawings: of all their stickers.
    """

    def __init__(self, listed: Sequence[Scene], drawings: Drawings) -> None:
        (shaded, flat), device = drawings, drawings.shaded.atlas.device
        parts: list[tuple[Tensor, ...]] = []
        for i in range(0, len(listed), 256):
            part = list(listed[i : i + 256])
            seen = shaded.render(part)
            # What lies between the same scene on yellow and on black is the background.
            bright, dark = (shaded.render([replace(s, colour=c) for s in part]).images for c in ("yellow", "black"))
            span = (COLOURS["yellow"][0] - COLOURS["black"][0]) / 127.5
            ground = (bright - dark)[:, :1] / span
            pictures = (_bytes(seen.images), _bytes(flat.render(part).images), _bytes(ground * 2 - 1))
            parts.append((*pictures, seen.masks, seen.boxes))
        self.pictures, self.flat, self.ground, self.masks, self.boxes = (torch.cat(p) for p in zip(*parts, strict=True))
        colours = torch.tensor([COLOURS[item.colour] for item in listed], device=device)
        self.colours = colours / 127.5 - 1
        self.squares = torch.from_numpy(_squares(listed)).to(device)

    def __len__(self) -> int:
        return len(self.pictures)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Material:
        """Return pictures drawn at random, in leading dimensions of a shape; the generator is that of the device."""
        return self.take(torch.randint(len(self), shape, generator=generator, device=self.pictures.device))

    def take(self, which: Tensor) -> Material:
        """Return the pictures of these numbers, in the leading dimensions of `which`."""
        pictures, flat, ground = (_floats(kept[which]) for kept in (self.pictures, self.flat, self.ground))
        return Material(
            pictures,
            flat,
            (ground + 1) / 2,
            self.masks[which],
            self.boxes[which],
            self.squares[which],
            self.colours[which],
        )


def _bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _squares(listed: Sequence[Scene]) -> np.ndarray:
    squares = np.zeros((len(listed), 3, 3), np.int64)
    for row, item in enumerate(listed):
        for slot, thing in enumerate(sorted(item.stickers, key=lambda thing: thing.left)):
            squares[row, slot] = (thing.left, thing.top, thing.side)
    return squares


# -- tasks ------------------------------------------------------------------------------------------------------


def _one_for_each_grid(material: Material, below: int, generator: torch.Generator) -> Tensor:
    """Return a random number below `below` for each grid, (grids, 1)."""
    count = len(material.pictures)
    return torch.randint(below, (count, 1), generator=generator, device=material.pictures.device)


def _white(shown: Tensor) -> Tensor:
    """Return pictures that are white where `shown` (..., S, S) is true, black elsewhere."""
    return (shown.float() * 2 - 1).unsqueeze(-3).expand(*shown.shape[:-2], 3, *shown.shape[-2:])


def grey(pictures: Tensor) -> Tensor:
    """Return pictures (..., 3, S, S) without colour: Rec. 601 luma."""
    weights = pictures.new_tensor((0.299, 0.587, 0.114))[:, None, None]
    return (pictures * weights).sum(-3, keepdim=True).expand_as(pictures)


def _mask(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return material.pictures, _white(material.masks.any(-3))


def _box(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x0, y0, x1, y1 = (material.boxes[..., 0, :] * material.size).round().unbind(-1)
    axis = torch.arange(material.size, device=x0.device)
    across = (axis >= x0[..., None]) & (axis < x1[..., None])
    down = (axis >= y0[..., None]) & (axis < y1[..., None])
    return material.pictures, _white(down[..., :, None] & across[..., None, :])


def _grey(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return material.pictures, grey(material.pictures)


def _colour(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return grey(material.pictures), material.pictures


def _outline(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shown = material.masks.any(-3).float()
    flat = shown.flatten(0, -3)[:, None]
    wide = 2 * (material.size // UNIT) + 1
    inner = -F.max_pool2d(-flat, wide, 1, wide // 2)
    return material.pictures, _white((flat - inner).view_as(shown) > 0.5)


def _style(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    back = _one_for_each_grid(material, 2, generator)[..., None, None, None].bool()
    shaded, flat = material.pictures, material.flat
    return torch.where(back, flat, shaded), torch.where(back, shaded, flat)


def _recolour(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    palette = material.pictures.new_tensor(list(COLOURS.values())) / 127.5 - 1
    target = _one_for_each_grid(material, len(palette), generator).expand(material.colours.shape[:-1])
    others = torch.randint(1, len(palette), target.shape, generator=generator, device=target.device)
    return _on(material, palette[(target + others) % len(palette)]), _on(material, palette[target])


def _on(material: Material, colours: Tensor) -> Tensor:
    """Return the pictures on other backgrounds, (..., 3)."""
    change = (colours - material.colours)[..., None, None]
    return (material.pictures + material.ground * change).clamp(-1, 1)


def _flip(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return material.pictures, material.pictures.flip(-1)


def _denoise(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    clean = material.pictures
    spread = torch.rand(len(clean), 1, 1, 1, 1, generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    return (clean + noise * (NOISE[0] + spread * (NOISE[1] - NOISE[0]))).clamp(-1, 1), clean


def _remove(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    right = _one_for_each_grid(material, 2, generator).expand(material.squares.shape[:-2])
    index = right[..., None, None].expand(*right.shape, 1, 3)
    left, top, side = material.squares.gather(-2, index).squeeze(-2).unbind(-1)
    axis = torch.arange(material.size, device=left.device) * UNIT // material.size
    across = (axis >= left[..., None]) & (axis < (left + side)[..., None])
    down = (axis >= top[..., None]) & (axis < (top + side)[..., None])
    gone = (down[..., :, None] & across[..., None, :]).unsqueeze(-3)
    return material.pictures, torch.where(gone, material.colours[..., None, None], material.pictures)


def _move(material: Material, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    way = _one_for_each_grid(material, 4, generator).expand(material.pictures.shape[:-3])
    ways = torch.tensor([(-1, 0), (1, 0), (0, -1), (0, 1)], device=way.device) * (SHIFT * material.size // UNIT)
    axis = torch.arange(material.size, device=way.device)
    # The rim is all background, so what comes in from outside is the rim again.
    columns, rows = ((axis - d[..., None]).clamp(0, material.size - 1) for d in ways[way].unbind(-1))
    shape = material.pictures.shape
    moved = material.pictures.gather(-2, rows[..., None, :, None].expand(shape))
    return material.pictures, moved.gather(-1, columns[..., None, None, :].expand(shape))


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        words: a hint in words, as a person would say it.
        scenes: the kind of scenes it is made from, see `scenes_for`.
        make: pairs of pictures from material of the shape (grids, pairs).
        reveals: facts that only the example gives, beside the task itself.
    """

    words: str
    scenes: str
    make: Make
    reveals: str = ""


TASKS: dict[str, Task] = {
    "mask": Task("a white mask of the foreground", "any", _mask),
    "box": Task("a white box over the thing", "one", _box),
    "grey": Task("the picture in gray", "any", _grey),
    "colour": Task("the picture in colour", "any", _colour),
    "outline": Task("the outline", "any", _outline),
    "style": Task("the picture in the other style", "any", _style, "which of the two styles"),
    "recolour": Task("the picture on another background", "any", _recolour, "which colour"),
    "flip": Task("the picture mirrored", "any", _flip),
    "denoise": Task("the picture without noise", "any", _denoise),
    "remove": Task("the picture with one thing removed", "pair", _remove, "the left or the right one"),
    "move": Task("the picture with the thing moved", "movable", _move, "which way"),
}
"""All tasks by name."""

HELD_OUT_TASKS = ("outline", "flip")
"""Tasks no model is trained on."""

TRAINED_TASKS = tuple(name for name in TASKS if name not in HELD_OUT_TASKS)
"""Tasks models are trained on."""


def pairs(task: Task, material: Material, generator: torch.Generator) -> Tensor:
    """Return cells (grids, pairs, 2, 3, S, S) of a task, before and after, for `Grid.compose`."""
    return torch.stack(task.make(material, generator), 2)


def pools(count: int, seed: int, drawings: Drawings, names: Sequence[str] = NAMES) -> dict[str, Pool]:
    """Return a pool of `count` scenes for each kind that tasks are made from."""
    kinds = sorted({task.scenes for task in TASKS.values()})
    return {kind: Pool(scenes_for(kind, count, seed, names), drawings) for kind in kinds}
