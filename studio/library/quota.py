"""The limit of uploads together, however many arrive at once. Needs no torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import NoSpace
from pipelines.files import whole_file

QUOTA = 50.0
"""GiB that datasets, uploaded pictures and files to import may take together by default."""


class Quota:
    """The size limit of some folders together.

    Args:
        folders: whose files count, however deep.
        most: bytes they may take.
    """

    def __init__(self, folders: Sequence[Path], most: int) -> None:
        self.folders, self.most = tuple(folders), most
        self._lock = threading.Lock()
        self._used: int | None = None
        """Bytes at the last look and what was admitted since; what was removed since is not taken off."""

    def used(self) -> int:
        """Return the bytes that all files take now."""
        with self._lock:
            self._used = sum(map(bytes_of, self.folders))
            return self._used

    @contextmanager
    def whole_file(self, path: Path) -> Iterator[Path]:
        """Give a temporary path beside `path`, as `pipelines.files.whole_file` does, for a file within the limit.

        One file is written at a time: a look at the folders while another is put in its place would miss it.

        Args:
            path: in one of the folders.

        Raises:
            NoSpace: if the folders would take too much with what was written; nothing is left behind then.
        """
        with self._lock, whole_file(path) as temporary:
            yield temporary
            size = temporary.stat().st_size
            if self._used is not None and self._used + size <= self.most:
                self._used += size
                return
            self._used = sum(map(bytes_of, self.folders))
            if self._used > self.most:
                self._used -= size
                raise NoSpace(
                    f"Pictures and uploads take {said(self._used)} of the {said(self.most)} they may take together; "
                    f"{said(size)} more do not fit.",
                    "Delete pictures that are not needed, or let them take more: studio serve --quota GIB.",
                )


def said(size: int) -> str:
    """Return a number of bytes in words.

    >>> said(300), said(5 << 20), said(3 << 29)
    ('1 KiB', '5 MiB', '1.5 GiB')
    """
    if size < 1 << 20:
        return f"{-(-size // 1024)} KiB"
    return f"{size / 2**20:.0f} MiB" if size < 1 << 30 else f"{size / 2**30:.1f} GiB"


def bytes_of(folder: Path) -> int:
    """Return the bytes of all files in a folder, however deep; those that vanish meanwhile are not counted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name), follow_symlinks=False).st_size
            except OSError:
                continue
    return total
