"""Scenes with free positions and sizes, for learning positions and for scoring boxes.

The kinds of `trainers.stickers.world` tell relations, and so know few places: a thing alone is large, two are in a row.
Here one to three things have random positions; their captions only name them.
"""

from __future__ import annotations

import random

from trainers.stickers.world import COLOURS, NAMES, PREFIXES, SIDES, UNIT, Placed, Scene, article, plural

Square = tuple[int, int, int]
"""Left, top and side in 64ths of the picture."""

TRIES = 40


def covered(under: Square, over: Square) -> float:
    """Return the share of one square that another covers."""
    wide, high = (min(under[k] + under[2], over[k] + over[2]) - max(under[k], over[k]) for k in (0, 1))
    return max(0, wide) * max(0, high) / under[2] ** 2


def thrown(rng: random.Random, count: int, sides: tuple[int, ...] = SIDES, overlap: float = 0.3) -> list[Square]:
    """Return squares of `count` things anywhere; fewer if no room was found for all.

    Args:
        rng: the only source of chance.
        count: number of items.
        sides: sides to choose from.
        overlap: largest share of any that another may cover.
    """
    squares: list[Square] = []
    for _ in range(TRIES):
        # Large ones leave no room: with more things the smaller sides are drawn more often.
        side = min(rng.choice(sides) for _ in range(count))
        square = (rng.randint(1, UNIT - 1 - side), rng.randint(1, UNIT - 1 - side), side)
        if all(max(covered(square, other), covered(other, square)) <= overlap for other in squares):
            squares.append(square)
        if len(squares) == count:
            break
    return squares


def listed(names: list[str]) -> str:
    """Return things as a list in words: "two foxes, a car and an owl"."""
    counted = {name: names.count(name) for name in names}
    words = [article(name) if n == 1 else f"{('two', 'three')[n - 2]} {plural(name)}" for name, n in counted.items()]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def free_scene(
    rng: random.Random,
    *,
    count: int | None = None,
    names: tuple[str, ...] = NAMES,
    sides: tuple[int, ...] = SIDES,
    overlap: float = 0.3,
    alike: float = 0.1,
) -> Scene:
    """Return a scene of one to three things at free positions.

    Args:
        rng: the only source of chance.
        count: number of things; one to three by default.
        names: stickers to choose from.
        sides: sides to choose from.
        overlap: largest share of any that another may cover.
        alike: share of scenes in which two things have the same name.
    """
    squares = thrown(rng, count or rng.choices((1, 2, 3), (25, 45, 30))[0], sides, overlap)
    used = rng.sample(names, len(squares))
    if len(used) > 1 and rng.random() < alike:
        used[1] = used[0]
    colour = rng.choice(tuple(COLOURS))
    said = listed(rng.sample(used, len(used)))
    ground = f" on {article(colour)} background" if rng.random() < 0.7 else ""
    placed = tuple(Placed(name, *square) for name, square in zip(used, squares, strict=True))
    return Scene(rng.choice(PREFIXES) + said + ground, placed, colour, ("one", "scatter", "group")[len(placed) - 1])


def free_scenes(count: int, seed: int) -> list[Scene]:
    """Return `count` scenes from one seed, of trained names."""
    rng = random.Random(seed)
    return [free_scene(rng) for _ in range(count)]
