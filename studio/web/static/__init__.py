"""Files of the page: styles, and the scripts of its own components."""

from __future__ import annotations

from importlib.resources import files


def text(name: str) -> str:
    """Return one of the files here."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
