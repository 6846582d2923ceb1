"""The syntax of prompts: `(word:1.3)` weights, and the places of a relation's word. Needs no torch."""

from __future__ import annotations

import re
from itertools import groupby, pairwise

_SYNTAX = re.compile(r"\\[()\[\]\\]|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:|\\")
ROUND, SQUARE = 1.1, 1 / 1.1
_NO_THINGS = ("a", "an", "the", "of")


class _Fragments:
    """Fragments of a prompt with their weights, and the open brackets."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.weights.append(1.0)

    def close(self, bracket: str, factor: float) -> None:
        """Weight everything since the innermost open bracket of that kind."""
        for index in range(self.open[bracket].pop(), len(self.texts)):
            self.weights[index] *= factor

    def joined(self) -> list[tuple[str, float]]:
        """Merge neighbours of equal weight."""
        pairs = zip(self.texts, self.weights, strict=True)
        grouped = groupby(pairs, key=lambda pair: pair[1])
        return [("".join(text for text, _ in group), weight) for weight, group in grouped] or [("", 1.0)]


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt into fragments with weights, in AUTOMATIC1111's syntax.

    `(a)` weighs 1.1, `((a))` 1.21, `[a]` 1/1.1, `(a:1.3)` 1.3; a backslash makes a bracket ordinary text; brackets left
    open reach to the end. The fragments joined are the prompt without its syntax.

    >>> parse_weights("a (red:1.5) fox")
    [('a ', 1.0), ('red', 1.5), (' fox', 1.0)]
    """
    parsed = _Fragments()
    for match in _SYNTAX.finditer(prompt):
        text, weight = match.group(0), match.group(1)
        if text in ("(", "["):
            parsed.open[text].append(len(parsed.texts))
        elif (weight is not None or text == ")") and parsed.open["("]:
            parsed.close("(", ROUND if weight is None else float(weight))
        elif text == "]" and parsed.open["["]:
            parsed.close("[", SQUARE)
        else:
            parsed.add(text[1:] if text.startswith("\\") and len(text) == 2 else text)
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while parsed.open[bracket]:
            parsed.close(bracket, factor)
    return parsed.joined()


def lacks_a_side(prompt: str, token: str) -> bool:
    """Return whether the word of a relation stands anywhere without a thing before it or after it.

    >>> lacks_a_side("a cat <r> a box", "<r>"), lacks_a_side("a photo of <r>", "<r>")
    (False, True)
    """
    plain = "".join(text for text, _ in parse_weights(prompt))
    parts = plain.split(token)
    for before, after in pairwise(parts):
        said = re.findall(r"[\w<]+", before)
        follows = [word for word in re.findall(r"[\w<]+", after) if word.lower() not in _NO_THINGS]
        if not said or said[-1].lower() in _NO_THINGS or not follows:
            return True
    return False
