"""Registry of parts by the prefix of their tensors. Needs no torch.

Headers are described from the registration alone; a part's class is imported where tensors are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple


class Registered(NamedTuple):
    """A further part, as far as headers need it.

    Attributes:
        where: module and class, as "module:Class".
        adds_word: whether its tensors are rows of the concept's word, (..., vectors, dim).
    """

    where: str
    adds_word: bool


REGISTERED: dict[str, Registered] = {
    "layer_rows.": Registered("pipelines.concepts.parts.layer_rows:LayerRows", adds_word=True),
}
"""Prefix of its tensors -> part. A new one is enrolled by its line here."""


def part_class(prefix: str) -> Any:
    """Import the class of the part with this prefix."""
    module, _, name = REGISTERED[prefix].where.partition(":")
    return getattr(import_module(module), name)


def by_prefix(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of tensors by the registered prefix they begin with; others are left out."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        for prefix in REGISTERED:
            if name.startswith(prefix):
                grouped.setdefault(prefix, []).append(name)
    return grouped


def kinds_of(names: Iterable[str]) -> str:
    """Name the kinds of registered parts among the names of tensors, for people: "layer rows"; empty without any."""
    return ", ".join(sorted(prefix.rstrip(".").replace("_", " ") for prefix in by_prefix(names)))


def vectors_of(shapes: Mapping[str, list[int]]) -> int:
    """Return the number of vectors of the word in tensors of registered parts, 0 if there is no word.

    Args:
        shapes: shape of each tensor by its name, all behind registered prefixes.

    Raises:
        ValueError: if they are no rows, or disagree.
    """
    counts: set[int] = set()
    for prefix, names in by_prefix(shapes).items():
        if REGISTERED[prefix].adds_word:
            counts |= {_rows(name, shapes[name]) for name in names}
    if len(counts) > 1:
        raise ValueError(f"its tensors have {' and '.join(map(str, sorted(counts)))} vectors")
    return counts.pop() if counts else 0


def _rows(name: str, shape: list[int]) -> int:
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"{name!r:.60} has the shape {shape}, which no rows have")
    return shape[-2]
