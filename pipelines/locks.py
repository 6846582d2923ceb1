"""Locks that one process at a time holds: on the folder of a server, the file of a training. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from pipelines.errors import ConfigError
from pipelines.files import stem_of


def locked(path: Path, said: str, hint: str) -> BaseFileLock:
    """Return a lock that this process holds until it is released or the process ends, however it ends.

    Args:
        path: of the lock file, which is made.
        said: error if another process holds it.
        hint: next step for that error.

    Raises:
        ConfigError: if another process holds it, or nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, mode=0o600, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(said, hint) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", "Choose another folder.") from None
    return lock


@contextmanager
def sole_training(output: Path) -> Iterator[None]:
    """Keep other processes from training into this file inside the `with`; remove folders made only for it.

    Raises:
        ConfigError: if one does.
    """
    path = output.with_name(f".{stem_of(output)}.lock")
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    lock = locked(
        path, f"{output.name} is being learned by another process.", "Wait for it, or choose another --output."
    )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # something was written there
            for folder in made:
                folder.rmdir()
