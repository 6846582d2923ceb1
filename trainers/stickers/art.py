"""The drawings of the sticker world: a sprite sheet for each style.

A sheet holds a square of `SIDE` pixels for each name, in the order of the names in `stickers.json`, which also says
which icon of which collection it is; `python -m trainers.pretrain sheets` draws the sheets from these collections.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image

ART = Path(__file__).parent / "art"
SIDE = 108
"""Pixels of a sprite's side: twice the largest sticker of a picture of 64 pixels."""
COLUMNS = 16
"""Sprites in a row of a sheet."""

Style = Literal["fluent", "flat", "noto"]
"""Shaded, flat, and drawn by other hands; the last has things of its own, which no model here is trained on."""
COLLECTIONS: dict[Style, str] = {"fluent": "fluent-emoji", "flat": "fluent-emoji-flat", "noto": "noto"}
"""The icon collection that each style is from."""


@cache
def icons(style: Style) -> dict[str, str]:
    """Return the names of a sheet, in its order, each with the name of its icon in the collection."""
    listed: dict[str, dict[str, str]] = json.loads((ART / "stickers.json").read_text(encoding="utf-8"))
    return listed["noto" if style == "noto" else "fluent"]


@cache
def _sheet(style: Style) -> Image.Image:
    with Image.open(ART / f"{style}.webp") as stored:
        return stored.convert("RGBA")


@cache
def sprite(name: str, style: Style = "fluent") -> Image.Image:
    """Return a sticker as an RGBA picture of `SIDE` pixels, cropped to what is visible and centred in the square.

    Things drawn by other hands are so in every style.

    Raises:
        KeyError: for a name that the style has no drawing of.
    """
    style = "noto" if name in icons("noto") else style
    row, column = divmod({one: index for index, one in enumerate(icons(style))}[name], COLUMNS)
    left, top = column * SIDE, row * SIDE
    return _sheet(style).crop((left, top, left + SIDE, top + SIDE))
