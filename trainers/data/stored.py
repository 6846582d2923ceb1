"""Training pictures that stay on disk until their pixels are needed: a path, a size and a hash each. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.errors import DataError
from pipelines.request.request import Box

FLAT = 3
"""Difference of brightness, of 255, that is none."""


@dataclass(frozen=True)
class PictureSigns:
    """Signs by which similar pictures are found.

    Attributes:
        bits: `difference_hash`.
        colours: mean red, green and blue of each field of a 4 x 4 grid, row by row.
    """

    bits: int
    colours: bytes


def look_of(picture: Image.Image) -> PictureSigns:
    """Return the signs of a picture."""
    tile = picture.convert("RGB").resize((4, 4), Image.Resampling.BOX)
    return PictureSigns(difference_hash(picture), tile.tobytes())


def difference_hash(picture: Image.Image) -> int:
    """Return 64 bits, one for each place of an 8 x 8 grid, set if it gets darker to the right (dHash).

    By more than `FLAT`, that is, for else the noise of compression would decide in flat places.
    """
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] > small[:, 1:] + FLAT).tobytes(), "big")


def digest_of(picture: Image.Image) -> bytes:
    """Return the SHA-256 of the pixels of a picture."""
    return hashlib.sha256(picture.tobytes()).digest()


@dataclass(frozen=True)
class Stored:
    """A picture on disk, read anew whenever it is asked for.

    Attributes:
        path: of the file.
        size: width and height in pixels, upright.
        digest: of its pixels when it was first read.
        look: of it then.
        read: reads a file.
        stamp: time and size of the file then.
    """

    path: Path
    size: tuple[int, int]
    digest: bytes
    look: PictureSigns
    read: Callable[[Path], Image.Image]
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path, picture: Image.Image, read: Callable[[Path], Image.Image]) -> Stored:
        """Return what is kept of a picture that was just read.

        Args:
            path: its file.
            picture: its pixels.
            read: reads it again.
        """
        return cls(path, picture.size, digest_of(picture), look_of(picture), read, _stamp(path))

    def open(self) -> Image.Image:
        """Return its pixels.

        Raises:
            DataError: if it is gone, or another picture is there now.
        """
        picture = self.read(self.path)
        if _stamp(self.path) != self.stamp and digest_of(picture) != self.digest:
            raise DataError(f"{self.path.name} was changed meanwhile.", "Begin anew, and leave the pictures alone.")
        return picture


@dataclass(frozen=True)
class Composed:
    """A picture that is made of others whenever it is asked for.

    Attributes:
        size: width and height in pixels.
        make: returns it, the same each time.
    """

    size: tuple[int, int]
    make: Callable[[], Image.Image]

    @property
    def digest(self) -> bytes:
        """The SHA-256 of its pixels."""
        return digest_of(self.open())

    @property
    def look(self) -> PictureSigns:
        """Signs by which similar ones are found."""
        return look_of(self.open())

    def open(self) -> Image.Image:
        """Return its pixels."""
        return self.make()


Source = Image.Image | Stored | Composed
"""Pixels in memory, in a file, or made of other pictures."""


def opened(source: Source) -> Image.Image:
    """Return the pixels of a source."""
    return source if isinstance(source, Image.Image) else source.open()


@dataclass(frozen=True)
class Example:
    """One training picture.

    Pixels stay on disk: `picture` and `mask` read them whenever they are asked for, so that thousands of photos take no
    memory. Pictures made in memory stay there.

    Attributes:
        name: path inside the folder it came from.
        source: of its pixels.
        captions: its own captions, one of which is drawn each time; none for templates.
        mask_source: of its mask; None for none.
        repeats: times per epoch.
        word: word for its thing in captions and templates; None for that of the run.
        boxes: the things in it, for trainings of boxes.
        after_source: of what a change made of it, of the same size; for trainings of changes.

    Raises:
        DataError: if the mask or the picture after is of another size, or it is to come less than once.
    """

    name: str
    source: Source
    captions: tuple[str, ...] = ()
    mask_source: Source | None = None
    repeats: int = 1
    word: str | None = None
    boxes: tuple[Box, ...] = ()
    after_source: Source | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise DataError(f"{self.name} is to be repeated {self.repeats} times.", "Give 1 or more.")
        own, other = (
            f"{one[0]} x {one[1]}" for one in (self.size, (self.after_source or self.mask_source or self).size)
        )
        if self.after_source is not None and other != own:
            raise DataError(
                f"The pair {self.name} has {own} pixels before and {other} after.", "Save both in one size."
            )
        if self.mask_source is not None and self.mask_source.size != self.size:
            raise DataError(
                f"The mask of {self.name} has {other} pixels, the picture {own}.",
                "Save the mask in the size of its picture.",
            )

    @property
    def picture(self) -> Image.Image:
        """Upright RGB, read anew; raises `DataError` if it cannot be any more."""
        return opened(self.source)

    @property
    def mask(self) -> Image.Image | None:
        """Grey, of the picture's size, white where the thing is, read anew; None for everywhere."""
        return None if self.mask_source is None else opened(self.mask_source)

    @property
    def after(self) -> Image.Image | None:
        """Upright RGB, what a change made of it, read anew; None for trainings of other things."""
        return None if self.after_source is None else opened(self.after_source)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.source.size


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size
