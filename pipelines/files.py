"""Files that are either complete or absent: temporary file, fsync, rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import ConfigError, NoSpace, StudioError
from pipelines.exhaustion import hardship


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on a clean exit it is flushed to disk and takes the place of `path`.

    If the body raises, nothing is left behind and an older `path` stays as it was.

    Raises:
        ConfigError: if nothing can be written there.
        NoSpace: if the disk is full, however the body says so.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a file.", "Choose another --output.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise hardship(error) or ConfigError(
            f"{path} cannot be written: {error.strerror}.", "Choose another --output."
        ) from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files private; a finished file is as readable as any other.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        if not isinstance(error, StudioError) and isinstance(known := hardship(error), NoSpace):
            raise NoSpace(f"{path.name} cannot be written: no space is left on the disk.", known.hint) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def stem_of(result: Path) -> str:
    """Return the name of a result without the ending of its kind; the name of a folder may have dots."""
    return result.name.removesuffix(".safetensors")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, so that a rename outlives a power cut."""
    if os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, folder: Path) -> None:
    """Put a finished folder in a place, also of an older one, which is then removed."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin if there is too little free space to write the result.

    Args:
        folder: folder to write to; need not exist yet.
        needed: bytes.

    Raises:
        NoSpace: with what is there and what is needed.
        ConfigError: if nothing can be written there.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"{place} is no folder that can be written to.", "Choose another --output.")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NoSpace(
            f"Only {free >> 20} MiB are free at {place}, {needed >> 20} MiB are needed.",
            "Make room or choose another place (--output, of a server --folder).",
        )
