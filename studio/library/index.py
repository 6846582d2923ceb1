"""Index of a folder of concepts: what each header says, kept by name, time and size of the file. Needs no torch.

Reading a header takes a millisecond, so a library of 5,000 would take seconds at every look. Entries are kept in memory
and in a hidden SQLite file beside the concepts, with small copies of their previews; both may be deleted at any time,
and a folder that cannot be written to is kept in memory alone.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pipelines.concepts import card as cards
from pipelines.concepts import headers, lora_keys
from pipelines.concepts.card import ConceptCard
from pipelines.concepts.headers import FAMILY_NAMES
from pipelines.request.texts import encodable, readable

FILE = ".index.sqlite"
FOLDERS = 8
"""Folders whose entries are kept in memory."""

ENDING = ".safetensors"

LARGEST = 2**63 - 1
"""Largest number of SQLite; times after 2262 and inodes of some file systems are larger."""


class Stamp(NamedTuple):
    """Signs that a file has not changed."""

    changed: int
    """Time of the last change in nanoseconds."""
    size: int
    inode: int


UNKNOWN = Stamp(0, 0, 0)


@dataclass(frozen=True)
class IndexEntry:
    """A file of the library.

    Attributes:
        path: of the file.
        card: its card; None if it cannot be read.
        problem: why it cannot be read.
        stamp: of the file when it was read.
    """

    path: Path
    card: ConceptCard | None
    problem: str = ""
    stamp: Stamp = UNKNOWN

    @cached_property
    def name(self) -> str:
        """The name in the library."""
        return readable(self.path.stem)

    @cached_property
    def words(self) -> str:
        """Everything by which it is searched, in small letters."""
        if self.card is None:
            return f"{self.name} damaged {self.problem}".lower()
        card = self.card
        family = FAMILY_NAMES.get(card.family, "an unknown base")
        figures = " ".join(f"{name} {value:.2f}" for name, value in card.scores.items())
        return f"{self.name} {card.token} {card.kind} {card.method} for {family} {figures}".lower().replace("_", " ")

    def holds(self, words: Iterable[str]) -> bool:
        """Return whether it is found by all of these words, in small letters."""
        return all(word in self.words for word in words)


_known: dict[tuple[Path, Path], dict[str, IndexEntry]] = {}
_lock = threading.Lock()


def looked_at(folder: Path, read: Callable[[Path], tuple[ConceptCard | None, str]]) -> list[IndexEntry]:
    """Return the concepts of a folder by name; `read` is asked for new and changed files alone.

    Args:
        folder: of `.safetensors` files.
        read: returns the card of a file, or None and the reason.
    """
    there = dict(sorted(_stamps(folder)))
    with _lock:
        place = (folder.absolute(), folder)  # entries have their paths as the folder was given
        known = _known.pop(place, None)
        if known is None:
            known = _stored(folder)
        fresh = {
            name: IndexEntry(folder / name, *read(folder / name), Stamp(*stamp))
            for name, stamp in there.items()
            if name not in known or known[name].stamp != stamp
        }
        gone = known.keys() - there.keys()
        _known[place] = {name: fresh.get(name) or known[name] for name in there} if fresh or gone else known
        while len(_known) > FOLDERS:
            del _known[next(iter(_known))]
        if fresh or gone:
            _store(folder, fresh, gone)
        return list(_known[place].values())


def _stamps(folder: Path) -> Iterator[tuple[str, tuple[int, int, int]]]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.endswith(ENDING):
                with suppress(OSError):  # deleted a moment ago
                    about = entry.stat()
                    yield entry.name, (about.st_mtime_ns & LARGEST, about.st_size, about.st_ino & LARGEST)


# -- on disk ----------------------------------------------------------------------------------------------------

TABLES = (
    "CREATE TABLE IF NOT EXISTS known (name TEXT PRIMARY KEY, changed INTEGER, size INTEGER, inode INTEGER,"
    " card TEXT, problem TEXT)",
    "CREATE TABLE IF NOT EXISTS pictures (name TEXT PRIMARY KEY, stamp TEXT, png BLOB)",
)
WAIT = 0.2  # seconds for another process that writes


def _version() -> int:
    """Return a number of the code that reads headers: what another version has read is read again."""
    sources = (Path(str(module.__file__)).read_bytes() for module in (cards, headers, lora_keys))
    return zlib.crc32(b"".join((*sources, *(table.encode() for table in TABLES)))) & 0x7FFFFFFF


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """Open what is on disk; None where there is nothing, or it is of another version."""
    file = folder / FILE
    if not file.is_file():
        yield None
        return
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT)) as base:
        yield base if base.execute("PRAGMA user_version").fetchone()[0] == _version() else None


def _stored(folder: Path) -> dict[str, IndexEntry]:
    """Return the entries on disk; none where there are none, they are damaged or of another version."""
    try:
        with _reading(folder) as base:
            if base is None:
                return {}
            rows = base.execute("SELECT name, changed, size, inode, card, problem FROM known ORDER BY name")
            return dict(_entry(folder, *row) for row in rows)
    except (sqlite3.Error, ValidationError, TypeError, OSError):
        return {}


def _entry(
    folder: Path, name: str, changed: int, size: int, inode: int, card: str, problem: str
) -> tuple[str, IndexEntry]:
    about = ConceptCard.model_validate_json(card) if card else None
    return name, IndexEntry(folder / name, about, str(problem), Stamp(int(changed), int(size), int(inode)))


def _store(folder: Path, fresh: Mapping[str, IndexEntry], gone: Iterable[str]) -> None:
    """Write what is new, and forget what is gone."""
    rows = [
        (name, *one.stamp, "" if one.card is None else one.card.model_dump_json(), one.problem)
        for name, one in fresh.items()
        if encodable(name)
    ]
    names = [(name,) for name in gone if encodable(name)]

    def change(base: sqlite3.Connection) -> None:
        base.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?)", rows)
        base.executemany("DELETE FROM known WHERE name = ?", names)
        base.executemany("DELETE FROM pictures WHERE name = ?", names)

    _write(folder, change)


def _write(folder: Path, change: Callable[[sqlite3.Connection], None]) -> None:
    """Change what is on disk; a folder that cannot be written to, or a database in use, is left as it is."""
    file = folder / FILE
    for _ in range(2):
        try:
            with closing(sqlite3.connect(file, timeout=WAIT)) as base, base:
                if base.execute("PRAGMA user_version").fetchone()[0] != _version():
                    base.execute("DROP TABLE IF EXISTS known")
                    base.execute("DROP TABLE IF EXISTS pictures")
                    base.execute(f"PRAGMA user_version = {_version()}")
                for table in TABLES:
                    base.execute(table)
                change(base)
            return
        except (sqlite3.OperationalError, OverflowError, OSError):  # locked, full, closed to us, or a number too large
            return
        except sqlite3.DatabaseError:  # no database: it holds nothing that cannot be read again
            with suppress(OSError):
                file.unlink()


def kept_picture(folder: Path, name: str, stamp: str) -> bytes | None:
    """Return the small copy of a concept's preview if it was kept when the preview had this stamp.

    Args:
        folder: of the library.
        name: of the concept's file.
        stamp: of the preview.
    """
    with suppress(sqlite3.Error, OSError), _reading(folder) as base:
        if base is not None:
            query = "SELECT png FROM pictures WHERE name = ? AND stamp = ?"
            row = base.execute(query, (name, stamp)).fetchone()
            return bytes(row[0]) if row and isinstance(row[0], bytes) else None
    return None


def keep_picture(folder: Path, name: str, stamp: str, png: bytes) -> None:
    """Keep the small copy of a concept's preview, in the place of an earlier one."""
    _write(folder, lambda base: _kept(base, name, stamp, png))


def _kept(base: sqlite3.Connection, name: str, stamp: str, png: bytes) -> None:
    base.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?)", (name, stamp, png))
