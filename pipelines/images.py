"""Pictures in and out: files, PIL and tensors; the only place that knows that networks see [-1, 1]."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pipelines.errors import DataError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
PIXEL_LIMIT = 100_000_000
"""Largest picture that is decoded: a 100-megapixel camera; more is taken for a decompression bomb."""


def open_picture(path: Path) -> Image.Image:
    """Read a picture as upright RGB: EXIF rotation applied, grey and CMYK converted, transparency laid on white.

    Raises:
        DataError: if it is missing, no picture, damaged or gigantic.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns below twice its own limit; ours is checked before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as stored:
                if stored.width * stored.height > PIXEL_LIMIT:
                    raise DataError(
                        f"{path.name} has {stored.width} x {stored.height} pixels; at most {PIXEL_LIMIT:,} are read.",
                        "Make it smaller.",
                    )
                stored.load()
                return upright_rgb(stored)
    except Image.DecompressionBombError:
        raise DataError(f"{path.name} has more than {PIXEL_LIMIT:,} pixels.", "Make it smaller.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path.name} is not a picture, whatever its name says.", "Remove it or convert it.") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        struct.error,
        MemoryError,
    ) as error:
        raise DataError(f"{path.name} cannot be read: {error}.", "Get it again; it may be cut short.") from None


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture as a person sees it, in RGB."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow would clip 16-bit grey to 255 instead of scaling it.
        return Image.fromarray((np.asarray(picture).astype(np.float64) / 257).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    return laid_on(picture, "white").convert("RGB")


def laid_on(picture: Image.Image, colour: str) -> Image.Image:
    """The picture itself if it is opaque, else laid on a colour."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture
    layered = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, colour), layered)


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale and centre-crop to exactly (width, height), keeping proportions."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB picture to (3, H, W) float32 in [-1, 1]."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).div(127.5).sub(1).contiguous()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] to RGB pictures."""
    array = (images.float().cpu().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in array]
