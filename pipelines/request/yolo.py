"""YOLO's files of boxes, and the lists that give their class names. Importable without torch.

A label file has a line for each thing: the number of its class, then centre and size in fractions, or a polygon. Names
of the classes stand in `classes.txt`, a name a line, or under `names` in `data.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import RequestError

CLASSES = "classes.txt"
LEVELS = 4
"""In so many folders the classes are looked for: that of a label file and those around it, as in `labels/train/`."""

LIMIT = 1 << 20
"""Largest list of classes, in bytes."""


def holds_labels(text: str) -> bool:
    """Return whether a text is a label file that is not empty.

    >>> holds_labels("0 0.5 0.5 0.2 0.2"), holds_labels("4 wolves at sea"), holds_labels("")
    (True, False, False)
    """
    lines = [line.split() for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    try:
        return bool(lines) and all(len(line) >= 5 and min(map(float, line)) > -1 for line in lines)
    except ValueError:
        return False


def class_names(label: Path) -> tuple[list[str], Path]:
    """Return the class names of a label file, and the file they come from: the nearest in its folder or above.

    Raises:
        RequestError: if there is none, or it does not name them.
    """
    for folder in [*label.absolute().parents][:LEVELS]:
        if (folder / CLASSES).is_file():
            return _read(folder / CLASSES).splitlines(), folder / CLASSES
        told = sorted(folder.glob("*.y*ml"), key=lambda path: (path.stem != "data", path.name))
        for path in told:
            if (names := _in_yaml(path)) is not None:
                return names, path
    raise RequestError(
        f"There is no {CLASSES} or data.yaml that says what the numbers of {label} mean.",
        f"Put {CLASSES} beside it, a name a line.",
    )


def rows(text: str, label: Path) -> list[tuple[str, Sequence[float]]]:
    """Return phrase and edges in fractions of each line; a confidence is left out, a polygon becomes its box.

    Args:
        text: of the label file.
        label: path of the label file, for the names of its classes.

    Raises:
        RequestError: as `class_names`, or for a class that has no name.
        ValueError: for a line that is none.
    """
    names, source = class_names(label) if text.strip() else ([], label)
    found: list[tuple[str, Sequence[float]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        values = [float(value) for value in line.split()]
        if not values:
            continue
        which = int(values[0]) if values[0].is_integer() else -1
        if not 0 <= which < len(names) or not names[which].strip():
            raise RequestError(f"Class {values[0]:g} is none of the {len(names)} of {source}.", "Complete that file.")
        if len(values) in (5, 6):
            x, y, width, height = values[1:5]
            edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        elif len(values) >= 7 and len(values) % 2:
            across, down = values[1::2], values[2::2]
            edges = [min(across), min(down), max(across), max(down)]
        else:
            raise ValueError(f"line {number} has {len(values)} numbers, not a class with a box or a polygon")
        found.append((names[which].strip(), edges))
    return found


def _read(path: Path) -> str:
    if path.stat().st_size > LIMIT:
        raise RequestError(f"{path.name} has more than {LIMIT >> 20} MiB.", "Name the classes alone there.")
    return path.read_text(encoding="utf-8-sig")


def _in_yaml(path: Path) -> list[str] | None:
    """Return the names in a YAML file, a list or by their numbers; None if it has none.

    Raises:
        RequestError: if it is no YAML, or they are no list of names.
    """
    try:
        # Every scalar stays text: a class may be called no, 7 or null.
        told: Any = yaml.load(_read(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"{path} is no YAML that can be read: {first:.100}.", "Put it right.") from None
    names = told.get("names") if isinstance(told, dict) else None
    if names is None:
        return None
    if isinstance(names, Mapping) and all(str(key).isdecimal() and len(str(key)) < 6 for key in names):
        numbered = {int(key): name for key, name in names.items()}
        names = [numbered.get(number, "") for number in range(max(numbered, default=-1) + 1)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"The names in {path} are no list.", "Write names: [wolf, house], or 0: wolf in lines.")
    return names
