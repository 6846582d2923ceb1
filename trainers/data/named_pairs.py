"""The two things of a relation: captions from their names, and their names from captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LEADING = re.compile(
    r"^(?:(?:a|an|the|one|two|three|some|my|picture|photo|sticker|rendering|image|painting)\s+(?:of\s+)?)+", re.I
)
_TRAILING = re.compile(r"[,.;]|\s+(?:on|in|at|with|against|near|under|during)\s+.*$", re.I)


@dataclass(frozen=True)
class NamedPair:
    """The names of the first and the second thing."""

    left: str
    right: str


def _with_article(name: str) -> str:
    """Return the name with an article, unless it has a determiner already or is a learned word."""
    if re.match(r"(?:a|an|the|my|one|two|three|some)\s", name, re.IGNORECASE) or name.startswith("<"):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def pair_captions(pair: NamedPair) -> tuple[str, ...]:
    """Return caption templates with a `{}` for the relation, from plain to full, as the paper's hand-written ones.

    >>> pair_captions(Pair("cat", "box"))[0]
    'a cat {} a box'
    """
    left, right = _with_article(pair.left), _with_article(pair.right)
    return (
        f"{left} {{}} {right}",
        f"{pair.left} {{}} {pair.right}",
        f"a photo of {left} {{}} {right}",
        f"a picture of {left} {{}} {right}",
    )


def sides(caption: str, token: str) -> NamedPair | None:
    """Return the things that a caption names before and after the relation, or None if one is missing.

    >>> sides("a photo of a cat {} a grey box, in the snow", "<r>")
    Pair(left='cat', right='grey box')
    """
    mark = "{}" if "{}" in caption else token
    before, found, after = caption.partition(mark)
    left = _LEADING.sub("", before.strip() + " ").strip(" ,.;")
    right = _LEADING.sub("", re.split(_TRAILING, after.strip(), maxsplit=1)[0].strip()).strip(" ,.;")
    return NamedPair(left, right) if found and left and right else None


def named_pair(captions: Sequence[str], token: str) -> NamedPair | None:
    """Return the two things that captions of one picture name, by their shortest names; None if none names two."""
    found = [pair for caption in captions if (pair := sides(caption, token))]
    return min(found, key=lambda pair: len(pair.left) + len(pair.right), default=None)
