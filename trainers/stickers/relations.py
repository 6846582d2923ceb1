"""Relations to teach, exact by construction: how to draw two things in one, and how to recognise it in a picture.

`pocket` was trained on left, right, above and below, always with a gap between two things of like size. None of these
relations is among them; each has ten exemplar pictures of pairs it knows, and is tried on pairs of other things.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from trainers.stickers.art import sprite
from trainers.stickers.world import COLOURS, NAMES, UNIT, Placed, Scene, article

Box = tuple[float, float, float, float]
"""x0 y0 x1 y1 in fractions of the picture."""


@dataclass(frozen=True)
class PlacedThing:
    """A thing in a picture: its name, its whole box, and its place in the order of drawing (0 is hindmost)."""

    name: str
    box: Box
    layer: int

    @property
    def centre(self) -> tuple[float, float]:
        """Return the middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        """The share of the picture."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def shared(one: PlacedThing, other: PlacedThing) -> float:
    """Return the share of the box of `one` that lies in that of `other`."""
    across = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    down = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return max(0.0, across) * max(0.0, down) / one.area


@cache
def extent(name: str) -> tuple[float, float]:
    """Return visible width and height of a sticker as shares of its square."""
    drawn = sprite(name)
    x0, y0, x1, y1 = drawn.getchannel("A").point([0] * 128 + [255] * 128).getbbox() or (0, 0, 1, 1)
    return (x1 - x0) / drawn.width, (y1 - y0) / drawn.height


def _at(name: str, x: float, y: float, side: int) -> Placed:
    """Return a sticker by the middle of its square."""
    return Placed(name, round(x - side / 2), round(y - side / 2), side)


# -- layouts: stickers in the order of drawing ------------------------------------------------------------------


def _inside(rng: random.Random, first: str, second: str) -> tuple[Placed, ...]:
    outer, inner = rng.choice((48, 50, 52, 54)), rng.choice((18, 20))
    x, y = UNIT / 2 + rng.randint(-3, 3), UNIT / 2 + rng.randint(-3, 3)
    return _at(second, x, y, outer), _at(first, x + rng.randint(-3, 3), y + rng.randint(-3, 3), inner)


def _on_top_of(rng: random.Random, first: str, second: str) -> tuple[Placed, ...]:
    a, b = rng.choice((24, 26, 28)), rng.choice((24, 26, 28))
    tall, low = a * extent(first)[1], b * extent(second)[1]
    seam = (UNIT - tall - low) / 2 + tall + rng.randint(-3, 3)
    x = UNIT / 2 + rng.randint(-8, 8)
    return _at(second, x, seam + low / 2, b), _at(first, x + rng.randint(-3, 3), seam - tall / 2 + 0.5, a)


def _diagonal(rng: random.Random, first: str, second: str) -> tuple[Placed, ...]:
    a, b = rng.choice((22, 24, 26)), rng.choice((22, 24, 26))
    across, down = rng.randint(28, 34), rng.randint(28, 34)
    x = rng.randint(2 + a // 2, UNIT - 2 - b // 2 - across)
    y = rng.randint(2 + a // 2, UNIT - 2 - b // 2 - down)
    return _at(first, x, y, a), _at(second, x + across, y + down, b)


def _behind(rng: random.Random, first: str, second: str) -> tuple[Placed, ...]:
    a, b = rng.choice((30, 32, 34)), rng.choice((28, 30, 32))
    across = rng.choice((-1, 1)) * rng.randint(14, 17)
    x, y = UNIT / 2 - across / 2, UNIT / 2 + rng.randint(-6, 6)
    return _at(first, x, y, a), _at(second, x + across, y + rng.randint(1, 5), b)


def _around(rng: random.Random, first: str, second: str) -> tuple[Placed, ...]:
    a, b = rng.choice((16, 18)), rng.choice((16, 18, 20))
    step, y = a / 2 + b / 2 + 4, UNIT / 2 + rng.randint(-10, 10)
    x = UNIT / 2
    return _at(first, x - step, y, a), _at(first, x + step, y, a), _at(second, x, y + rng.randint(-2, 2), b)


def _dwarfs(rng: random.Random, first: str, second: str) -> tuple[Placed, ...]:
    a, b = rng.choice((38, 40, 42)), 16
    y = UNIT / 2 + rng.randint(-8, 8)
    left = 2 + a / 2
    return _at(first, left, y, a), _at(second, left + a / 2 + 3 + b / 2, y + rng.randint(-8, 8), b)


# -- whether they hold ------------------------------------------------------------------------------------------


def _is_inside(first: PlacedThing, second: PlacedThing, _: Sequence[PlacedThing]) -> bool:
    return shared(first, second) > 0.85 and first.area < 0.5 * second.area and first.layer > second.layer


def _is_on_top_of(first: PlacedThing, second: PlacedThing, _: Sequence[PlacedThing]) -> bool:
    gap = second.box[1] - first.box[3]
    (ax, _ay), (bx, _by) = first.centre, second.centre
    return abs(gap) <= 2.5 / UNIT and abs(ax - bx) < (second.box[2] - second.box[0]) / 2


def _is_diagonal(first: PlacedThing, second: PlacedThing, _: Sequence[PlacedThing]) -> bool:
    (ax, ay), (bx, by) = first.centre, second.centre
    return bx > ax and by > ay and 0.5 < (bx - ax) / (by - ay) < 2 and shared(first, second) < 0.1


def _is_behind(first: PlacedThing, second: PlacedThing, _: Sequence[PlacedThing]) -> bool:
    return 0.2 < shared(first, second) < 0.8 and first.layer < second.layer


def _is_around(first: PlacedThing, second: PlacedThing, things: Sequence[PlacedThing]) -> bool:
    places = [thing.centre for thing in things if thing.name == first.name]
    x, y = second.centre
    level = [px for px, py in places if abs(py - y) < abs(px - x)]
    return any(px < x for px in level) and any(px > x for px in level)


def _is_dwarfing(first: PlacedThing, second: PlacedThing, _: Sequence[PlacedThing]) -> bool:
    return first.area > 2.5 * second.area and shared(second, first) < 0.25


@dataclass(frozen=True)
class Relation:
    """A relation that can be drawn and recognised exactly.

    Attributes:
        phrases: descriptions in words.
        layout: the stickers in the order of drawing, for the names of the first and the second thing.
        holds: whether it holds between the first and the second thing, given all that is there.
    """

    phrases: tuple[str, ...]
    layout: Callable[[random.Random, str, str], tuple[Placed, ...]]
    holds: Callable[[PlacedThing, PlacedThing, Sequence[PlacedThing]], bool]


RELATIONS_TO_TEACH: dict[str, Relation] = {
    "inside": Relation(("inside",), _inside, _is_inside),
    "on top of": Relation(("on top of",), _on_top_of, _is_on_top_of),
    "diagonal": Relation(("to the left of", "above"), _diagonal, _is_diagonal),
    "behind": Relation(("behind",), _behind, _is_behind),
    "around": Relation(("beside", "and"), _around, _is_around),
    "dwarfs": Relation(("next to",), _dwarfs, _is_dwarfing),
}


# -- pictures to learn from, and pairs to try ------------------------------------------------------------------

EXEMPLARS = 10
EXEMPLAR_SEED, PAIR_SEED = 301, 401
RELATED = NAMES[:48]
"""Names that relations are taught and tried with: distinguishable at 16 px as well, which not all names are."""
ROUND = 0.8
"""A thing that holds another fills at least this share of its square, both ways."""


@dataclass(frozen=True)
class Exemplar:
    """A picture of a relation: its scene, and the names of the first and the second thing."""

    scene: Scene
    first: str
    second: str


def exemplars(relation: str, count: int = EXEMPLARS) -> list[Exemplar]:
    """Return pictures of a relation; no name occurs in two of them, and the generator knows every name.

    Args:
        relation: a key of `RELATIONS_TO_TEACH`.
        count: at most half of the names.
    """
    rng = random.Random(EXEMPLAR_SEED + list(RELATIONS_TO_TEACH).index(relation))
    seconds = rng.sample([name for name in RELATED if min(extent(name)) >= ROUND], count)
    firsts = rng.sample([name for name in RELATED if name not in seconds], count)
    colours = [list(COLOURS)[i % len(COLOURS)] for i in range(count)]
    return [
        Exemplar(
            Scene(
                f"{article(first)} {{}} {article(second)} on {article(colour)} background",
                RELATIONS_TO_TEACH[relation].layout(rng, first, second),
                colour,
                "relation",
                relation,
            ),
            first,
            second,
        )
        for first, second, colour in zip(firsts, seconds, colours, strict=True)
    ]


def unseen_pairs(relation: str, count: int) -> list[tuple[str, str]]:
    """Return pairs of two things none of which is in an exemplar of the relation."""
    shown = {name for one in exemplars(relation) for name in (one.first, one.second)}
    rest = [name for name in RELATED if name not in shown]
    rng = random.Random(PAIR_SEED)
    pairs = [(a, b) for a in rest for b in rest if a != b]
    return rng.sample(pairs, count)
