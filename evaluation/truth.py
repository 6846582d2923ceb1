"""The true look of a learned thing, and the floor and ceiling of its figures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from pipelines.measures.drawn import Sprite
from pipelines.measures.judge import INPUT, Judge
from pipelines.measures.stickers import detect, picture_similarity
from pipelines.models.components import Components
from pipelines.pictures.tensors import fit, to_pictures, to_tensor
from trainers.stickers.drawn import ceiling, cut_from, drawing, floor
from trainers.stickers.world import ALL_NAMES, Scene, Stickers, scene, scenes

REAL = 16
"""Real pictures of a sticker that likeness is measured against."""
REAL_SEED, OTHER_SEED, SECOND_SEED = 202, 203, 204


@dataclass(frozen=True, eq=False)
class Truth:
    """The true look of a thing.

    Attributes:
        crops: real pictures of it that no training saw, cut to the thing, (N, 3, 64, 64) in [-1, 1].
        drawings: the thing cut out of its surroundings; empty if no picture has a plain background.
        thing: its name, if it is a sticker of this world.
    """

    crops: Tensor
    drawings: tuple[Sprite, ...]
    thing: str | None = None


def composed(listed: Sequence[Scene], size: int = 64) -> list[Image.Image]:
    """Return pictures of scenes."""
    used = tuple(dict.fromkeys(thing.name for item in listed for thing in item.stickers))
    return to_pictures(Stickers(size, names=used).render(list(listed)).images)


def crops_of(pictures: Sequence[Image.Image]) -> Tensor:
    """Return the largest thing of each picture, (N, 3, 64, 64) in [-1, 1]; the whole picture where none is found."""
    listed: list[Tensor] = []
    for picture in pictures:
        image = to_tensor(picture)
        found = detect(image)
        listed.append(found[0].crop if found else to_tensor(fit(picture, INPUT, INPUT)))
    return torch.stack(listed)


def truth_of(thing: str) -> Truth:
    """Return the truth of a sticker, from compositions that no training uses."""
    pictures = composed(scenes(REAL, REAL_SEED, names=(thing,), kind="one"))
    return Truth(crops_of(pictures), (drawing(thing),), thing)


def truth_from(pictures: Sequence[Image.Image], drawings: int = 2) -> Truth:
    """Return the truth of something else from pictures of it, some of them cut out as drawings."""
    return Truth(crops_of(pictures), cut_from(pictures)[:drawings])


def other_things() -> list[Image.Image]:
    """Return one real picture of each sticker, in the order of `ALL_NAMES`."""
    rng = random.Random(OTHER_SEED)
    return composed([scene(rng, names=(name,), kind="one") for name in ALL_NAMES])


@cache
def _others() -> Tensor:
    """Return one real crop of each sticker."""
    return crops_of(other_things())


def judged_between(judge: Judge, truth: Truth) -> dict[str, float]:
    """Return the judge's likeness for real pictures of other things (floor) and of this one (ceiling).

    The ceiling is missing where there is only one picture.
    """
    names = [index for index, name in enumerate(ALL_NAMES) if name != truth.thing]
    between = {"likeness_floor": picture_similarity(judge, _others()[names], truth.crops)}
    if truth.thing is not None:
        second = crops_of(composed(scenes(REAL, SECOND_SEED, names=(truth.thing,), kind="one")))
        between["likeness_ceiling"] = picture_similarity(judge, second, truth.crops)
    elif (count := len(truth.crops)) > 1:
        with torch.no_grad():
            seen = judge.embed_pictures(truth.crops)
        between["likeness_ceiling"] = float(((seen @ seen.T).sum() - count) / (count * (count - 1)))
    return between


def drawn_between(components: Components, truth: Truth) -> dict[str, float]:
    """Return floor and ceiling of the drawn likeness of a sticker; empty for other things."""
    if truth.thing is None:
        return {}
    return {"drawn_floor": floor(truth.thing), "drawn_ceiling": ceiling(components, truth.thing)}


def share(row: Mapping[str, float]) -> dict[str, float]:
    """Return the judge's likeness as a share of the way from floor to ceiling, if both are known and apart."""
    if "likeness_ceiling" not in row or row["likeness_ceiling"] <= row["likeness_floor"]:
        return {}
    way = row["likeness_ceiling"] - row["likeness_floor"]
    return {"likeness_share": (row["likeness"] - row["likeness_floor"]) / way}
