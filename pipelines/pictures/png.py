"""Chunks of PNG files: pixels without metadata, and texts without the pixels. Needs no torch.

Pillow reads texts and profile before the pixels, and gives up on all of it if one is damaged or large.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
PROFILE_LIMIT = 8 << 20  # bytes of an unpacked colour profile
TEXT_LIMIT = 32 << 20  # bytes of an unpacked text


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Return the chunks of a PNG: kind, data, and whether its checksum is right; stops where the file ends."""
    place = len(PNG)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        stated = content[end : end + 4]
        yield kind, content[place + 8 : end], stated == struct.pack(">I", zlib.crc32(content[place + 4 : end]))
        place = end + 4


def pixels_alone(content: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a PNG reduced to what decoding needs, its colour profile, and its EXIF; empty where there is none."""
    kept, profile, exif = [PNG], b"", b""
    for kind, data, sound in chunks(content):
        if kind == b"eXIf" and sound:
            exif = data
        elif kind == b"iCCP" and sound:
            profile = _unpacked(data.partition(b"\0")[2][1:], PROFILE_LIMIT) or b""
        elif kind[:1].isupper() or (kind == b"tRNS" and sound):
            stated = zlib.crc32(kind + data) ^ (not sound)  # a wrong sum stays wrong
            kept += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", stated)]
    return b"".join(kept), profile, exif


def texts(source: Path | bytes) -> dict[str, str]:
    """Return the texts of a PNG by their names; none of another file, and without those that are damaged or too long.

    Raises:
        OSError: if the file cannot be read.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    found: dict[str, str] = {}
    for kind, data, sound in chunks(content) if content.startswith(PNG) else ():
        if sound and kind in (b"tEXt", b"zTXt", b"iTXt"):
            name, _, rest = data.partition(b"\0")
            text = _text(kind, rest)
            if text is not None:
                found[name.decode("latin-1")] = text
    return found


def _text(kind: bytes, data: bytes) -> str | None:
    """Return the text of a chunk from the bytes after its name; None if it is damaged or too long."""
    if kind == b"tEXt":
        return data.decode("latin-1")
    if kind == b"zTXt":
        packed, rest, encoding = True, data[1:], "latin-1"
    else:  # packed or not, how, language, translated name
        packed, rest, encoding = data[:1] == b"\1", data[2:].partition(b"\0")[2].partition(b"\0")[2], "utf-8"
    plain = _unpacked(rest, TEXT_LIMIT) if packed else rest
    try:
        return None if plain is None else plain.decode(encoding)
    except UnicodeDecodeError:
        return None


def _unpacked(data: bytes, limit: int) -> bytes | None:
    """Return the unpacked bytes; None if they are damaged or longer than `limit`."""
    unpacking = zlib.decompressobj()
    try:
        plain = unpacking.decompress(data, limit + 1)
    except zlib.error:
        return None
    return plain if unpacking.eof and len(plain) <= limit else None
