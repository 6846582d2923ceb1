"""Limits for configurations of a base's parts, checked before anything is built: they come with files of strangers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from pipelines.errors import ModelError

LAYERS = 1000
"""Most layers, blocks or other repeated things that a part may have; the largest known have some hundred."""

UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NotImplementedError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
"""Errors of loading a part with an invalid configuration or invalid weights."""


def require_buildable(folder: Path, what: str) -> None:
    """Refuse a part whose configuration asks for absurdly many layers, which would take minutes to build.

    Args:
        folder: of the part; without a `config.json` nothing is refused.
        what: to call it in errors.

    Raises:
        ModelError: with the setting and its value.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    for name, number in _counts("", json.loads(file.read_text(encoding="utf-8"))):
        if number > LAYERS:
            raise ModelError(
                f"The {what} asks for {name} {number:,}; at most {LAYERS:,} are built.",
                f"Check its {file.name}, or get the folder anew.",
            )


def _counts(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """Return the numbers of repetitions: numbers whose names speak of layers, and lengths of lists."""
    if isinstance(value, dict):
        for inner, one in value.items():
            yield from _counts(str(inner), one)
    elif isinstance(value, list):
        yield f"a list {name} of", len(value)
        for one in value:
            yield from _counts(name, one)
    elif isinstance(value, int) and "layers" in name:
        yield name, value
