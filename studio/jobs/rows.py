"""Jobs and events as rows of the record: a damaged row does not affect the others."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from pipelines.errors import StudioError
from pipelines.request.texts import readable, without_paths

_log = logging.getLogger(__name__)
Kind = Literal["generation", "training", "import", "score", "download", "attention", "caption"]
State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
LIVE = ("queued", "running", "paused")


class DamagedRecord(StudioError):  # noqa: N818 - what it says
    """A row of the record that cannot be read."""


@dataclass(frozen=True)
class Job:
    """A piece of long work.

    Attributes:
        id: unguessable name.
        kind: kind of work.
        state: its state.
        spec: the order; files in it are ids.
        created: when it was asked for, in seconds since 1970.
        started: when it was last begun.
        finished: when it ended.
        step: steps done.
        steps: steps planned; 0 while unknown.
        error: the error in a sentence.
        hint: the next step.
        wish: order to its process: "cancel", "pause" or nothing.
        wished: when that was asked.
        pid: of the process that runs it.
        born: when that process began, which tells it from a later one with the same number.
        lost: times that its process vanished.
        begun: times that it was claimed.
        results: files it made, within the folder of all jobs.
    """

    id: str
    kind: Kind
    state: State
    spec: dict[str, Any]
    created: float
    started: float | None = None
    finished: float | None = None
    step: int = 0
    steps: int = 0
    error: str = ""
    hint: str = ""
    wish: str = ""
    wished: float | None = None
    pid: int | None = None
    born: float | None = None
    lost: int = 0
    begun: int = 0
    results: tuple[str, ...] = ()

    @property
    def concepts(self) -> list[str]:
        """Return those of its results that are concepts of the library."""
        return [name for name in self.results if name.startswith("concepts/") and name.endswith(".safetensors")]

    @property
    def files(self) -> dict[int, str]:
        """Return other results that are no pictures, gated layers and models, by their number."""
        others = enumerate(self.results)
        return {number: name for number, name in others if name not in self.concepts and not name.endswith(".png")}

    @property
    def ended(self) -> bool:
        """Return whether nothing more will come."""
        return self.state in ENDED


@dataclass(frozen=True)
class Event:
    """Something that happened in a job.

    Attributes:
        seq: its number within the job, from 1 without gaps.
        at: seconds since 1970.
        kind: "step", "phase", "note", "preview", "scores", "words" or "state".
        data: figures and texts.
    """

    seq: int
    at: float
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Mark:
    """Marks that people gave a picture.

    Attributes:
        favourite: whether it is one.
        board: the board it lies on; empty for none.
        tags: words it is found by, without spaces.
    """

    favourite: bool = False
    board: str = ""
    tags: tuple[str, ...] = ()


_JOB = tuple(field.name for field in fields(Job))


def job_of(row: sqlite3.Row) -> Job:
    """Return the job of a row; raises `DamagedRecord`."""
    values = {name: row[name] for name in _JOB}
    try:
        values["spec"], values["results"] = _read(values["spec"], dict), tuple(_read(values["results"], list))
    except ValueError:
        raise DamagedRecord(f"The record of the job {row['id']} is damaged.", "Delete it, and ask again.") from None
    return Job(**_without_paths(values))


def jobs_of(rows: Iterable[sqlite3.Row]) -> Iterator[Job]:
    """Return the jobs of rows; a damaged one is left out, and named in the log."""
    for row in rows:
        try:
            yield job_of(row)
        except DamagedRecord as error:
            _log.warning("%s", error)


def told_by(row: sqlite3.Row) -> dict[str, Any] | None:
    """Return the contents of an event; None if it is damaged."""
    try:
        return _without_paths(_read(row["data"], dict))
    except ValueError:
        _log.warning("Event %s of a job is damaged and left out.", row["seq"])
        return None


TOLD = ("text", "error", "hint")
"""Values that are sentences for people; readers may be far from the machine."""


def _without_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with folders of the server removed from sentences."""
    return values | {name: without_paths(values[name]) for name in TOLD if isinstance(values.get(name), str)}


def _read(text: str, kind: type[Any]) -> Any:
    """Read stored JSON of a kind; invalid characters in texts are replaced.

    Raises:
        ValueError: if it is none.
    """
    value = json.loads(text)
    if not isinstance(value, kind):
        raise ValueError("it holds something else")
    return _sendable(value) if "\\ud" in text else value


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {readable(name): _sendable(one) for name, one in value.items()}
    return [_sendable(one) for one in value] if isinstance(value, list) else value
