"""The kinds of learning on the page and their cost, in words for people who know no methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class What:
    """A kind of thing to learn.

    Attributes:
        method: that learns it.
        says: its cost in a sentence.
        near: label of the field for a word the base knows: the kind of thing, or where training starts.
        token: a word to suggest.
        start: a word the base knows, to suggest.
        settings: of the method, beside the words.
    """

    method: str
    says: str
    near: str
    token: str
    start: str
    settings: Mapping[str, Any]


WHATS: Mapping[str, What] = MappingProxyType(
    {
        "object": What(
            "textual-inversion",
            "A thing, learned as one word: 3 to 5 pictures, quickest, a file of a few KB; "
            "the model itself stays as it is.",
            "The nearest word the model knows",
            "<my-wolf>",
            "fox",
            {"kind": "object"},
        ),
        "style": What(
            "textual-inversion",
            "How pictures look, learned as one word: 5 to 20 pictures of different things in one style; "
            "as quick and small as an object.",
            "The nearest word the model knows",
            "<my-style>",
            "flat",
            {"kind": "style"},
        ),
        "subject": What(
            "dreambooth",
            "One particular thing, bound into the model's weights: best likeness, best beside others; "
            "twice the time, a file of about 1 MB.",
            "What kind of thing it is, in one word",
            "<my-wolf>",
            "fox",
            {"pivotal": True},
        ),
        "relation": What(
            "reversion",
            "What holds between two things, for any other two: ten pictures of pairs that share nothing else; "
            "two to three times as long.",
            "The nearest word the model knows",
            "<relation>",
            "on",
            {},
        ),
    }
)
KINDS = [(name.capitalize(), name) for name in WHATS]

RECIPE_STEPS: Mapping[str, int] = MappingProxyType({"textual-inversion": 400, "dreambooth": 600, "reversion": 200})
"""Steps of the recipes for pocket, which the presets scale."""

PRESETS: Mapping[str, float] = MappingProxyType({"a quick look": 0.3, "recommended": 1.0, "thorough": 2.0})
"""Shares of the recipe's steps."""
