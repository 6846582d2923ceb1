"""The SQLite file of the record: opened, migrated, or refused with a way out."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import ConfigError

VERSION = 2
"""Version of the tables, in `user_version` of the file; raised with each step of `STEPS`."""

TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, spec TEXT NOT NULL,
  created REAL NOT NULL, started REAL, finished REAL, step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '', hint TEXT NOT NULL DEFAULT '', wish TEXT NOT NULL DEFAULT '', wished REAL,
  pid INTEGER, born REAL, lost INTEGER NOT NULL DEFAULT 0,
  begun INTEGER NOT NULL DEFAULT 0, results TEXT NOT NULL DEFAULT '[]', key TEXT UNIQUE);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state);
CREATE TABLE IF NOT EXISTS events (
  job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, seq INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL,
  data TEXT NOT NULL, PRIMARY KEY (job, seq)) WITHOUT ROWID;
"""
LATER = {
    "wished": "REAL",
    "lost": "INTEGER NOT NULL DEFAULT 0",
    "begun": "INTEGER NOT NULL DEFAULT 0",
    "results": "TEXT NOT NULL DEFAULT '[]'",
    "key": "TEXT",
}
"""Columns of jobs that files without a version may lack."""

WAY_OUT = (
    "Move it and its -wal and -shm away, or give another --folder; concepts and pictures stay, and are found again."
)


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection to the file, made if it is not there.

    Raises:
        ConfigError: if it is no SQLite file, or cannot be opened.
    """
    try:
        connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.OperationalError as error:
        raise ConfigError(f"The record {path} cannot be opened: {error}.", "Check who owns it, and the disk.") from None
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"The record {path} is damaged, or something else: {error}.", WAY_OUT) from None
    return connection


def prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Create the tables, or migrate those of an older version.

    Raises:
        ConfigError: if the file is damaged, of another program, or of a newer version.
    """
    try:
        if (sound := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ConfigError(f"The record {path} is damaged: {sound}.".replace("\n", " "), WAY_OUT)
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version > VERSION:
            raise ConfigError(
                f"The record {path} has version {version}; this program writes {VERSION}.", f"Update it. Or: {WAY_OUT}"
            )
        if tables and not {"jobs", "events"} <= tables:
            raise ConfigError(
                f"{path} is the file of another program: it holds {', '.join(sorted(tables)[:5])}.", WAY_OUT
            )
        connection.execute("BEGIN IMMEDIATE")
        try:
            for step in STEPS[version:]:
                step(connection)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"The record {path} is damaged, or something else: {error}.", WAY_OUT) from None


def _first(connection: sqlite3.Connection) -> None:
    """Create the first version, from nothing or from a file that was written before it had a version."""
    for statement in filter(str.strip, TABLES.split(";")):
        connection.execute(statement)
    there = {row["name"] for row in connection.execute("PRAGMA table_info(jobs)")}
    for name, kind in LATER.items():
        if name not in there:
            connection.execute(f"ALTER TABLE jobs ADD COLUMN {name} {kind}")
    connection.execute("CREATE UNIQUE INDEX IF NOT EXISTS by_key ON jobs (key)")


def _second(connection: sqlite3.Connection) -> None:
    """Add the order in which waiting jobs were put by people, and what they said of pictures."""
    connection.execute("ALTER TABLE jobs ADD COLUMN rank REAL NOT NULL DEFAULT 0")
    connection.execute(
        "CREATE TABLE marks (job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, name TEXT NOT NULL, "
        "favourite INTEGER NOT NULL DEFAULT 0, board TEXT NOT NULL DEFAULT '', tags TEXT NOT NULL DEFAULT '', "
        "PRIMARY KEY (job, name)) WITHOUT ROWID"
    )


STEPS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first, _second)
"""Step number n brings a file of version n to n + 1."""
