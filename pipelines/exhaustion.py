"""Lack of disk space or memory, recognised in whatever error it appears as. Needs no torch."""

from __future__ import annotations

import errno

from pipelines.errors import NoMemory, NoSpace, StudioError

_SPACE = ("no space left on device", "os error 28", "database or disk is full", "disk quota exceeded", "enospc")
_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_cpu.cpp",
    "defaultcpuallocator",
    "os error 12",
)


def hardship(error: BaseException) -> StudioError | None:
    """Return what an error says in a sentence if space or memory ran out, also as its cause; None if neither did."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, (NoSpace, NoMemory)):
            return one
        said = "" if isinstance(one, StudioError) else str(one).lower()  # our own sentences only speak of it
        number = one.errno if isinstance(one, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in said for words in _SPACE):
            return NoSpace("No space is left on the disk.", "Make room there, then ask again; what was there is whole.")
        if isinstance(one, MemoryError) or number == errno.ENOMEM or any(words in said for words in _MEMORY):
            return NoMemory(
                "The memory of the machine, or of its GPU, is not enough.",
                "Ask for smaller or fewer pictures, or a smaller batch or base; a training may accumulate instead.",
            )
        one = one.__cause__ or one.__context__
    return None
