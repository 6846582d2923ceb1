"""Number, size and seed of the pictures that are asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import RequestError
from studio.library.model_cards import side_of

SEEDS = 1_000_000
"""Seeds that are drawn: short enough to be noted. Larger ones can be typed."""

SQUARE, WIDE, TALL, OWN = "square", "wide", "tall", "own"


@dataclass(frozen=True)
class Plan:
    """Values of the small fields.

    Attributes:
        count: pictures.
        seed: of the first; drawn unless it is kept.
        keep: whether the seed is the person's own.
        size: one of `SQUARE`, `WIDE`, `TALL` and `OWN`.
    """

    count: int
    seed: int
    keep: bool
    size: str

    @classmethod
    def read(cls, value: Any) -> Plan:
        """Return the plan in a value from a browser; a seed is drawn unless one is to be kept.

        Raises:
            RequestError: if a number is none.
        """
        told = value if isinstance(value, Mapping) else {}
        keep = bool(told.get("keep")) and told.get("seed") is not None
        seed = _whole("seed", told.get("seed"), 0) if keep else random.randrange(SEEDS)
        return cls(_whole("number of pictures", told.get("count"), 1), seed, keep, str(told.get("size") or SQUARE))


def _whole(name: str, value: Any, otherwise: int) -> int:
    try:
        return otherwise if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"The {name} {value!r:.40} is no whole number.", "Write one without letters.") from None


def seeded(value: Any, seed: int, keep: bool, count: int | None = None) -> dict[str, Any]:
    """Return the value of the small fields with another seed, kept or not, and number of pictures."""
    told = dict(value) if isinstance(value, Mapping) else {}
    return told | {"seed": seed, "keep": keep} | ({} if count is None else {"count": count})


def shapes(base: str) -> dict[str, tuple[int, int]]:
    """Return width and height of the sizes offered for a base: about as many pixels as it was made for.

    >>> shapes("pocket")
    {'square': (64, 64), 'wide': (96, 64), 'tall': (64, 96)}
    """
    side = side_of(base)
    step = 64 if side >= 512 else 16
    long, short = (side * 1.5, side) if side <= 512 else (side * 1.2, side * 0.82)
    across, down = round(long / step) * step, round(short / step) * step
    return {SQUARE: (side, side), WIDE: (across, down), TALL: (down, across)}


def sizes(base: str) -> list[tuple[str, str]]:
    """Return the sizes to choose from, with their labels."""
    named = [(name, f"{name} {width} x {height}") for name, (width, height) in shapes(base).items()]
    return [*named, (OWN, "own")]


def size_of(base: str, width: int | None, height: int | None) -> str:
    """Return which of the offered sizes a width and height are; None stands for the base's own."""
    side = side_of(base)
    given = (width or side, height or side)
    return next((name for name, shape in shapes(base).items() if shape == given), OWN)
