"""The words of a base and of the library, as the page offers and checks them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.models.known_words import known_words
from studio.jobs.jobs import Jobs


def words_of(jobs: Jobs, base: str, learned: Iterable[str]) -> dict[str, Any]:
    """Return the words that a prompt can use, as the value of `base_words`.

    Args:
        jobs: of the server.
        base: id of the base.
        learned: words of concepts that go with it.
    """
    told: dict[str, Any] = {"base": base, "learned": list(learned)}
    words = known_words(jobs.bases.get(base, ""))
    if words is None:
        return told
    return told | {
        "things": {group: list(names) for group, names in words.things.items()},
        "colours": list(words.colours),
        "relations": list(words.relations),
        "known": sorted(words.words),
        "kinds": dict(words.kinds),
        "plurals": dict(words.plurals),
        "nearest": dict(words.nearest),
    }
