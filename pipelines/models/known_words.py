"""The words a base was trained on, from the file `words.json` in its folder, and notes on those it was not.

A base of a small world, such as `pocket`, can list them; one that read much of the web needs no list. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.models import POCKET
from pipelines.words import composed

FILE = "words.json"
NEAR = 4
"""Most words that are suggested for one that is not known."""

NAMED = 6
"""Most unknown words that one note names."""

SHORT = 2
"""Letters of words that are passed over, such as "in": they change little."""

_WORD = re.compile(r"<[^<>\s]*>|[^\W\d_][\w'-]*")


@dataclass(frozen=True)
class KnownWords:
    """The words of a base.

    Attributes:
        things: group, such as "birds" -> names of things to draw.
        colours: of the background.
        relations: phrases between two things.
        other: further words of prompts, articles for example.
        plurals: plural -> name, where it has one of its own.
        kinds: word for a kind of thing -> its group in `things`.
        nearest: word that is not known -> the known one that comes nearest.
    """

    things: Mapping[str, tuple[str, ...]]
    colours: tuple[str, ...]
    relations: tuple[str, ...]
    other: tuple[str, ...]
    plurals: Mapping[str, str]
    kinds: Mapping[str, str]
    nearest: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """All names of things."""
        return tuple(name for group in self.things.values() for name in group)

    @property
    def words(self) -> frozenset[str]:
        """Every single word that is known."""
        said = (*self.names, *self.plurals, *self.colours, *self.other, *" ".join(self.relations).split())
        return frozenset(said)

    def unknown(self, text: str) -> tuple[str, ...]:
        """Return the words of a prompt that are not known, in order and each once; `<words>` are not looked at.

        >>> known_words("pocket").unknown("a fox and a princess on a moonlit hill")
        ('princess', 'moonlit', 'hill')
        """
        known = self.words
        said = dict.fromkeys(word.lower() for word in _WORD.findall(composed(text)) if not word.startswith("<"))
        return tuple(word for word in said if word not in known and len(word) > SHORT)

    def near(self, word: str) -> tuple[str, ...]:
        """Return known names that may be meant by a word: by its meaning if it is listed, else by its letters."""
        word = word.lower()
        if named := self.nearest.get(word) or self.nearest.get(word.removesuffix("s")):
            return (named,)
        kind = self.kinds.get(word) or self.kinds.get(word.removesuffix("s"))
        if kind or word in self.things:
            return self.things[kind or word][:NEAR]
        close = get_close_matches(word, (*self.names, *self.colours), n=NEAR, cutoff=0.75)
        return tuple(close)

    def note(self, texts: Sequence[str], base: str, learned: Collection[str] = ()) -> str:
        """Return a sentence about words of prompts that the base does not know; empty if it knows all.

        Args:
            texts: prompts and phrases, without the syntax of weights.
            base: its name, for people.
            learned: words of concepts that are used.
        """
        found = [word for word in self.unknown("\n".join(texts)) if word not in learned]
        if not found:
            return ""
        said = ", ".join(self._with_near(word) for word in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return f"{base} was never shown {said}{more}; it draws what it has words for."

    def _with_near(self, word: str) -> str:
        near = self.near(word)
        return f"“{word}”" + (f" (near: {', '.join(near)})" if near else "")


@cache
def known_words(base: str) -> KnownWords | None:
    """Return the words of a base by its name or folder; None if it lists none."""
    path = (POCKET if base == "pocket" else Path(base)) / FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return KnownWords(
            things={str(group): tuple(str(names).split()) for group, names in told["things"].items()},
            colours=tuple(str(told["colours"]).split()),
            relations=tuple(map(str, told["relations"])),
            other=tuple(str(told["other"]).split()),
            plurals=_texts(told["plurals"]),
            kinds=_texts(told["kinds"]),
            nearest=_texts(told["nearest"]),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # no list, or that of another program


def _texts(told: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in told.items()}
