"""Pairs of pictures in a folder, before and after a change: `fox.before.png` beside `fox.after.png`, or two subfolders.

With subfolders it is the names that belong together: `before/fox.png` and `after/fox.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipelines.errors import DataError
from pipelines.pictures.files import PICTURE_SUFFIXES, open_picture

SIDES = ("before", "after")


@dataclass(frozen=True)
class PicturePair:
    """One pair.

    Attributes:
        name: common name of both files.
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
    """Return whether a folder looks like one of pairs."""
    return any(_halves(folder))


def read_pairs(folder: Path, skip: bool = False) -> list[PicturePair]:
    """Read the pairs of a folder, in the order of their names.

    Args:
        folder: folder to read.
        skip: leave out pairs that lack a half, cannot be read or are of two sizes.

    Raises:
        DataError: if there is no such folder or no pair in it, or else for such pairs, naming all of them.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the folder that holds your pairs.")
    before, after = _halves(folder)
    if not before and not after:
        raise DataError(
            f"There is no pair in {folder}.",
            "Call the pictures fox.before.png and fox.after.png, or put them into before/ and after/ by one name.",
        )
    pairs: list[PicturePair] = []
    doubtful: dict[str, str] = {}
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            side, other = SIDES if name in before else SIDES[::-1]
            doubtful[name] = f"it has a picture {side} and none {other}."
            continue
        try:
            pairs.append(PicturePair(name, open_picture(before[name]), open_picture(after[name])))
        except DataError as error:
            doubtful[name] = str(error)
    if doubtful and not (skip and pairs):
        count = "1 pair" if len(doubtful) == 1 else f"{len(doubtful)} pairs"
        said = " ".join(f"{name}: {why}" for name, why in doubtful.items())
        raise DataError(
            f"{count} in {folder} cannot be learned from. {said}", "Put that right, or learn without: --skip-doubtful."
        )
    return pairs


def _halves(folder: Path) -> Sequence[dict[str, Path]]:
    """Return the pictures before and after, by name."""
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
