"""Draw the sprite sheets of the sticker world from icon collections, as npm packages of Iconify hold them.

    npm pack @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat @iconify-json/noto   # and unpack each
    python -m trainers.pretrain sheets --icons FOLDER

FOLDER holds `fluent-emoji/icons.json` and so on. Only needed to add things; the sheets are in `trainers/stickers/art`.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from trainers.stickers.art import ART, COLLECTIONS, COLUMNS, SIDE, icons

DRAWN = 4 * SIDE
"""Pixels at which an icon is drawn before it is cropped and made smaller."""
QUALITY = 90


def drawing(body: str, view: tuple[float, float]) -> Image.Image:
    """Return an icon as an RGBA picture of `SIDE` pixels, cropped to what is visible and centred in the square.

    Args:
        body: SVG elements.
        view: width and height of the elements' coordinates.
    """
    import resvg_py  # only needed here

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {view[0]:g} {view[1]:g}" width="{DRAWN}" height="{DRAWN}">{body}</svg>'
    )
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    alpha = picture.getchannel("A").point([0] * 128 + [255] * 128)
    visible = picture.crop(alpha.getbbox())
    side = max(visible.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(visible, ((side - visible.width) // 2, (side - visible.height) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.BOX)


def sheets_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Draw every sheet anew into `trainers/stickers/art`.

    Raises:
        ModelError: if a collection or an icon is not there.
    """
    for style, collection in COLLECTIONS.items():
        path: Path = arguments.icons / collection / "icons.json"
        if not path.exists():
            raise ModelError(f"There is no {path}.", "Unpack the npm packages there; see trainers/pretrain/sheets.py.")
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        listed = icons(style)
        sheet = Image.new("RGBA", (COLUMNS * SIDE, -(-len(listed) // COLUMNS) * SIDE), (0, 0, 0, 0))
        for index, (name, icon) in enumerate(listed.items()):
            if icon not in held["icons"]:
                raise ModelError(f"{collection} has no icon {icon!r} for {name!r}.", "Correct it in stickers.json.")
            one = held["icons"][icon]
            view = (one.get("width", held.get("width", 16)), one.get("height", held.get("height", 16)))
            sheet.paste(drawing(one["body"], view), (index % COLUMNS * SIDE, index // COLUMNS * SIDE))
        sheet.save(ART / f"{style}.webp", quality=QUALITY, alpha_quality=100, method=6)
        on_event(Note(f"{ART / f'{style}.webp'}: {len(listed)} things"))
