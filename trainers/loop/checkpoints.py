"""Training state on disk, so that an interrupted training can be resumed.

A state is a folder `step-00000050` with a manifest of SHA-256 sums. It is written under another name, flushed to the
disk, and only then renamed, so that a process killed at any moment leaves whole states alone. Older ones are removed
last, and only once the newest was read back and found whole: there is never less than one to go on from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from pipelines.errors import ConfigError
from pipelines.events import Note, OnEvent, ignore
from pipelines.files import sync_folder, whole_file

STATE, LOG, MANIFEST, LATEST = "state.pt", "losses.jsonl", "manifest.json", "latest"
KEPT = 2
"""States that are kept: the newest, and one before it in case the newest is damaged later."""

SHARE = 0.1
"""Largest share of the time that goes into writing."""

BRIEF = 1.0
"""Seconds; a write that takes less is never put off."""

Log = list[dict[str, Any]]
"""Log of a training: step and terms of each report."""


class IncompleteCheckpoint(Exception):  # noqa: N818 - found while looking for a whole one, never shown by itself
    """A state that does not agree with its manifest."""


@dataclass
class Checkpoint:
    """The folder of a loop's state, and the identity of that state.

    Attributes:
        path: the folder of states; need not exist yet.
        every: steps between writes. A state of many gigabytes is written less often, so that no more than `SHARE` of
            the time goes into it.
        state: gives the tensors to keep (a nested dict).
        restore: puts them back; may refuse with a `ConfigError`.
    """

    path: Path
    every: int
    state: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]
    _took: float = field(default=0.0, init=False)
    _ended: float = field(default=0.0, init=False)
    _damaged: list[Path] = field(default_factory=list, init=False)

    def due(self, step: int) -> bool:
        """Return whether to write after `step` steps: enough steps are done, and the last write was long enough ago."""
        pause = self._took * (1 / SHARE - 1) if self._took > BRIEF else 0.0
        return step % self.every == 0 and time.monotonic() - self._ended >= pause

    def save(self, step: int, loop: dict[str, Any] | None = None, log: Log | None = None) -> None:
        """Write the state after `step` steps; older states are removed once it is verified.

        Args:
            step: steps done.
            loop: state of the loop itself.
            log: all that was reported so far.

        Raises:
            OSError: if the disk is full or fails; the states that were there are still there.
        """
        began = time.monotonic()
        self.path.mkdir(parents=True, exist_ok=True)
        self._sweep()
        place = self.path / f"step-{step:08d}"
        if place.exists() and whole(place):
            return
        part = self.path / f".part-{uuid.uuid4().hex}"
        try:
            part.mkdir()
            about = {"step": step, "files": self._write(part, {"step": step, "loop": loop or {}, **self.state()}, log)}
            (part / MANIFEST).write_text(json.dumps(about), encoding="utf-8")
            _sync(part / MANIFEST)
            sync_folder(part)
            if place.exists():  # a state of the same step that was passed over as damaged
                place.rename(self.path / f".part-{uuid.uuid4().hex}")
            part.rename(place)
            sync_folder(self.path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        # The pointer is for readers; what a run goes on from is the newest state that is whole.
        with suppress(OSError, ConfigError), whole_file(self.path / LATEST) as pointer:
            pointer.write_text(f"{place.name}\n", encoding="utf-8")
        self._prune(place)
        self._ended = time.monotonic()
        self._took = self._ended - began

    def _write(self, part: Path, state: dict[str, Any], log: Log | None) -> dict[str, dict[str, Any]]:
        """Write the files of a state; return length and checksum of each for the manifest."""
        with (part / STATE).open("xb") as stream:
            summed = _Summed(stream)
            try:
                torch.save(state, summed)  # pyright: ignore[reportArgumentType]
            except RuntimeError:  # torch's own complaint hides what went wrong underneath
                raise summed.failure or OSError("the state could not be written") from None
            stream.flush()
            os.fsync(stream.fileno())
        text = "".join(f"{json.dumps(line)}\n" for line in log or []).encode()
        (part / LOG).write_bytes(text)
        _sync(part / LOG)
        return {
            STATE: {"bytes": summed.length, "sha256": summed.digest.hexdigest()},
            LOG: {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()},
        }

    def _prune(self, newest: Path) -> None:
        """Remove states older than the `KEPT` newest, unless the newest cannot be read back."""
        if not whole(newest):
            return
        for place in self._damaged:
            shutil.rmtree(place, ignore_errors=True)
        self._damaged = []
        for place in states(self.path)[KEPT:]:
            shutil.rmtree(place, ignore_errors=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove files that a killed process left behind."""
        for part in self.path.glob(".part-*"):
            shutil.rmtree(part, ignore_errors=True)
        for pointer in self.path.glob(f".{LATEST}.*"):
            pointer.unlink(missing_ok=True)

    def load(self, on_event: OnEvent = ignore) -> tuple[int, dict[str, Any], Log]:
        """Restore the newest whole state; return its steps, the loop's own state, and its log.

        0, {} and [] if there is none. A damaged one is passed over, and said.

        Raises:
            ConfigError: if there are states and none is whole, or `restore` refuses what was kept.
        """
        if self.path.is_file():
            raise ConfigError(
                f"The training state {self.path} is a file of an earlier version.", "Delete it to begin anew."
            )
        found, self._damaged = states(self.path), []
        for place in found:
            try:
                kept, log = read(place)
            except IncompleteCheckpoint as error:
                self._damaged.append(place)
                on_event(Note(f"the state {place.name} is damaged ({error}); looking for the one before"))
                continue
            self.restore({key: value for key, value in kept.items() if key not in ("step", "loop")})
            return int(kept["step"]), kept["loop"], log
        if found:
            raise ConfigError(f"The training state in {self.path} is damaged.", "Delete that folder to begin anew.")
        return 0, {}, []


class _Summed:
    """A stream that computes the SHA-256 and the length of what is written, and keeps the first error."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest, self.length = stream, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.stream.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(data)
        self.length += len(data)
        return len(data)

    def flush(self) -> None:
        self.stream.flush()


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def states(folder: Path) -> list[Path]:
    """Return the states in a folder, newest first, whole or not."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def verify(place: Path) -> None:
    """Compare a state with its manifest, byte for byte.

    Raises:
        IncompleteCheckpoint: saying what is wrong.
    """
    try:
        files = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["files"]
        wanted = [(place / name, files[name]["bytes"], files[name]["sha256"]) for name in (STATE, LOG)]
        for path, length, digest in wanted:
            if path.stat().st_size != length:
                raise IncompleteCheckpoint(f"{path.name} has {path.stat().st_size} bytes of {length}")
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    raise IncompleteCheckpoint(f"{path.name} has changed since it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IncompleteCheckpoint(f"no readable {MANIFEST}: {type(error).__name__}") from None


def whole(place: Path) -> bool:
    """Return whether a state agrees with its manifest."""
    try:
        verify(place)
    except IncompleteCheckpoint:
        return False
    return True


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path, may_change: Sequence[str] = ()) -> None:
    """Refuse to resume a state that was begun with other settings.

    Args:
        before: settings of the saved run.
        now: settings of this run.
        path: its state, for the error.
        may_change: names of settings that may differ.

    Raises:
        ConfigError: naming every setting that differs.
    """
    keys = [key for key in {**before, **now} if key not in may_change]
    changed = [key for key in keys if now.get(key) != before.get(key)]
    if changed:
        told = "; ".join(f"{key} {before.get(key)!r}, now {now.get(key)!r}" for key in changed)
        raise ConfigError(
            f"The run kept in {path} was begun with {told}.",
            f"Go on with what it was begun with, or delete {path} to begin anew.",
        )


def read(place: Path) -> tuple[dict[str, Any], Log]:
    """Read the state of a folder and its log, verified.

    Raises:
        IncompleteCheckpoint: saying what is wrong.
    """
    verify(place)
    try:
        kept: dict[str, Any] = torch.load(place / STATE, map_location="cpu", weights_only=True)
        log = [json.loads(line) for line in (place / LOG).read_text(encoding="utf-8").splitlines()]
        if not isinstance(kept["step"], int) or not isinstance(kept["loop"], dict):
            raise ValueError("it holds no step")
    except Exception as error:  # a damaged pickle stream raises anything at all
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IncompleteCheckpoint(first) from None
    return kept, log
