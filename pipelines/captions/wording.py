"""The wording of a caption for training: a template, words left out, the new word in their place. Needs no torch.

What a new word shall hold is not named in its captions, or it is learned as a part of the words that do: "a brown dog
on a red sofa" becomes "a <my-dog> on a red sofa".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pydantic import Field, field_validator

from pipelines.request.settings import Frozen
from pipelines.words import Composed, composed

LINKS = frozenset("a an the of on in at and with to by from over above under below near beside left right its".split())
"""Words that say nothing once what they lead to is gone."""
PLAIN = LINKS | frozenset("my our your his her their this that new one and is are".split())
"""Words that are no name of a thing."""
GROUND = re.compile(r"\bon an? [\w ]+ background\b")
"""Words for what is behind a thing, which no new word shall hold though all captions say them."""


class Wording(Frozen):
    """The wording of captions."""

    template: Composed = Field(default="{}", min_length=1, max_length=500)
    """Sentence around each caption, which stands in the place of {}: "a sticker of {}"."""

    leave_out: tuple[Composed, ...] = ()
    """Words that captions do not say, in the singular or with commas between several; may be given several times.
    What a new word shall hold is left out."""

    shared: bool = False
    """Leave out the words that the captions of all pictures say, too, of two and more: what all show is learned."""

    token: Composed = ""
    """The new word: it stands where a word was left out first, or before a caption that says none of them."""

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError(f"the template {value!r} has {value.count('{}')} places; write one {{}} for the caption")
        return value

    def among(self, captions: Sequence[str]) -> Wording:
        """Return the wording for these captions, the words that all of them say among those left out."""
        if not self.shared:
            return self
        return self.model_copy(update={"leave_out": (*self.leave_out, *shared(captions)), "shared": False})

    def of(self, caption: str) -> str:
        """Return a caption in this wording."""
        said = worded(caption, [one.strip() for text in self.leave_out for one in text.split(",")], self.token)
        return " ".join(self.template.replace("{}", said).split())


def worded(caption: str, leave_out: Sequence[str], token: str = "") -> str:
    """Return a caption without some words, the first of them replaced by a token.

    Words that stand together and are left out are one place. Without a token there, articles and prepositions that
    led to it go too.

    >>> worded("a brown dog on a red sofa", ["dog", "brown"], "<my-dog>")
    'a <my-dog> on a red sofa'
    >>> worded("a brown dog on a red sofa", ["dog", "brown"])
    'on a red sofa'
    >>> worded("two dogs and an owl", ["dog"])
    'two and an owl'
    """
    text = " ".join(composed(caption).split())
    listed = "|".join(re.escape(one) for one in sorted(filter(None, leave_out), key=len, reverse=True))
    if not listed:
        return _with(text, token, found=False)
    place = re.compile(rf"(?:(?<!\w)(?:{listed})(?:es|s)?(?!\w)[ ]?)+", re.IGNORECASE)
    parts = place.split(text)
    if len(parts) == 1:
        return _with(text, token, found=False)
    kept = parts[0].rstrip()
    for number, part in enumerate(parts[1:]):
        if number == 0 and token:
            kept = f"{_article(kept)} {token}".strip()
        elif _leads(part):
            kept = _unlinked(kept)
        kept = f"{kept}{'' if part[:1] in ',.;:' else ' '}{part.strip()}".strip()
    return re.sub(r",(\s*,)+", ",", kept).strip(" ,;")


def words_of(text: str) -> list[str]:
    """Return the words in a text that may be names of things.

    >>> words_of("<my-red_wolf>"), words_of("a fox on a hat")
    (['red', 'wolf'], ['fox', 'hat'])
    """
    return [one for one in re.findall(r"[^\W\d_]{2,}", composed(text).lower()) if one not in PLAIN]


def shared(captions: Iterable[str]) -> tuple[str, ...]:
    """Return the words that several captions all say, but for those of their backgrounds.

    >>> shared(["a brown dog on a red background", "a dog, brown, beside a house on a red background"])
    ('brown', 'dog')
    """
    said = [words_of(GROUND.sub(" ", one)) for one in captions]
    return tuple(one for one in dict.fromkeys(said[0]) if all(one in each for each in said)) if len(said) > 1 else ()


def _with(text: str, token: str, found: bool) -> str:
    return f"{token}, {text}" if token and not found and token not in text else text


def _article(text: str) -> str:
    """Return a text that ends before the token, its article that of an unknown word."""
    return re.sub(r"(?<!\w)an$", "a", text)


def _leads(rest: str) -> bool:
    """Return whether what follows a gap begins anew, so that nothing led to it."""
    first = re.match(r"\s*([\w'-]+)", rest)
    return first is None or first[1].lower() in LINKS


def _unlinked(text: str) -> str:
    """Return a text without the articles and prepositions at its end."""
    words = text.split()
    while words and words[-1].lower() in LINKS:
        words.pop()
    return " ".join(words)
