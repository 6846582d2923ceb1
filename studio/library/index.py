"""Index of a folder of concepts: what each header says, kept by name, time and size of the file. Needs no torch.

Reading a header takes a millisecond, so a library of 5,000 would take seconds at every look. Entries are kept in memory
and in a hidden SQLite file beside the concepts; both may be deleted at any time, and a folder that cannot be written to
is kept in memory alone.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pipelines.concepts import card as cards
from pipelines.concepts import headers, lora_keys
from pipelines.concepts.card import ConceptCard
from pipelines.request.texts import encodable

FILE = ".index.sqlite"
FOLDERS = 8
"""Folders whose entries are kept in memory."""


class Stamp(NamedTuple):
    """Signs that a file has not changed."""

    changed: int
    """Time of the last change in nanoseconds."""
    size: int
    inode: int


class Known(NamedTuple):
    """The card of a file, or why it has none."""

    stamp: Stamp
    card: ConceptCard | None
    problem: str


_known: dict[Path, dict[str, Known]] = {}
_lock = threading.Lock()


def looked_at(folder: Path, read: Callable[[Path], tuple[ConceptCard | None, str]]) -> Iterator[tuple[Path, Known]]:
    """Return the concepts of a folder by name; `read` is asked for new and changed files alone.

    Args:
        folder: of `.safetensors` files.
        read: returns the card of a file, or None and the reason.
    """
    there = dict(sorted(_stamps(folder)))
    with _lock:
        place = folder.absolute()
        known = _known.pop(place, None)
        if known is None:
            known = _stored(folder)
        fresh = {name: Known(stamp, *read(folder / name)) for name, stamp in there.items() if _new(known, name, stamp)}
        gone = known.keys() - there.keys()
        _known[place] = {name: fresh.get(name) or known[name] for name in there}
        while len(_known) > FOLDERS:
            del _known[next(iter(_known))]
        if fresh or gone:
            _store(folder, fresh, gone)
        entries = list(_known[place].items())
    return ((folder / name, one) for name, one in entries)


def _new(known: Mapping[str, Known], name: str, stamp: Stamp) -> bool:
    return name not in known or known[name].stamp != stamp


def _stamps(folder: Path) -> Iterator[tuple[str, Stamp]]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.endswith(".safetensors"):
                with suppress(OSError):  # deleted a moment ago
                    about = entry.stat()
                    yield entry.name, Stamp(about.st_mtime_ns, about.st_size, about.st_ino)


# -- on disk ----------------------------------------------------------------------------------------------------


def _version() -> int:
    """Return a number of the code that reads headers: what another version has read is read again."""
    sources = (Path(str(module.__file__)).read_bytes() for module in (cards, headers, lora_keys))
    return zlib.crc32(b"".join(sources)) & 0x7FFFFFFF


def _stored(folder: Path) -> dict[str, Known]:
    """Return the entries on disk; none where there are none, they are damaged or of another version."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=0.2)) as base:
            if base.execute("PRAGMA user_version").fetchone()[0] != _version():
                return {}
            return dict(
                _entry(*row) for row in base.execute("SELECT name, changed, size, inode, card, problem FROM known")
            )
    except (sqlite3.Error, ValidationError, TypeError, OSError):
        return {}


def _entry(name: str, changed: int, size: int, inode: int, card: str, problem: str) -> tuple[str, Known]:
    about = ConceptCard.model_validate_json(card) if card else None
    return str(name), Known(Stamp(int(changed), int(size), int(inode)), about, str(problem))


def _store(folder: Path, fresh: Mapping[str, Known], gone: Iterable[str]) -> None:
    """Write what is new; a folder that cannot be written to, or a database in use, is left as it is."""
    file = folder / FILE
    rows = [
        (name, *one.stamp, "" if one.card is None else one.card.model_dump_json(), one.problem)
        for name, one in fresh.items()
        if encodable(name)
    ]
    for _ in range(2):
        try:
            with closing(sqlite3.connect(file, timeout=0.2)) as base, base:
                if base.execute("PRAGMA user_version").fetchone()[0] != _version():
                    base.execute("DROP TABLE IF EXISTS known")
                    base.execute(f"PRAGMA user_version = {_version()}")
                base.execute(
                    "CREATE TABLE IF NOT EXISTS known (name TEXT PRIMARY KEY, changed INTEGER, size INTEGER,"
                    " inode INTEGER, card TEXT, problem TEXT)"
                )
                base.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?)", rows)
                base.executemany("DELETE FROM known WHERE name = ?", [(name,) for name in gone if encodable(name)])
            return
        except (sqlite3.OperationalError, OSError):  # locked, full, or closed to us
            return
        except sqlite3.DatabaseError:  # no database: it holds nothing that cannot be read again
            with suppress(OSError):
                file.unlink()
