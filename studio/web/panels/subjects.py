"""The kinds of learning on the page: those that the methods are offered for, with the steps of their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from trainers.method import Method, Offer
from trainers.methods import methods


@dataclass(frozen=True)
class What:
    """A kind of thing to learn.

    Attributes:
        method: that learns it.
        offer: its words for people.
    """

    method: Method[Any]
    offer: Offer

    @property
    def words(self) -> tuple[str, ...]:
        """Return the settings that the fields for words stand for."""
        return tuple(self.offer.words)

    @cached_property
    def says_word(self) -> bool:
        """Return whether prompts call by its word what is learned."""
        return bool(self.method.Settings(**self.offer.values).spoken)

    @property
    def compares(self) -> bool:
        """Return whether candidates of it can be compared: what no prompt calls is compared with nothing."""
        return self.says_word and "candidates" not in self.method.Settings.unused

    @cached_property
    def recipe_steps(self) -> int:
        """Return the steps of the recipe for pocket, which the presets scale."""
        return int(self.method.recipe("pocket", self.method.Settings(**self.offer.values))["steps"])


WHATS: Mapping[str, What] = MappingProxyType(
    {offer.title: What(method, offer) for method in methods().values() for offer in method.offers}
)
NAMED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "subject": ("One thing of mine", "Recommended for a pet, a toy, a person, a product. "),
        "style": ("A style", ""),
        "relation": ("A relation", ""),
        "object": ("One thing, quick", "For a first try, or where the file must be tiny. "),
    }
)
"""Kinds that most people look for, the recommended first -> what people call them, and when to take them."""

KINDS = [(label, name) for name, (label, _) in NAMED.items()]
OTHERS = [(name.capitalize(), name) for name in WHATS if name not in NAMED]


def advice(what: str) -> str:
    """Return when to take a kind of learning, and what it costs."""
    return NAMED.get(what, ("", ""))[1] + WHATS[what].offer.says


PRESETS: Mapping[str, float] = MappingProxyType({"a quick look": 0.3, "recommended": 1.0, "thorough": 2.0})
"""Shares of the recipe's steps."""
FIELDS = 2
"""Fields for words on the page; a method has at most so many in its offers, and all else in its settings."""


def fields_of(what: str) -> list[dict[str, Any]]:
    """Return label, example and visibility of each field for words; those that a kind lacks are hidden."""
    words = WHATS[what].offer.words.values()
    shown = [{"label": label, "placeholder": f"for example {value}", "visible": True} for label, value in words]
    return (shown + [{"value": "", "visible": "hidden"}] * FIELDS)[:FIELDS]


def is_hint(method: str) -> bool:
    """Return whether what a method learned is asked for as a hint, By example, instead of in prompts."""
    return any(what.offer.hint for what in WHATS.values() if what.method.name == method)
