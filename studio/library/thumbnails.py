"""Small copies of the previews of concepts, made when somebody looks and kept in the index. Needs no torch."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from pipelines.request.texts import encodable
from studio.library.index import keep_picture, kept_picture

SIDE = 96
"""Pixels of the longer side."""

_LARGEST = 50_000_000  # pixels of a preview that somebody put there


def stamp_of(concept: Path) -> str:
    """Return signs that the preview of a concept has not changed; empty if it has none.

    Args:
        concept: the file of the concept.
    """
    try:
        about = concept.with_suffix(".preview.png").stat()
    except (OSError, ValueError):
        return ""
    return f"{about.st_mtime_ns:x}-{about.st_size:x}-{about.st_ino:x}"


def thumbnail(concept: Path) -> bytes | None:
    """Return the preview of a concept as a PNG of at most `SIDE` pixels; None if there is none that can be read."""
    if not (stamp := stamp_of(concept)) or not encodable(concept.name):
        return None
    kept = kept_picture(concept.parent, concept.name, stamp)
    if kept is None and (kept := _drawn(concept.with_suffix(".preview.png"))) is not None:
        keep_picture(concept.parent, concept.name, stamp, kept)
    return kept


def _drawn(path: Path) -> bytes | None:
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > _LARGEST:
                return None
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
