"""Picture files read as a viewer shows them: upright, in sRGB, 8 bits, without hidden data. No torch.

Whatever else a file carries (text, camera data, thumbnails, profiles that are no profiles) is left unread, so that it
can neither hinder nor harm. Of EXIF the orientation alone is used; a colour profile is applied if it can be.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from pipelines.errors import DataError
from pipelines.pictures.png import PNG, PROFILE_LIMIT, pixels_alone

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""Kinds read, by Pillow's names; others it knows would start programs (EPS) or are none of these by any name."""

PIXEL_LIMIT = 100_000_000
"""Largest picture that is decoded: a 100-megapixel camera; more is taken for a decompression bomb."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operations that make a picture upright, by the value of EXIF's orientation."""

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    MemoryError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)
"""Errors of Pillow at damaged files."""


def open_picture(path: Path) -> Image.Image:
    """Read a picture as upright RGB; what is transparent is laid on white.

    Raises:
        DataError: if it is missing, no picture, damaged or gigantic.
    """
    return laid_on(decoded(path, path.name), "white")


def open_mask(path: Path) -> Image.Image:
    """Read a mask as upright grey; transparent counts as black, since people paint white on nothing.

    Raises:
        DataError: as `open_picture`.
    """
    return grey(decoded(path, path.name))


def grey(mask: Image.Image) -> Image.Image:
    """Return a mask as a viewer shows it, in grey, on black where it is transparent."""
    return laid_on(seen(mask), "black").convert("L")


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture as a viewer shows it, in RGB, on white where it is transparent."""
    return laid_on(seen(picture), "white")


def laid_on(picture: Image.Image, colour: str) -> Image.Image:
    """Return RGB: the picture itself if it is opaque, else on a background of a colour."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", picture.size, colour), picture).convert("RGB")


def decoded(
    source: Path | bytes, name: str, limit: int = PIXEL_LIMIT, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Decode a picture and return the result of `seen`.

    Args:
        source: the file, or its content.
        name: its name in errors.
        limit: most pixels that are decoded.
        formats: names of the formats that are taken.

    Raises:
        DataError: if it is missing, no picture, damaged or gigantic.
    """
    try:
        with warnings.catch_warnings():
            # Of EXIF that is odd, and below twice its own limit; ours is checked before anything is decoded.
            warnings.simplefilter("ignore")
            stream, profile, exif = _opened(source)
            with Image.open(stream, formats=formats) as stored:
                if stored.width * stored.height > limit:
                    raise DataError(
                        f"{name} has {stored.width} x {stored.height} pixels; at most {limit:,} are read.",
                        "Make it smaller.",
                    )
                turn = _turn(exif, stored)
                stored.load()
                if profile:
                    stored.info["icc_profile"] = profile
                return _seen(stored, turn)
    except Image.DecompressionBombError:
        raise DataError(f"{name} has more than {limit:,} pixels.", "Make it smaller.") from None
    except UnidentifiedImageError:
        kinds = f"one of {', '.join(formats)}"
        raise DataError(f"{name} is no picture that can be read, whatever its name says.", f"Give {kinds}.") from None
    except DAMAGE as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(f"{name} cannot be read: {why}.", "Get it again; it may be cut short.") from None


def seen(picture: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it: upright, in sRGB; RGBA if it is transparent somewhere, else RGB.

    Grey of 16 or 32 bits and real numbers keep their range: it is scaled to 8 bits, where Pillow would clip.
    """
    return _seen(picture, _turn(None, picture))


def _seen(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    alpha: Image.Image | None = None
    shown = picture
    if picture.mode[0] in "IF":
        alpha, shown = _clear_level(picture), _eight_bits(picture)
    elif picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        shown = picture.convert("RGBA")
        alpha = shown.getchannel("A")
        shown = shown.convert("RGB")
    elif picture.mode not in ("L", "RGB", "CMYK"):
        shown = picture.convert("RGB")
    shown = _in_srgb(shown, picture.info.get("icc_profile")).convert("RGB")
    if alpha is not None and alpha.getextrema()[0] != 255:
        shown.putalpha(alpha)
    shown = shown.copy() if shown is picture else shown
    shown.info = {}
    return shown if turn is None else shown.transpose(turn)


# -- depth ------------------------------------------------------------------------------------------------------


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale grey of another depth: integers as of 16 bits, or 32 if any needs them; floats by their range."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float64), nan=0.0, posinf=np.inf, neginf=0.0)
    values = np.where(np.isinf(values), values[np.isfinite(values)].max(initial=1.0), values)
    most = values.max(initial=0)
    if picture.mode == "F":  # 0 to 1, to 255 or to 65535; a picture to 255 that is below 2 would be black anyway
        most = 1 if most <= 2 else 255 if most <= 255 else 65535 if most <= 65535 else most
    else:
        most = 65535 if most <= 65535 else (1 << 32) - 1
    return Image.fromarray((values * (255 / most)).clip(0, 255).astype(np.uint8))


def _clear_level(picture: Image.Image) -> Image.Image | None:
    """Return the opacity of a grey picture of which one grey value is transparent; None without such a value."""
    level = picture.info.get("transparency")
    if not isinstance(level, int):
        return None
    return Image.fromarray(np.where(np.asarray(picture) == level, 0, 255).astype(np.uint8))


# -- orientation ------------------------------------------------------------------------------------------------


def _turn(exif: bytes | None, picture: Image.Image) -> Image.Transpose | None:
    """Return the operation that makes a picture upright; None if its EXIF cannot be read."""
    try:
        if exif is None:
            data = picture.getexif()
        else:
            data = Image.Exif()
            data.load(exif)
        value = data.get(ORIENTATION)
    except DAMAGE:
        return None
    # Pillow turns TIFF by itself when it is loaded.
    return TURNS.get(value) if isinstance(value, int) and picture.format != "TIFF" else None


# -- colours ----------------------------------------------------------------------------------------------------


def _in_srgb(picture: Image.Image, profile: Any) -> Image.Image:
    """Convert L, RGB or CMYK from its profile to sRGB; return the picture itself without a profile that fits."""
    if not isinstance(profile, bytes) or not profile or len(profile) > PROFILE_LIMIT:
        return picture
    transform = _transform(profile, picture.mode)
    return picture if transform is None else transform.apply(picture)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if it is damaged, of other channels, or nearly sRGB.

    The last so that pixels that mean what they say stay what they are, to the bit.
    """
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        made = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, *DAMAGE):
        return None
    if mode == "RGB":
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
        changed = np.asarray(made.apply(Image.fromarray(cube))).astype(int) - cube
        if np.abs(changed).max() <= 2:
            return None
    return made


# -- files ------------------------------------------------------------------------------------------------------


def _opened(source: Path | bytes) -> tuple[Any, bytes, bytes | None]:
    """Return the bytes Pillow decodes; of a PNG its pixels alone, its colour profile and its EXIF."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            if stream.read(len(PNG)) != PNG:
                return source, b"", None
        source = source.read_bytes()
    if not source.startswith(PNG):
        return io.BytesIO(source), b"", None
    pixels, profile, exif = pixels_alone(source)
    return io.BytesIO(pixels), profile, exif
