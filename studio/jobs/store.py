"""The record of all jobs: one SQLite file that server and workers write to, each in transactions of its own.

States change by compare-and-set, so that whoever comes second changes nothing: two servers, or a server that was
started again beside a worker of the old one, never run a job twice. Events have a number within their job, and stay.
"""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import Conflict, Unknown
from pipelines.exhaustion import hardship
from studio.jobs.database import connect, prepare
from studio.jobs.rows import ENDED as ENDED
from studio.jobs.rows import LIVE as LIVE
from studio.jobs.rows import Event, Job, Kind, Mark, State, job_of, jobs_of, told_by

ATTEMPTS = 4
"""Most attempts at a job whose process vanishes without a message."""


class Record(Protocol):
    """The record as workers use it: a `Ledger`, or an actor on the server's machine that has one."""

    def claim(self, job: str, pid: int, born: float) -> bool:
        """Assign a queued job to a process; return false if another was first or it waits no more."""
        ...

    def get(self, job: str) -> Job:
        """Return a job by its id; raises `Unknown`."""
        ...

    def add(self, kind: Kind, spec: dict[str, Any], key: str | None = None) -> Job:
        """Enter a job that follows from this one."""
        ...

    def wished(self, job: str) -> str:
        """Return what the process of a job is asked to do."""
        ...

    def move(self, job: str, before: Sequence[str], state: State, **changes: Any) -> bool:
        """Change a job's state if it is one of `before`; return whether it was."""
        ...

    def tell(self, job: str, kind: str, data: dict[str, Any]) -> None:
        """Add an event."""
        ...


_JOB = ", ".join(field.name for field in fields(Job))


class Ledger:
    """Reads and writes the record.

    Args:
        path: of the SQLite file; made if it is not there.

    Raises:
        ConfigError: if it is damaged, of another program, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self.asked = threading.Event()
        """Set when a job of this process joins the queue; whoever waits for one clears it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)  # what people ask for is theirs; the files that SQLite puts beside it follow
        prepare(path, self._connection)

    @property
    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect(self.path)
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk may have ended it
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise hardship(error) or error from None

    def close(self) -> None:
        """Close this thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    # -- jobs ------------------------------------------------------------------------------------------------

    def add(self, kind: Kind, spec: dict[str, Any], key: str | None = None) -> Job:
        """Enter a job at the end of the queue; with a `key` that was used before, return the job of that time.

        Raises:
            Conflict: if the key was used for something else.
        """
        text = json.dumps(spec, sort_keys=True)
        with self._transaction() as connection:
            if key is not None:
                row = connection.execute(f"SELECT {_JOB} FROM jobs WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    if (row["kind"], row["spec"]) != (kind, text):
                        raise Conflict("This key was used for another job.", "Use a new Idempotency-Key for each.")
                    return job_of(row)
            name = secrets.token_hex(8)
            connection.execute(
                "INSERT INTO jobs (id, kind, state, spec, created, key) VALUES (?, ?, 'queued', ?, ?, ?)",
                (name, kind, text, time.time(), key),
            )
            _event(connection, name, "state", {"state": "queued"})
        self.asked.set()
        return self.get(name)

    def get(self, job: str) -> Job:
        """Return a job by its id.

        Raises:
            Unknown: if there is none.
        """
        row = self._connection.execute(f"SELECT {_JOB} FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            raise Unknown(f"There is no job {job!r:.60}.", "It may have been deleted.")
        return job_of(row)

    def list(self, kind: Kind | None = None, states: Sequence[str] = (), limit: int = 100) -> list[Job]:
        """Return jobs, the newest first."""
        return self.page(kind, states, limit)[0]

    def page(
        self, kind: Kind | None = None, states: Sequence[str] = (), limit: int = 100, before: int | None = None
    ) -> tuple[list[Job], int | None]:
        """Return jobs, the newest first, and the number before which the next of them are; None if these are all.

        Args:
            kind: of the jobs; None for all.
            states: of the jobs; all if there are none.
            limit: most jobs.
            before: number that an earlier page returned.
        """
        where, values = ["1"], []
        for term, given in (("kind = ?", kind), ("number < ?", before)):
            if given is not None:
                where.append(term)
                values.append(given)
        if states:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += states
        rows = self._connection.execute(
            f"SELECT {_JOB}, number FROM jobs WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?",
            (*values, limit + 1),
        ).fetchall()
        return list(jobs_of(rows[:limit])), int(rows[limit - 1]["number"]) if len(rows) > limit else None

    def queue(self) -> list[Job]:
        """Return waiting jobs in their order: the oldest first, but for those that were put elsewhere."""
        rows = self._connection.execute(f"SELECT {_JOB} FROM jobs WHERE state = 'queued' ORDER BY rank, number")
        return list(jobs_of(rows))

    def places(self) -> dict[str, tuple[int, float, int]]:
        """Return what jobs that have not ended are sorted by: running, waiting, paused; then rank, if they wait."""
        rows = self._connection.execute(
            "SELECT id, CASE state WHEN 'running' THEN 0 WHEN 'queued' THEN 1 ELSE 2 END,"
            " CASE state WHEN 'queued' THEN rank ELSE 0 END, number FROM jobs"
            " WHERE state IN ('running', 'queued', 'paused')"
        )
        return {job: (state, rank, number) for job, state, rank, number in rows}

    def put(self, job: str, first: bool) -> bool:
        """Put a waiting job before or behind all others that wait; return false if it waits no more."""
        end, step = ("MIN", "- 1") if first else ("MAX", "+ 1")
        with self._transaction() as connection:
            return bool(
                connection.execute(
                    f"UPDATE jobs SET rank = (SELECT {end}(rank) {step} FROM jobs WHERE state = 'queued') "
                    "WHERE id = ? AND state = 'queued'",
                    (job,),
                ).rowcount
            )

    # -- pictures ----------------------------------------------------------------------------------------------

    def marks(self) -> dict[tuple[str, str], Mark]:
        """Return what people said of pictures, by job and name of the file."""
        rows = self._connection.execute("SELECT job, name, favourite, board, tags FROM marks")
        return {
            (row["job"], row["name"]): Mark(bool(row["favourite"]), row["board"], tuple(row["tags"].split()))
            for row in rows
        }

    def mark(self, job: str, name: str, mark: Mark) -> None:
        """Keep what people said of a picture.

        Raises:
            Unknown: if there is no such job.
        """
        self.get(job)
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO marks (job, name, favourite, board, tags) VALUES (?, ?, ?, ?, ?) ON CONFLICT (job, name) "
                "DO UPDATE SET favourite = excluded.favourite, board = excluded.board, tags = excluded.tags",
                (job, name, int(mark.favourite), mark.board, " ".join(mark.tags)),
            )

    def move(self, job: str, before: Sequence[str], state: State, **changes: Any) -> bool:
        """Change a job's state if it is one of `before`; return whether it was.

        Args:
            job: its id.
            before: states to change from.
            state: the new one.
            changes: further columns.
        """
        if state in ENDED:
            changes["finished"] = time.time()
        if "results" in changes:
            changes["results"] = json.dumps(changes["results"])
        if state != "running":
            changes |= {"wish": "", "wished": None, "pid": None, "born": None}
        names = ", ".join(f"{name} = ?" for name in ("state", *changes))
        names += ", begun = begun + 1" if state == "running" else ""
        holes = ", ".join("?" * len(before))
        with self._transaction() as connection:
            changed = connection.execute(
                f"UPDATE jobs SET {names} WHERE id = ? AND state IN ({holes})",
                (state, *changes.values(), job, *before),
            ).rowcount
            if changed:
                told = {name: changes[name] for name in ("error", "hint") if changes.get(name)}
                _event(connection, job, "state", {"state": state, **told})
        if changed and state == "queued":
            self.asked.set()
        return bool(changed)

    def claim(self, job: str, pid: int, born: float) -> bool:
        """Assign a queued job to a process; return false if another was first or it waits no more."""
        begun = {"pid": pid, "born": born, "started": time.time(), "error": "", "hint": "", "finished": None}
        return self.move(job, ("queued",), "running", **begun)

    def requeue(self, job: str) -> bool:
        """Let a paused job go on, or one that is about to pause; return false if it is neither."""
        if self.move(job, ("paused",), "queued"):
            return True
        with self._transaction() as connection:
            return bool(
                connection.execute(
                    "UPDATE jobs SET wish = '', wished = NULL WHERE id = ? AND state = 'running' AND wish = 'pause'",
                    (job,),
                ).rowcount
            )

    def keyed(self, key: str) -> Job | None:
        """Return the job that was entered with this key, if there is one."""
        row = self._connection.execute(f"SELECT {_JOB} FROM jobs WHERE key = ?", (key,)).fetchone()
        return None if row is None else job_of(row)

    def wish(self, job: str, wish: str) -> bool:
        """Ask the process of a running job for something; a wish to cancel is not taken back."""
        with self._transaction() as connection:
            return bool(
                connection.execute(
                    "UPDATE jobs SET wish = ?, wished = ? WHERE id = ? AND state = 'running' AND wish != 'cancel'",
                    (wish, time.time(), job),
                ).rowcount
            )

    def wished(self, job: str) -> str:
        """Return what the process of a job is asked to do."""
        row = self._connection.execute("SELECT wish FROM jobs WHERE id = ?", (job,)).fetchone()
        return "cancel" if row is None else row["wish"]

    def names(self, text: str) -> bool:
        """Return whether the order of any job holds this text, an id for example."""
        row = self._connection.execute("SELECT 1 FROM jobs WHERE instr(spec, ?) LIMIT 1", (text,))
        return row.fetchone() is not None

    def delete(self, job: str) -> None:
        """Delete a job that has ended.

        Raises:
            Unknown: if there is none.
            Conflict: if it has not ended.
        """
        row = self._connection.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            self.get(job)
        elif row["state"] not in ENDED:
            raise Conflict(f"The job {job} has not ended.", "Cancel it first.")
        with self._transaction() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (job,))

    # -- events ----------------------------------------------------------------------------------------------

    def tell(self, job: str, kind: str, data: dict[str, Any]) -> None:
        """Add an event; a step also sets the progress of the job. Infinite and undefined figures become None."""
        with self._transaction() as connection:
            _event(connection, job, kind, data)
            if kind == "step":
                connection.execute(
                    "UPDATE jobs SET step = ?, steps = ? WHERE id = ?", (data["step"], data["steps"], job)
                )

    def events(self, job: str, after: int = 0, limit: int = 1000, kinds: Sequence[str] = ()) -> list[Event]:
        """Return events with a number above `after`, in order.

        Raises:
            Unknown: if there is no such job.
        """
        only = f"AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        rows = self._connection.execute(
            f"SELECT seq, at, kind, data FROM events WHERE job = ? AND seq > ? {only} ORDER BY seq LIMIT ?",
            (job, after, *kinds, limit),
        ).fetchall()
        if not rows:
            self.get(job)
        return [Event(row["seq"], row["at"], row["kind"], data) for row in rows if (data := told_by(row)) is not None]


def _event(connection: sqlite3.Connection, job: str, kind: str, data: dict[str, Any]) -> None:
    # The insert is one statement within a transaction that holds the write lock: numbers have neither gaps nor twins.
    connection.execute(
        "INSERT INTO events (job, seq, at, kind, data) SELECT id, "
        "(SELECT COALESCE(MAX(seq), 0) + 1 FROM events WHERE job = id), ?, ?, ? FROM jobs WHERE id = ?",
        (time.time(), kind, json.dumps(_finite(data), allow_nan=False), job),
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
