"""Masks of training pictures: their file names, and pictures that only look like masks. Needs no torch.

`fox.mask.png`, `fox-masklabel.png`, `fox_mask.png` beside `fox.png`, and `masks/fox.png`; with any ending of a picture,
in capitals or not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.errors import DataError
from pipelines.pictures.files import PICTURE_SUFFIXES, open_mask
from pipelines.words import composed

FOLDERS = ("masks", "mask")
MARKS = (".mask", "-masklabel", "_mask")
_NAMED = re.compile(r"(.+)(\.mask|-masklabel|_mask)", re.IGNORECASE | re.DOTALL)
WHITE = 128
"""A mask that is nowhere as bright as this is taken for a mistake."""

NEAR = 24
"""Levels of 255 by which the black and white of a mask may be off, as JPEG makes them."""


def has_picture_suffix(path: Path) -> bool:
    """Return whether a file is a picture by its name."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def masks_among(files: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return the masks among the files of a folder: names of their pictures, without ending, and the files.

    They come in the order in which one is taken if a picture has several. `venetian_mask.png` is a picture, unless
    there is a `venetian.png`, too.
    """
    stems = {composed(path.stem) for path in files if has_picture_suffix(path)}
    found: list[tuple[int, str, Path]] = []
    for path in files:
        named = _NAMED.fullmatch(composed(path.stem)) if has_picture_suffix(path) else None
        if named and (named[2] != "_mask" or named[1] in stems):
            found.append((MARKS.index(named[2].lower()), named[1], path))
    return [(owner, path) for _, owner, path in sorted(found, key=lambda one: one[0])]


def masks_within(folder: Path, files: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return the masks in a folder of masks, where every picture is one; as `masks_among`."""
    marked = {path: owner for owner, path in masks_among(files)}
    return [(marked.get(path, composed(path.stem)), path) for path in files if has_picture_suffix(path)]


def read_mask(path: Path) -> Image.Image:
    """Read a mask as upright grey, white where the thing is.

    Raises:
        DataError: if it cannot be read, or shows nothing.
    """
    return shown(open_mask(path), f"The mask {path.name}")


def shown(mask: Image.Image, what: str) -> Image.Image:
    """Return a grey mask, checked for a white part.

    Args:
        mask: grey.
        what: its name in the error.

    Raises:
        DataError: if nothing is.
    """
    brightest = int(mask.getextrema()[1])  # pyright: ignore[reportArgumentType]
    if brightest < WHITE:
        raise DataError(
            f"{what} is dark everywhere: {brightest} of 255 at its brightest.",
            "Paint what is to be learned white, or remove the mask.",
        )
    return mask


def looks_like_mask(picture: Image.Image) -> bool:
    """Return whether a picture has black and white parts that make up all of it but thin edges."""
    values = np.asarray(picture.convert("RGB"))
    black, white = (values < NEAR).all(axis=2), (values > 255 - NEAR).all(axis=2)
    return bool(black.any() and white.any() and (black | white).mean() >= 0.95)


def kin(picture: Path, pictures: Sequence[Path]) -> list[Path]:
    """Return other pictures of the folder whose name is in this one: `fox.png` for `fox_m.png`, `m-fox.png`."""
    stem = composed(picture.stem)
    found: list[Path] = []
    for other in pictures:
        whole = re.escape(composed(other.stem))
        if (
            other != picture
            and other.parent == picture.parent
            and re.fullmatch(rf"(.*[ ._-])?{whole}([ ._-].*)?", stem, re.DOTALL)
        ):
            found.append(other)
    return found
