"""Pairs of pictures in a folder, before and after a change: `fox.before.png` beside `fox.after.png`, or two subfolders.

With subfolders it is the names that belong together: `before/fox.png` and `after/fox.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipelines.errors import DataError
from pipelines.picture_files import PICTURE_SUFFIXES, open_picture

SIDES = ("before", "after")


@dataclass(frozen=True)
class PicturePair:
    """One pair.

    Attributes:
        name: what both files are called.
        before: upright RGB.
        after: upright RGB, of the same size.

    Raises:
        DataError: if the sizes differ.
    """

    name: str
    before: Image.Image
    after: Image.Image

    def __post_init__(self) -> None:
        if self.before.size != self.after.size:
            before, after = (f"{size[0]} x {size[1]}" for size in (self.before.size, self.after.size))
            raise DataError(
                f"The pair {self.name} has {before} pixels before and {after} after.", "Save both in one size."
            )


def holds_pairs(folder: Path) -> bool:
    """Whether a folder looks like one of pairs."""
    return any(_halves(folder))


def read_pairs(folder: Path) -> list[PicturePair]:
    """The pairs of a folder, in the order of their names.

    Raises:
        DataError: if there is no such folder or no pair in it, if a picture has no other half, cannot be read, or is
            of another size than its other half.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the folder that holds your pairs.")
    before, after = _halves(folder)
    if not before and not after:
        raise DataError(
            f"There is no pair in {folder}.",
            "Call the pictures fox.before.png and fox.after.png, or put them into before/ and after/ by one name.",
        )
    alone = sorted(before.keys() ^ after.keys())
    if alone:
        side, other = SIDES if alone[0] in before else SIDES[::-1]
        raise DataError(f"{alone[0]} in {folder} has a picture {side} and none {other}.", "Every pair needs both.")
    return [PicturePair(name, open_picture(before[name]), open_picture(after[name])) for name in sorted(before)]


def _halves(folder: Path) -> Sequence[dict[str, Path]]:
    """The pictures before and after, by name."""
    found: list[dict[str, Path]] = []
    for side in SIDES:
        beside = {path.stem.removesuffix(f".{side}"): path for path in _pictures(folder) if _ends(path, side)}
        inside = {path.stem: path for path in _pictures(folder / side)}
        found.append(beside | inside)
    return found


def _ends(path: Path, side: str) -> bool:
    return path.stem.endswith(f".{side}")


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".")
