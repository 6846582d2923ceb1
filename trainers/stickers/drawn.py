"""Drawn likeness in the sticker world: the true sprites by name, and the floor and ceiling of a figure.

`pipelines.measures.drawn` measures one picture. Here are the drawings it should show, what the nearest other drawing
would score (floor), and what the autoencoder alone leaves of a real picture (ceiling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from pipelines.measures.drawn import Likeness, Sprite, cut_out, likeness, likeness_at, likenesses
from pipelines.models.components import Components, decode, encode
from pipelines.pictures.tensors import to_tensor
from trainers.stickers.art import sprite
from trainers.stickers.world import ALL_NAMES, Stickers, scenes

FLOOR_SEED, CEILING_SEED = 811, 812
CEILING_PICTURES = 4


@cache
def drawing(name: str) -> Sprite:
    """Return the true sprite of a name."""
    return Sprite(sprite(name))


def cut_from(pictures: Sequence[Image.Image]) -> tuple[Sprite, ...]:
    """Cut the thing out of pictures on plain backgrounds, the largest first; those that show none are left out."""
    cut: list[Sprite] = []
    for picture in pictures:
        try:
            cut.append(cut_out(to_tensor(picture)))
        except ValueError:
            continue
    return tuple(sorted(cut, key=lambda one: -one.picture.width))


def best_of(picture: Tensor, drawings: Sequence[Sprite]) -> Likeness:
    """Compare a picture (3, H, W) in [-1, 1] with each of several drawings of one thing; return the best likeness."""
    if len(drawings) > 1:
        coarse = [likeness(picture, one, refine=False).likeness for one in drawings]
        drawings = [drawings[coarse.index(max(coarse))]]
    return likeness(picture, drawings[0])


@dataclass(frozen=True)
class DrawnLikeness:
    """Drawn likeness over several pictures.

    Attributes:
        likeness: mean SSIM inside the shape.
        half: half of its 95 % interval over the pictures.
        explained: mean explained share of the energy.
        count: pictures.
    """

    likeness: float
    half: float
    explained: float
    count: int


def summed(measured: Sequence[Likeness]) -> DrawnLikeness:
    """Return the mean of likenesses with its interval; at least one."""
    values = torch.tensor([one.likeness for one in measured], dtype=torch.float64)
    spread = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    explained = sum(one.explained for one in measured) / len(measured)
    return DrawnLikeness(float(values.mean()), 1.96 * spread, explained, len(measured))


def drawn(pictures: Sequence[Image.Image], drawings: Sequence[Sprite]) -> DrawnLikeness:
    """Return the drawn likeness of pictures that each show one thing, of which there are some drawings."""
    return summed([best_of(to_tensor(picture), drawings) for picture in pictures])


def drawn_scene(picture: Image.Image, names: Sequence[str]) -> list[Likeness]:
    """Compare a picture with all stickers that it should show."""
    return likenesses(to_tensor(picture), [drawing(name) for name in names])


def real_pictures(name: str, count: int, seed: int) -> Tensor:
    """Return composed pictures (count, 3, 64, 64) of one sticker."""
    return Stickers(names=(name,)).render(scenes(count, seed, names=(name,), kind="one")).images


@cache
def floor(name: str) -> float:
    """Return the likeness of the nearest other sticker, laid exactly over a real picture of a sticker."""
    (item,) = scenes(1, FLOOR_SEED, names=(name,), kind="one")
    (thing,) = item.stickers
    picture = Stickers(names=(name,)).render([item]).images[0]
    square = (thing.side, thing.left, thing.top)
    others = [drawing(other) for other in ALL_NAMES if other != name]
    return max(likeness_at(picture, others, *square))


@torch.no_grad()
def ceiling(components: Components, name: str, count: int = CEILING_PICTURES) -> float:
    """Return the likeness of `count` real pictures of a sticker that went through the base's autoencoder."""
    pictures = real_pictures(name, count, CEILING_SEED).to(components.device)
    restored = decode(components, encode(components, pictures).mean).clamp(-1, 1)
    return sum(likeness(one, drawing(name)).likeness for one in restored) / len(restored)
