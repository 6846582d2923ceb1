"""Pairs of pictures, before and after a change, read into examples; folders within are tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from pipelines.errors import DataError
from pipelines.pictures.files import decoded, laid_on
from pipelines.pictures.pairs import SIDES, halves, holds_pairs
from trainers.data.folders import Example, Reading
from trainers.data.stored import Stored


def task_of(example: Example) -> str:
    """Return the task of a pair, the folder it came from; empty for the only one."""
    return example.name.rpartition("/")[0]


def read_tasks(folder: Path) -> Reading:
    """Read the pairs of a folder as one task, or of its subfolders as one task each.

    Pairs that lack a half, cannot be read or are of two sizes are among the doubtful.

    Raises:
        DataError: if there is no such folder or no pair in it.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    several = [] if holds_pairs(folder) else [path for path in inside if holds_pairs(path)]
    readings = [_pairs(path, f"{path.name}/") for path in several] or [_pairs(folder, "")]
    return Reading(
        tuple(one for reading in readings for one in reading.examples),
        convention=f"{len(several)} folders of pairs" if several else "pairs",
        doubtful={name: why for reading in readings for name, why in reading.doubtful.items()},
        transparent=tuple(name for reading in readings for name in reading.transparent),
    )


def read_pairs(folder: Path) -> Reading:
    """Read the pairs of a folder as one task; the others as `read_tasks` does.

    Raises:
        DataError: if there is no such folder or no pair in it.
    """
    return replace(_pairs(folder, ""), convention="pairs")


def _pairs(folder: Path, prefix: str) -> Reading:
    """Read the pairs of one folder, in the order of their names."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the folder that holds your pairs.")
    before, after = halves(folder)
    if not before and not after:
        raise DataError(
            f"There is no pair in {folder}.",
            "Call the pictures fox.before.png and fox.after.png, or put them into before/ and after/ by one name.",
        )
    examples: list[Example] = []
    doubtful: dict[str, str] = {}
    transparent: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            side, other = SIDES if name in before else SIDES[::-1]
            doubtful[prefix + name] = f"it has a picture {side} and none {other}."
            continue
        try:
            stored = [decoded(path, path.name) for path in (before[name], after[name])]
            first, second = (
                Stored.of(path, laid_on(one, "white"), _on_white)
                for path, one in zip((before[name], after[name]), stored, strict=True)
            )
            examples.append(Example(prefix + name, first, after_source=second))
        except DataError as error:
            doubtful[prefix + name] = str(error)
        else:
            transparent += [prefix + name] if any(one.mode == "RGBA" for one in stored) else []
    return Reading(tuple(examples), doubtful=doubtful, transparent=tuple(transparent))


def _on_white(path: Path) -> Image.Image:
    return laid_on(decoded(path, path.name), "white")
