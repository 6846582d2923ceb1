"""Languages of the page: each but English is a JSON file here.

Its `language` is what the language calls itself; `sentences` are English sentence -> the same in that language, with
`{0}`, `{1}` for values; `framework` is the same for the sentences of the page's framework, in its own translation.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files

ENGLISH = "en"
AUTO = "auto"
"""Stands for the language of each visitor's browser."""


@cache
def names() -> dict[str, str]:
    """Return id -> what the language calls itself, English first."""
    found = sorted(one.name for one in files(__name__).iterdir() if one.name.endswith(".json"))
    return {ENGLISH: "English"} | {
        name.removesuffix(".json"): str(json.loads(content(name.removesuffix(".json")))["language"]) for name in found
    }


@cache
def content(name: str) -> bytes:
    """Return the file of a language that `names` has."""
    return files(__name__).joinpath(f"{name}.json").read_bytes()


def digest(name: str) -> str:
    """Return a short sum of the file of a language, with which its address changes when it does."""
    return hashlib.sha256(content(name)).hexdigest()[:12]


def told(chosen: str) -> str:
    """Return JSON of what the page has to know: the languages, the sums of their files, and the server's choice."""
    others = [name for name in names() if name != ENGLISH]
    return json.dumps({"names": names(), "digests": {name: digest(name) for name in others}, "chosen": chosen})
