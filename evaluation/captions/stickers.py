"""Captions of sticker pictures by what is seen in them, exact in words of the world of `pocket`.

Two readings of a picture compete: that of the sticker finder, which tells overlapping things apart, over all names,
and over the few names by which the judge calls the regions that differ from the background. The one that explains more
of the picture is told, with the regions that it leaves out as the judge calls them: things, how two of them stand, and
the colour of the background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from evaluation.sticker_finder import Finder
from pipelines.errors import DataError
from pipelines.measures.judge import Judge
from pipelines.measures.stickers import detect, holds, nearest_colour
from pipelines.pictures.tensors import to_tensor
from trainers.stickers.relations import Box, PlacedThing, extent
from trainers.stickers.world import ALL_NAMES, COLOURS, RELATIONS, UNIT, Scene, Stickers, article, plural, scenes

NEAR = 4
"""Names that the judge gives each region."""
OPEN = 0.6
"""Share of a picture that its things may leave unexplained; beyond it shows no stickers."""
TOUCH = 0.02
"""Overlap of boxes of things that stand apart, in fractions, that is the finder's own error."""
SEED, SCENES = 991, 200
_COUNTED = ("", "a", "two", "three", "four")


@dataclass(frozen=True)
class StickerCaptioner:
    """The captioner of `pocket`: names, counts, relations and the colour of the background, as the composer says them.

    Attributes:
        judge: names regions.
    """

    judge: Judge

    def __call__(self, picture: Image.Image) -> str:
        """Return the caption of a picture.

        Raises:
            DataError: if it shows no stickers that `pocket` knows.
        """
        if caption := self.told(to_tensor(picture)):
            return caption
        raise DataError(
            "It shows no stickers that pocket knows.", "Name a captioner of photographs: --by FOLDER or --endpoint."
        )

    def told(self, image: Tensor) -> str:
        """Return the caption of a picture (3, H, W) in [-1, 1]; empty if it shows no stickers that `pocket` knows."""
        seen, left = self.seen(image)
        if not seen or left > OPEN:
            return ""
        return said([(one.name, one.box) for one in seen], nearest_colour(image, COLOURS))

    def seen(self, image: Tensor) -> tuple[list[PlacedThing], float]:
        """Return the things in a picture (3, H, W) in [-1, 1], and the share that they leave unexplained."""
        regions = detect(image)
        called = self._called([one.crop for one in regions])
        readings = [_all_names().explained(image)]
        if called:
            readings.append(Finder(tuple(dict.fromkeys(name for names in called for name in names))).explained(image))
        seen, left = min(readings, key=lambda reading: reading[1])
        missed = [
            PlacedThing(names[0], region.box, len(seen))
            for region, names in zip(regions, called, strict=True)
            if not any(_within(region.centre, one.box) for one in seen)
        ]
        return [*seen, *missed], left

    @torch.no_grad()
    def _called(self, crops: Sequence[Tensor]) -> list[list[str]]:
        """Return the names that the judge gives each crop, the likeliest first."""
        if not crops:
            return []
        texts = self.judge.embed_texts([article(name) for name in ALL_NAMES])
        near = (self.judge.embed_pictures(torch.stack(list(crops))) @ texts.T).topk(NEAR).indices.tolist()
        return [[ALL_NAMES[index] for index in row] for row in near]


def _within(point: tuple[float, float], box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


@cache
def _all_names() -> Finder:
    return Finder(ALL_NAMES)


def said(things: Sequence[tuple[str, Box]], colour: str) -> str:
    """Return the caption of things with their boxes in fractions, on a background.

    Two different things that stand apart in one direction are told by their relation, the left or upper one first;
    several alike are counted; else they are listed, the largest first.
    """
    ground = f" on {article(colour)} background"
    if (related := _related(things)) is not None:
        first, relation, second = related
        return f"{article(first)} {RELATIONS[relation][0]} {article(second)}{ground}"
    largest: dict[str, float] = {}
    for name, box in things:
        largest[name] = max(largest.get(name, 0.0), round((box[2] - box[0]) * (box[3] - box[1]), 2))
    counts = Counter(name for name, _ in things)
    order = sorted(counts, key=lambda name: (-counts[name], -largest[name], name))
    words = [article(n) if counts[n] == 1 else f"{_COUNTED[min(counts[n], 4)]} {plural(n)}" for n in order]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) + ground


def _related(things: Sequence[tuple[str, Box]]) -> tuple[str, str, str] | None:
    """Return the left or upper of two different things, the relation, and the other; None if there is none."""
    if len(things) != 2 or things[0][0] == things[1][0]:
        return None
    seen = [PlacedThing(name, box, layer) for layer, (name, box) in enumerate(things)]
    for relation, axis in (("left of", 0), ("above", 1)):
        for first, second in (seen, seen[::-1]):
            if first.box[axis + 2] <= second.box[axis] + TOUCH and holds(relation, first, second):
                return first.name, relation, second.name
    return None


# -- figures ----------------------------------------------------------------------------------------------------


def true_caption(scene: Scene) -> str:
    """Return the caption of a scene in the same words, from what was composed."""
    things: list[tuple[str, Box]] = []
    for one in scene.stickers:
        wide, high = (share * one.side for share in extent(one.name))
        x, y = one.left + one.side / 2, one.top + one.side / 2
        box = ((x - wide / 2) / UNIT, (y - high / 2) / UNIT, (x + wide / 2) / UNIT, (y + high / 2) / UNIT)
        things.append((one.name, box))
    return said(things, scene.colour)


@dataclass(frozen=True)
class SceneCaption:
    """A scene's true caption and the one that was written; empty where nothing could be said."""

    scene: Scene
    true: str
    made: str


def told(captioner: StickerCaptioner, count: int = SCENES, seed: int = SEED) -> list[SceneCaption]:
    """Caption composed scenes of all kinds, held-out things among them, from a seed that nothing was trained on."""
    found: list[SceneCaption] = []
    composer = Stickers(names=ALL_NAMES)
    for scene in scenes(count, seed, names=ALL_NAMES):
        image = composer.render([scene]).images[0]
        found.append(SceneCaption(scene, true_caption(scene), captioner.told(image)))
    return found


def accuracy(found: Sequence[SceneCaption]) -> dict[str, tuple[int, int]]:
    """Return exact captions and scenes, for each kind of scene and for all."""
    rows: dict[str, tuple[int, int]] = {}
    for kind in sorted({one.scene.kind for one in found}):
        own = [one for one in found if one.scene.kind == kind]
        rows[kind] = (sum(one.true == one.made for one in own), len(own))
    return rows | {"all": (sum(one.true == one.made for one in found), len(found))}


def table(rows: Mapping[str, tuple[int, int]]) -> str:
    """Return the accuracy with a line for each kind of scene."""
    lines = [f"{'scenes':<12}{'exact':>8}{'of':>8}"]
    return "\n".join([*lines, *(f"{kind:<12}{exact:>8}{count:>8}" for kind, (exact, count) in rows.items())])
