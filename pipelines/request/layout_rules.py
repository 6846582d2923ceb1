"""Planner: boxes from a sentence, by rules. Importable without torch.

Least-to-most: first the things and how many of each, then how they stand to one another, then boxes. It reads simple
sentences like "two foxes to the left of a house and a tree on a blue background"; what comes of it can be changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import RequestError
from pipelines.request.boxes import BOXES, Box

Planner = Callable[[str], tuple[Box, ...]]
"""Type of planners, which make boxes of a sentence: `plan`, or a language model."""

_NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
_COUNTS = {word: number for number, word in enumerate(_NUMBERS, 1)} | {"a pair of": 2, "a couple of": 2, "several": 3}
_OFFSETS: tuple[tuple[str, tuple[int, int]], ...] = (
    (r"(?:to|on|at) the left (?:side )?of|left of", (-1, 0)),
    (r"(?:to|on|at) the right (?:side )?of|right of", (1, 0)),
    (r"on top of|above|over|atop|on", (0, -1)),
    (r"below|under|underneath|beneath", (0, 1)),
    (r"next to|beside|near|by", (-1, 0)),
)
"""Words of a relation, and where its first thing stands from its second: columns to the right, rows down."""
_ANY = "|".join(words for words, _ in _OFFSETS)
_RELATION = re.compile(rf"\s+(?:(?:is|are|sits?|stands?|sitting|standing)\s+)?({_ANY})\s+", re.IGNORECASE)
_BETWEEN = re.compile(r"^(.+?)\s+between\s+(.+?)\s+and\s+(.+)$", re.IGNORECASE)
_UNREAD = re.compile(r"\s(behind|in front of|inside|within|around|across|through|among)\s", re.IGNORECASE)
_APART = re.compile(r"\s*(?:,\s*(?:and\s+)?|;|\band\b|\bwith\b|\bbesides\b)\s*", re.IGNORECASE)
_BACKDROP = re.compile(
    r"[\s,]*\b(?:on|in|against|over|in front of|with)\s+(?:an?|the)?\s*(?:[\w-]+\s+){0,3}"
    r"(?:background|backdrop|scene|snow|sky|sea|forest|meadow|desert)\b.*$",
    re.IGNORECASE,
)
_FRAME = re.compile(
    r"^\s*(?:an?|the)?\s*(?:\w+\s+)?(?:photo|picture|image|drawing|painting|sticker|rendering)s?\s+of\s+", re.IGNORECASE
)
_ARTICLE = re.compile(r"^(?:an?|the|some|this|that)(?:\s+|$)", re.IGNORECASE)
_SIZES = {"tiny": 0.5, "small": 0.65, "little": 0.65}
_IRREGULAR = {
    "children": "child", "feet": "foot", "geese": "goose", "men": "man", "mice": "mouse", "oxen": "ox",
    "people": "person",
    "teeth": "tooth", "women": "woman", "calves": "calf", "knives": "knife", "leaves": "leaf", "loaves": "loaf",
    "wolves": "wolf", "cacti": "cactus", "octopi": "octopus", "cookies": "cookie", "pies": "pie", "ties": "tie",
    "shoes": "shoe", "horses": "horse", "houses": "house", "roses": "rose", "axes": "axe", "tomatoes": "tomato",
    "potatoes": "potato",
}  # fmt: skip
FILL = 0.86  # of its cell, that a thing takes: room between neighbours


@dataclass(frozen=True)
class Thing:
    """A thing named in a sentence.

    Attributes:
        name: without article and number, in the singular: "red fox".
        count: number of copies.
        scale: its size beside the others', by words such as "small".
    """

    name: str
    count: int = 1
    scale: float = 1.0


def singular(word: str) -> str:
    """Return the singular: "foxes" to "fox"; words in angle brackets and those that are no plural stay as they are.

    >>> [singular(word) for word in ("foxes", "cats", "wolves", "glass", "berries", "houses", "<my-cats>")]
    ['fox', 'cat', 'wolf', 'glass', 'berry', 'house', '<my-cats>']
    """
    low = word.lower()
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if re.search(r"(?:ch|sh|x|ss|zz|us)es$", low):
        return word[:-2]
    if low.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[:-1] if re.search(r"[^su]s$", low) else word


def thing(words: str) -> Thing:
    """Read a noun phrase: "two small foxes" is two of "small fox".

    Raises:
        RequestError: if it names nothing, or more things than there are boxes.
    """
    text = words.strip(" .!?\t\n")
    count = 0
    for said, number in _COUNTS.items():
        if re.match(rf"{said}\b", text, re.IGNORECASE):
            count, text = number, text[len(said) :].strip()
    if match := re.match(r"(\d+)\s+", text):
        count, text = int(match[1]), text[match.end() :]
    text = _ARTICLE.sub("", text).strip()
    if not text:
        raise RequestError(
            f"There is no thing in {words.strip()!r:.60}.", 'Name things and places: "two foxes left of a house".'
        )
    if count > BOXES:
        raise RequestError(f"{count} of {text!r:.60} are too many.", f"There is room for {BOXES} boxes.")
    if count > 1:
        head, _, last = text.rpartition(" ")
        text = f"{head} {singular(last)}".strip()
    scale = next((size for word, size in _SIZES.items() if word in text.lower().split()), 1.0)
    return Thing(text, max(count, 1), scale)


Clause = list[tuple[Thing, int, int]]
"""Things that are placed by one another, each with its column and row on a grid of their own."""


def understood(sentence: str) -> list[Clause]:
    """Return the things of a sentence, in clauses that stand side by side from left to right ("and", commas).

    Raises:
        RequestError: if there is no thing, or a relation is none of those that are read.
    """
    text = _FRAME.sub("", _BACKDROP.sub("", sentence.strip().rstrip(".!?")))
    if match := _UNREAD.search(text):
        raise RequestError(
            f"{match[1]!r} is no relation that is read.",
            "Use left of, right of, above, below, next to, between, and; or give boxes with --box.",
        )
    if match := _BETWEEN.match(text):
        first, middle, last = (thing(match[k]) for k in (2, 1, 3))
        return [[(first, 0, 0), (middle, 1, 0), (last, 2, 0)]]
    clauses = [_clause(clause) for clause in _APART.split(text) if clause.strip()]
    if not clauses:
        raise RequestError(
            f"There is no thing in {sentence!r:.60}.", 'Name things and places: "two foxes left of a house".'
        )
    return clauses


def _clause(clause: str) -> Clause:
    """Read a chain of relations, "a left of b above c": each thing placed from the one before it."""
    parts = _RELATION.split(f" {clause} ")
    column = row = 0
    placed = [(thing(parts[0]), 0, 0)]
    for said, named in zip(parts[1::2], parts[2::2], strict=True):
        right, down = next(offset for words, offset in _OFFSETS if re.fullmatch(words, said, re.IGNORECASE))
        column, row = column - right, row - down
        while any((column, row) == (x, y) for _, x, y in placed):  # taken: go on in the same direction
            column, row = column - right, row - down
        placed.append((thing(named), column, row))
    return placed


def plan(sentence: str) -> tuple[Box, ...]:
    """Return boxes for the things of a sentence, by rules.

    >>> [(box.phrase, box.box) for box in plan("a fox left of a house")]
    [('fox', (0.035, 0.285, 0.465, 0.715)), ('house', (0.535, 0.285, 0.965, 0.715))]

    Raises:
        RequestError: if there is no thing, or there are too many.
    """
    clauses = understood(sentence)
    many = sum(one.count for clause in clauses for one, _, _ in clause)
    if many > BOXES:
        raise RequestError(f"{many} things are too many.", f"There is room for {BOXES} boxes.")
    # A column of several copies is as many cells wide, so that all things are about as big.
    widths = [_cells([(column, _shape(one.count)[0]) for one, column, _ in clause]) for clause in clauses]
    heights = [_cells([(row, _shape(one.count)[1]) for one, _, row in clause]) for clause in clauses]
    width = sum(sum(cells.values()) for cells in widths)
    boxes: list[Box] = []
    before = 0
    for clause, wide, high in zip(clauses, widths, heights, strict=True):
        height = sum(high.values())
        for one, column, row in clause:
            left = before + sum(cells for c, cells in wide.items() if c < column)
            top = sum(cells for r, cells in high.items() if r < row)
            boxes += _copies(one, (left / width, top / height, wide[column] / width, high[row] / height))
        before += sum(wide.values())
    return tuple(boxes)


def _cells(needed: list[tuple[int, int]]) -> dict[int, int]:
    """Return the number of cells each column (or row) needs."""
    return {place: max(cells for other, cells in needed if other == place) for place, _ in needed}


def _shape(count: int) -> tuple[int, int]:
    """Return columns and rows for a number of copies of a thing."""
    columns = count if count <= 3 else math.ceil(math.sqrt(count))
    return columns, math.ceil(count / columns)


def _copies(one: Thing, cell: tuple[float, float, float, float]) -> list[Box]:
    """Return square boxes of all copies of a thing in a cell (left, top, width, height)."""
    left, top, width, height = cell
    columns, rows = _shape(one.count)
    across, down = width / columns, height / rows
    side = min(across, down, 0.8) * (FILL if one.scale == 1 else one.scale)
    boxes: list[Box] = []
    for number in range(one.count):
        x = left + (number % columns + 0.5) * across
        y = top + (number // columns + 0.5) * down
        edges = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
        boxes.append(Box(phrase=one.name, box=(*(round(edge, 4) for edge in edges),)))  # pyright: ignore
    return boxes
