"""`studio examples`: where the example pictures and the example concept lie, and a copy of them."""

from __future__ import annotations

from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

from pipelines.files import whole_file


def examples(folder: Path | None = None) -> None:
    """Print the folder of the examples, or copy them into one of yours.

    Parameters
    ----------
    folder
        Where the copies go; what is there already is kept. None are made without it.
    """
    source = files("studio") / "examples"
    if folder is None:
        with as_file(source) as found:
            print(found)
    else:
        _copy(source, folder)
        print(folder)


def _copy(source: Traversable, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        place = folder / entry.name
        if entry.is_dir():
            _copy(entry, place)
        elif not place.exists():
            with whole_file(place) as path:
                path.write_bytes(entry.read_bytes())
