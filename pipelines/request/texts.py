"""Valid text, wherever it comes from: one rule for every setting, request, card and form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 20_000
"""Most letters of any text."""

_HALF = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Characters that are no letters and end no line."""

_ROOTED = re.compile(r"(?:[A-Za-z]:)?[\\/]")
_PATH = re.compile(r"(?<![\w.:/<])(?:[A-Za-z]:)?/(?!api/|sdapi/|gradio_api/)(?:[^/\s'\"]+/)+")
"""The folders of a path, but not of an address of the server."""


def encodable(text: str) -> bool:
    """Return whether a text is valid Unicode: half a pair of surrogates cannot be stored or sent."""
    return _HALF.search(text) is None


def flaw(text: str) -> str:
    r"""Return what is wrong with a text and what to do; empty if nothing is.

    >>> flaw("a fox"), flaw("a\x00b")
    ('', "holds the control character '\\x00'; leave it out")
    """
    if len(text) > LONGEST:
        return f"has {len(text):,} letters; at most {LONGEST:,} are taken"
    if not encodable(text):
        return "holds half a character (a lone surrogate), as of an emoji cut in two; write it again"
    if control := _CONTROL.search(text):
        return f"holds the control character {control[0]!r}; leave it out"
    return ""


def readable(text: str) -> str:
    """Return a text that can be stored and sent: unpaired surrogates become �."""
    return _HALF.sub("\ufffd", text)


def without_folders(text: str) -> str:
    """Return an absolute path without its folders, which tell where somebody keeps things; other text as it is.

    >>> without_folders("/home/me/bases/twin"), without_folders("org/name")
    ('twin', 'org/name')
    """
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if _ROOTED.match(text) else text


def without_paths(text: str) -> str:
    """Return a sentence with absolute paths replaced by the names of their files.

    >>> without_paths("/srv/studio/concepts/x.safetensors is there already; GET /api/v1/concepts lists them.")
    'x.safetensors is there already; GET /api/v1/concepts lists them.'
    """
    return _PATH.sub("", text)


def texts(value: Any) -> Iterator[str]:
    """Return every text inside a value: itself, or those of lists, and names and values of mappings, however deep."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            left.extend([*one.keys(), *one.values()])
        elif isinstance(one, (list, tuple, set, frozenset)):
            left.extend(one)
