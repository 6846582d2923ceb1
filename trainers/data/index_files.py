"""Index files with facts on many pictures, `metadata.jsonl` and others. Needs no torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from pipelines.errors import DataError
from pipelines.pictures.files import PICTURE_SUFFIXES
from pipelines.words import composed
from trainers.data.caption_files import read_text, tidied

METADATA, TABLE, TEXT, PAIRS, REPEATS = "metadata.jsonl", "metadata.csv", "text.json", "pairs.json", "repeats.json"
INDICES = (METADATA, TABLE, TEXT, PAIRS)
"""Of several of these in a folder the first is read."""

CAPTION_KEYS = ("text", "caption", "prompt")
MOST = 10_000
"""Largest count of repeats."""

Captions = dict[Path, tuple[str, ...]]

LITTER = ("__macosx", "thumbs.db", "desktop.ini")
"""Files that systems leave in folders and archives; ignored without a note."""


def parsed(text: str, where: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f": {error.msg.lower()} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{where} is not JSON{why}.", "Put it right or remove it.") from None
    if not isinstance(value, dict):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(f"{where} is {kind}, not an object.", "Write {...} there.")
    return value


def captions(value: object, where: str) -> tuple[str, ...]:
    """Return one caption or a list of them, tidied, without empty ones."""
    found: list[str] = []
    for caption in value if isinstance(value, list) else [value]:
        if not isinstance(caption, str) or any("\ud800" <= letter <= "\udfff" for letter in caption):
            raise DataError(f"{where} has a caption that is no text: {caption!r:.40}.", "Write it as a string.")
        found.append(tidied(caption))
    return tuple(caption for caption in found if caption)


def listed_in(folder: Path, index: str, pictures: Sequence[Path]) -> Captions:
    """Read captions of `metadata.jsonl` or `metadata.csv`, by picture; several lines about one are several captions.

    Raises:
        DataError: if a line is malformed, or names what is not there.
    """
    listed: Captions = {}
    for where, row in _rows(folder / index):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where} has no file_name.", 'Write {"file_name": "fox.png", "text": "a {}"}.')
        path = inside(folder, name, where, pictures)
        said = next((row[key] for key in CAPTION_KEYS if row.get(key) not in (None, "", [])), [])
        listed[path] = listed.get(path, ()) + captions(said, where)
    return listed


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each line about a picture with its location in words."""
    text = read_text(path, path.name)
    if path.name == TABLE:
        heads, _, _ = text.partition("\n")
        # Spreadsheets of many countries write semicolons, pasted cells have tabs.
        mark = next((one for one in ",;\t" if len(heads.split(one)) > 1), ",")
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
        try:
            for row in table:
                yield f"Line {table.line_num} of {TABLE}", {name: value for name, value in row.items() if name}
        except csv.Error as error:
            raise DataError(f"{TABLE} is no table: {error}.", "Put it right or remove it.") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"Line {number} of {path.name}"
            yield where, parsed(line, where)


def inside(folder: Path, name: str, where: str, pictures: Sequence[Path]) -> Path:
    """Return the picture that a name means; it must exist inside the folder.

    Raises:
        DataError: if it is not.
    """
    # Windows' rules take both kinds of slash and drive letters for what they are, on every system.
    parts = PureWindowsPath(name)
    if parts.anchor or ".." in parts.parts:
        raise DataError(f"{where} names {name}, which is outside the folder.", "Name files inside it only.")
    path = _there(folder, parts.parts)
    if path is None:
        raise DataError(f"{where} names {name:.200}, which is not there.", "Add the file, or remove what names it.")
    if path not in pictures and not _is_picture(path):
        kinds = ", ".join(PICTURE_SUFFIXES)
        raise DataError(f"{where} names {name}, which is no picture.", f"Name one of these kinds: {kinds}.")
    return path


def _is_picture(path: Path) -> bool:
    from trainers.data.mask_files import has_picture_suffix, masks_among  # which files are masks its folder tells

    siblings = [one for one in path.parent.iterdir() if one.is_file()]
    return has_picture_suffix(path) and path not in [mask for _, mask in masks_among(siblings)]


def _there(folder: Path, parts: Sequence[str]) -> Path | None:
    """Return the file of a name; else the only one whose name differs just in normal form or capitals."""
    path = folder.joinpath(*parts)
    try:
        if path.is_file():
            return path
        for part in parts:
            names = [one.name for one in folder.iterdir()]
            alike = [name for name in names if composed(name) == composed(part)]
            alike = alike or [name for name in names if composed(name).casefold() == composed(part).casefold()]
            if len(alike) != 1:
                return None
            folder = folder / alike[0]
        return folder if folder.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None


def texts_in(folder: Path, pictures: Sequence[Path]) -> Captions:
    """Read captions of ReVersion's `text.json`: file name with or without its ending -> captions with a `{}`.

    Raises:
        DataError: if it is malformed, or names what is not there.
    """
    listed: Captions = {}
    for path, said, where in entries_in(folder, TEXT, pictures):
        found = captions(said, where)
        if found and not any("{}" in caption for caption in found):
            raise DataError(
                f"{where} has no {{}} in any of its captions.", "Write {} where the relation goes: a cat {} a box."
            )
        listed[path] = listed.get(path, ()) + found
    return listed


def pairs_in(folder: Path, pictures: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """Read the two things that `pairs.json` names for each picture.

    Raises:
        DataError: if it is malformed, or names what is not there.
    """
    listed: dict[Path, tuple[str, str]] = {}
    for path, said, where in entries_in(folder, PAIRS, pictures):
        names = captions(said, where)
        if not isinstance(said, list) or len(said) != 2 or len(names) != 2:
            raise DataError(f"{where} names {len(names)} things.", 'Name two, the first one first: ["cat", "box"].')
        listed[path] = (names[0], names[1])
    return listed


def repeats_in(folder: Path, pictures: Sequence[Path]) -> dict[Path, int]:
    """Read how often pictures come in an epoch from `repeats.json`; none without it.

    Raises:
        DataError: if it is malformed, or names what is not there.
    """
    if not (folder / REPEATS).is_file():
        return {}
    counts: dict[Path, int] = {}
    for path, said, where in entries_in(folder, REPEATS, pictures):
        if not isinstance(said, int) or isinstance(said, bool) or not 1 <= said <= MOST:
            raise DataError(f"{where} is {said!r:.40}.", f"Give a whole number from 1 to {MOST}.")
        counts[path] = said
    return counts


def entries_in(folder: Path, index: str, pictures: Sequence[Path]) -> Iterator[tuple[Path, object, str]]:
    """Return picture, entry and line of an index file; pictures may be named without their ending."""
    whole: dict[str, list[Path]] = {}
    stems: dict[str, list[Path]] = {}
    for path in pictures:
        relative = path.relative_to(folder)
        whole.setdefault(composed(relative.as_posix()), []).append(path)
        stems.setdefault(composed(relative.with_suffix("").as_posix()), []).append(path)
    for name, said in parsed(read_text(folder / index, index), index).items():
        where = f"The entry {name!r:.100} of {index}"
        named = whole.get(composed(name)) or stems.get(composed(name)) or []
        if len(named) > 1:
            both = " and ".join(path.name for path in named[:2])
            raise DataError(f"{where} may mean {both}.", "Write the whole file name.")
        yield named[0] if named else inside(folder, name, where, pictures), said, where


def entries(folder: Path) -> list[Path]:
    """Return the files in a folder, sorted by name, without hidden files.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        seen = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in LITTER]
        return sorted(seen)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.", "Allow reading it.") from None
