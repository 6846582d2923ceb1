"""Pictures as a zip for browsers, written as they are sent: nothing is kept in memory or on the disk."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from fastapi.responses import StreamingResponse

PIECE = 1 << 20
"""Bytes that are sent at a time."""


class _Sent(io.RawIOBase):
    """A file without a way back that gives away what was written."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        """Return true."""
        return True

    def write(self, content: object) -> int:
        """Keep a piece until it is taken."""
        piece = bytes(content)  # pyright: ignore[reportArgumentType]
        self.pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        """Return what was written since the last time."""
        piece, self.pieces = b"".join(self.pieces), []
        return piece


def _pieces(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    sent = _Sent()
    with zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as archive:  # pyright: ignore[reportArgumentType]
        for name, path in files:
            if not path.is_file():  # deleted meanwhile
                continue
            with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:  # models are large
                while piece := source.read(PIECE):
                    target.write(piece)
                    yield sent.taken()
    yield sent.taken()


def zipped(files: Iterable[tuple[str, Path]], name: str) -> StreamingResponse:
    """Return a zip of files, each with its name there; files that are gone are left out."""
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(name)}.zip", "cache-control": "no-store"}
    return StreamingResponse(_pieces(files), media_type="application/zip", headers=headers)
