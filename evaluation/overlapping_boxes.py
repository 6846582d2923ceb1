"""Accuracy of boxes that touch or overlap: two things, one in front of the other, at three levels of overlap.

The detector of `evaluation.boxes` finds things that stand apart. Here the true drawings are laid over the picture in
their order, each at the place that fits it best (`pipelines.measures.drawn`), which tells things that hide parts of one
another, too. Beside each level stands what the same measure says of real pictures that went through the autoencoder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evaluation.boxes import IN_PLACE, SEED, Corners, Layout, drawn, overlap
from pipelines.measures.drawn import Likeness
from pipelines.models.components import Components, decode, encode
from pipelines.pictures.tensors import to_pictures
from trainers.stickers.drawn import drawn_scene
from trainers.stickers.world import COLOURS, NAMES, UNIT, Placed, Scene, Stickers

LEVELS = {"touching": 0.0, "a quarter covered": 0.25, "half covered": 0.5}
"""Share of the square of the thing behind that the square of the thing in front covers."""
SIDE = 26
"""Side of both things in 64ths."""
ALIKE = 0.4
"""Drawn likeness from which a thing is taken to be there: its floor, the nearest other sticker, is 0.3."""


@dataclass(frozen=True)
class OverlappingPair:
    """Two things that touch or overlap.

    Attributes:
        scene: the thing behind and the thing in front.
        layout: both, with the boxes of what would be seen of them.
    """

    scene: Scene
    layout: Layout

    @property
    def squares(self) -> tuple[Corners, ...]:
        """The squares of the drawings, hidden parts included."""
        return tuple(
            (one.left / UNIT, one.top / UNIT, (one.left + one.side) / UNIT, (one.top + one.side) / UNIT)
            for one in self.scene.stickers
        )


def pairs(count: int, covered: float, seed: int = SEED) -> list[OverlappingPair]:
    """Return seeded pairs whose second thing covers a share in [0, 1) of the first one's square."""
    rng = random.Random(f"{seed} {covered}")
    scenes: list[Scene] = []
    for _ in range(count):
        names = rng.sample(NAMES, 2)
        # (side - across) * (side - down) = covered * side^2, with either of the two at random.
        across = rng.randint(0, round(SIDE * (1 - covered)))
        down = round(SIDE * (1 - covered * SIDE / max(1, SIDE - across)))
        shift = (across, down) if rng.random() < 0.5 else (down, across)
        steps = [way * rng.choice((-1, 1)) for way in shift]
        room = [(max(1, 1 - step), min(UNIT - 1 - SIDE, UNIT - 1 - SIDE - step)) for step in steps]
        left, top = (rng.randint(low, high) for low, high in room)
        places = ((left, top), (left + steps[0], top + steps[1]))
        things = tuple(Placed(name, x, y, SIDE) for name, (x, y) in zip(names, places, strict=True))
        scenes.append(Scene("", things, rng.choice(tuple(COLOURS))))
    shown = tuple(dict.fromkeys(one.name for item in scenes for one in item.stickers))
    boxes = Stickers(64, names=shown).render(scenes).boxes.tolist()
    return [
        OverlappingPair(item, Layout(tuple(one.name for one in item.stickers), tuple(tuple(box) for box in row[:2])))
        for item, row in zip(scenes, boxes, strict=True)
    ]


def figures(asked: Sequence[OverlappingPair], seen: Sequence[Sequence[Likeness]]) -> dict[str, float]:
    """Return figures over pictures, one for each pair.

    Returns:
        `iou`, mean overlap of the squares where the drawings fit best with those asked for; `in_place`, share of things
        that are there (`ALIKE`) with an overlap of at least `IN_PLACE`; `drawn`, mean drawn likeness; `both_in_place`,
        the share of pictures where that holds for both.
    """
    shares = [
        [
            overlap(one.box, square) if one.box is not None else 0.0
            for one, square in zip(row, pair.squares, strict=True)
        ]
        for pair, row in zip(asked, seen, strict=True)
    ]
    right = [
        [share >= IN_PLACE and one.likeness >= ALIKE for share, one in zip(places, row, strict=True)]
        for places, row in zip(shares, seen, strict=True)
    ]
    things = 2 * len(asked)
    return {
        "iou": sum(map(sum, shares)) / things,
        "in_place": sum(map(sum, right)) / things,
        "drawn": sum(one.likeness for row in seen for one in row) / things,
        "both_in_place": sum(map(all, right)) / len(asked),
    }


@torch.no_grad()
def score_overlaps(
    components: Components, count: int, *, beta: float = 1.0, say: Callable[[str, dict[str, float]], None] | None = None
) -> dict[str, dict[str, float]]:
    """Draw pairs of each level in their boxes, and measure them beside real pictures.

    Args:
        components: `pocket`.
        count: pairs of each level.
        beta: share of the steps in which the boxes act.
        say: receives each row when it is done.
    """
    rows: dict[str, dict[str, float]] = {}
    for level, covered in LEVELS.items():
        asked = pairs(count, covered)
        names = tuple(dict.fromkeys(name for pair in asked for name in pair.layout.things))
        true = Stickers(64, names=names).render([pair.scene for pair in asked]).images.to(components.device)
        real = to_pictures(decode(components, encode(components, true).mean).clamp(-1, 1))
        made = drawn(components, [pair.layout for pair in asked], beta)
        for way, pictures in ((f"boxes, {level}", made), (f"real, {level}", real)):
            seen = [drawn_scene(picture, pair.layout.things) for picture, pair in zip(pictures, asked, strict=True)]
            rows[way] = figures(asked, seen)
            if say:
                say(way, rows[way])
    return rows
