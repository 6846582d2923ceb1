"""Strokes painted over a picture in the browser, as a mask of that picture."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from pipelines.errors import DataError, RequestError
from studio.library.uploads import BYTES, cleaned

SHOWN = 1024
"""Pixels of the longer side as a picture is painted on."""

START = "data:image/png;base64,"


def decoded(address: str) -> bytes:
    """Return the content of a `data:` address of a PNG.

    Raises:
        DataError: if it is none.
    """
    if not address.startswith(START) or len(address) > 2 * BYTES:
        raise DataError("The mask is no PNG.", "Paint it again.")
    try:
        return base64.b64decode(address.removeprefix(START), validate=True)
    except binascii.Error:
        raise DataError("The mask is no PNG.", "Paint it again.") from None


def fitted(mask: bytes, size: tuple[int, int]) -> Image.Image:
    """Return a mask in the size of its picture, black and white only.

    Raises:
        DataError: if it cannot be read.
        RequestError: if nothing of it is white.
    """
    grey = cleaned(mask, "the mask").convert("L").resize(size, Image.Resampling.BOX)
    sharp = grey.point([0] * 128 + [255] * 128)
    if not marks(sharp):
        raise RequestError("Nothing in the picture is marked.", "Click a thing in it, or paint over it.")
    return sharp


def marks(mask: Image.Image) -> bool:
    """Return whether anything of a grey mask is nearer to white than to black."""
    return mask.point([0] * 128 + [255] * 128).getbbox() is not None


def png(picture: Image.Image) -> bytes:
    """Return a picture as the content of a PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()
