"""Further things to learn in one run, each written as DIR:TOKEN:WORD. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.words import composed


class Further(NamedTuple):
    """One of the further things of a run.

    Attributes:
        images: folder of its pictures.
        token: its new word or identifier.
        word: the word of the base that it starts from or belongs to.
    """

    images: Path
    token: str
    word: str


def further(texts: Sequence[str]) -> tuple[Further, ...]:
    """Return the things that texts name which `require_further` let pass."""
    split = (text.rsplit(":", 2) for text in texts)
    return tuple(Further(Path(place), composed(token), word) for place, token, word in split)


def require_further(setting: str, texts: Sequence[str], form: str, things: str, first: str) -> None:
    """Refuse texts that are not of the form, and tokens that are given twice.

    Args:
        setting: that the texts were given for.
        texts: as given.
        form: what each has to be, for example DIR:TOKEN:CLASS.
        things: what has a token, for example "subjects".
        first: token of the run's own thing.

    Raises:
        ValueError: if there are such.
    """
    for text in texts:
        parts = [part.strip() for part in text.rsplit(":", 2)]
        if len(parts) < 3 or not all(parts):
            raise ValueError(f"{setting} {text!r} is not {form}; write for example my-cat:<my-cat>:cat")
    tokens = [first.lower(), *(one.token.lower() for one in further(texts))]
    if twice := [token for token in tokens if tokens.count(token) > 1]:
        raise ValueError(f"the token {twice[0]!r} is given to two {things}; give each its own")
