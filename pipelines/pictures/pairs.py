"""Pairs of pictures in a folder, before and after a change. Needs no torch.

`fox.before.png` beside `fox.after.png`, or two subfolders in which names belong together: `before/fox.png` and
`after/fox.png`. Beside `fox.after.png` the picture before may also be plain `fox.png`.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.pictures.files import PICTURE_SUFFIXES

SIDES = ("before", "after")


def halves(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the pictures before and after, each by the name of its pair; a pair may lack one of them."""
    files = _pictures(folder)
    before, after = (
        {_name(path, side): path for path in files if path.stem.endswith(f".{side}")}
        | {path.stem: path for path in _pictures(folder / side)}
        for side in SIDES
    )
    plain = {path.stem: path for path in files if path.stem in after}
    return plain | before, after


def holds_pairs(folder: Path) -> bool:
    """Return whether a folder looks like one of pairs."""
    return any(halves(folder))


def _name(path: Path, side: str) -> str:
    return path.stem.removesuffix(f".{side}")


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.name[0] != ".")
