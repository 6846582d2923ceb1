"""Uploaded pictures and archives, checked before use. Needs no torch.

Every picture is decoded, brought upright and written anew as PNG, so that neither its metadata nor anything hidden
behind its pixels is kept. Archives are read member by member; what has a name that is not plainly a file's is refused.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from PIL import Image

from pipelines.errors import ConceptError, DataError, NoMemory
from pipelines.files import whole_file
from pipelines.pictures.files import decoded
from pipelines.words import file_stem
from studio.library.quota import Quota

Function = TypeVar("Function", bound=Callable[..., Any])
BYTES = 32 << 20
"""Largest upload of one picture."""

PIXELS = 50_000_000
"""Largest picture that is decoded."""

PICTURES = 1000
"""Most pictures of a dataset."""

ARCHIVE = 256 << 20
"""Largest archive, packed or unpacked."""

RATIO = 200
"""Largest compression ratio of a member of an archive; text that repeats packs to a thousandth."""

CAPTION = 4000
"""Longest caption, in letters."""

_MEMBER = re.compile(r"(?![A-Za-z]:)[^\x00-\x1f\x7f\\]{1,200}")
_WINDOWS = re.compile(r"[:*?\"<>|]")
"""Characters that no file name has on Windows; elsewhere times of day and questions are names."""


WAIT = 600.0
"""Seconds to wait until others have decoded their pictures; an archive holds hundreds."""

_DECODING = threading.BoundedSemaphore(2)
_HELD = threading.local()


@contextmanager
def decoding() -> Iterator[None]:
    """Let two threads at a time decode pictures, until what they decoded is written: a large one takes 200 MiB.

    A thread that decodes already may begin it again.

    Raises:
        NoMemory: if others took too long with theirs.
    """
    depth = getattr(_HELD, "depth", 0)
    if not depth and not _DECODING.acquire(timeout=WAIT):
        raise NoMemory(f"Two others have decoded pictures for {WAIT:.0f} s.", "Ask again in a minute.")
    _HELD.depth = depth + 1
    try:
        yield
    finally:
        _HELD.depth = depth
        if not depth:
            _DECODING.release()


def at_a_time(function: Function) -> Function:
    """Make a function that decodes pictures hold its place until it has ended."""

    @wraps(function)
    def held(*arguments: Any, **named: Any) -> Any:
        with decoding():
            return function(*arguments, **named)

    return cast(Function, held)


def cleaned(data: bytes, name: str = "the picture") -> Image.Image:
    """Decode a picture from outside: upright, RGB or with transparency RGBA, nothing but its pixels.

    Args:
        data: content of the file.
        name: its name in errors.

    Raises:
        DataError: if it is too large, of another kind, or damaged.
    """
    if len(data) > BYTES:
        raise DataError(f"{name} has {len(data) >> 20} MiB; at most {BYTES >> 20} are taken.", "Make it smaller.")
    with decoding():
        return decoded(data, name, PIXELS)


def write_png(picture: Image.Image, path: Path, quota: Quota | None = None) -> Path:
    """Write pixels and nothing else; the file is either complete or absent.

    Raises:
        NoSpace: if there is no room for it.
    """
    with (whole_file if quota is None else quota.whole_file)(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Return the files of a zip archive with their names, folders before them, after all of them were checked.

    Raises:
        DataError: if it is no archive, or too large, or a member is a link, encrypted, packed beyond reason, or has a
            name that leads out of its folder.
    """
    if len(data) > ARCHIVE:
        raise DataError(
            f"The archive has {len(data) >> 20} MiB; at most {ARCHIVE >> 20} are taken.", "Send it in parts."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            _check(infos)
            for info in infos:
                with archive.open(info) as stream:  # reading is bounded by what was announced and checked
                    content = stream.read(info.file_size + 1)
                if len(content) != info.file_size:
                    raise DataError(f"{info.filename!r:.80} is not as long as the archive says.", "Pack it again.")
                yield _name(info), content
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        OSError,
        ValueError,
        EOFError,
        LookupError,
    ):
        raise DataError("This is no zip archive that can be read.", "Pack the pictures again.") from None


def _name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member; Windows' PowerShell writes backslashes between folders."""
    return info.filename.replace("\\", "/")


def _check(infos: list[zipfile.ZipInfo]) -> None:
    if len(infos) > 4 * PICTURES:
        raise DataError(f"The archive has {len(infos)} files; at most {4 * PICTURES} are taken.", "Send it in parts.")
    if sum(info.file_size for info in infos) > ARCHIVE:
        raise DataError(f"The archive unpacks to more than {ARCHIVE >> 20} MiB.", "Send it in parts.")
    names: set[str] = set()
    for info in infos:
        name, parts = _name(info), _name(info).split("/")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise DataError(f"{name!r:.80} in the archive is a link or device.", "Pack the files themselves.")
        if name.startswith("/") or not _plain(name) or any(part in ("", ".", "..") for part in parts):
            raise DataError(
                f"{name!r:.80} in the archive is no plain name.", "Pack the files in one folder, by plain names."
            )
        if info.flag_bits & 1:
            raise DataError(f"{name!r:.80} in the archive is encrypted.", "Pack it without a password.")
        if info.file_size > max(BYTES, 1) or info.file_size > RATIO * max(info.compress_size, 4096):
            raise DataError(f"{name!r:.80} in the archive unpacks to too much.", f"At most {BYTES >> 20} MiB a file.")
        if name.casefold() in names:
            raise DataError(f"{name!r:.80} is in the archive twice.", "Pack it again.")
        names.add(name.casefold())
    if both := next((one for one in names for end in _ends(one) if one[:end] in names), None):
        raise DataError(f"{both!r:.80} in the archive lies in a file, not in a folder.", "Pack it again.")


def _plain(name: str) -> bool:
    """Return whether a name, with folders before it, is one that this system takes."""
    return bool(_MEMBER.fullmatch(name)) and not (os.name == "nt" and _WINDOWS.search(name))


def _ends(name: str) -> list[int]:
    """Return where the folders of a name end."""
    return [place for place, letter in enumerate(name) if letter == "/"]


IMPORTED = ("safetensors", "pt", "bin", "png")
"""Endings of files that may hold a concept."""


def put_aside(content: bytes, name: str, folder: Path, quota: Quota | None = None) -> Path:
    """Write an uploaded concept into a new folder, under a safe form of its name; return the file.

    Raises:
        NoSpace: if the disk is full; nothing is left behind then.
    """
    stem, _, suffix = name.replace("\\", "/").rpartition("/")[2].rpartition(".")
    kind = suffix.lower() if suffix.lower() in IMPORTED else "safetensors"
    try:
        called = file_stem(stem or suffix)[:80]
    except ConceptError:  # a name that Windows keeps: whoever sends it may give it another word
        called = "upload"
    file = folder / f"{called}.{kind}"
    try:
        with (whole_file if quota is None else quota.whole_file)(file) as temporary:
            temporary.write_bytes(content)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return file
