"""Captions beside pictures, and the decoding of hand-written text files. Needs no torch.

`fox.txt` or `fox.caption` for `fox.png` (also `fox.png.txt`, in capitals or not) is one caption; `fox.captions` has
one in each line.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path

from pipelines.captions.wording import Wording
from pipelines.errors import DataError
from pipelines.request.yolo import holds_labels
from pipelines.words import composed

SEVERAL = ".captions"
CAPTION_SUFFIXES = (".txt", ".caption", SEVERAL)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def key(path: Path) -> str:
    """Return the name a file is looked up by: in NFC, the ending in small letters."""
    return composed(path.stem) + path.suffix.lower()


def tidied(text: str) -> str:
    """Return a caption in NFC on one line, without control characters."""
    return " ".join(composed(_CONTROL.sub(" ", text)).split())


def read_text(path: Path, what: str) -> str:
    """Read a file in UTF-8, or in UTF-16 if it begins with its byte order mark.

    Raises:
        DataError: if it cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror}.", "Allow reading it.") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
        if 3 * text.count("\0") > len(text):  # UTF-16 without its mark, or UTF-32
            raise UnicodeError
        return text
    except UnicodeError:
        raise DataError(f"{what} is not UTF-8 text.", "Save it as UTF-8.") from None


def holds_boxes(path: Path) -> bool:
    """Return whether a file is one of YOLO's labels, which has the name of a caption."""
    try:
        return path.suffix.lower() == ".txt" and holds_labels(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):  # said when it is read as a caption
        return False


def caption_file(picture: Path, there: Mapping[str, Path]) -> Path | None:
    """Return the caption file of a picture among the files of its folder, which are given by their `key`."""
    keys = [composed(name) + end for name in (picture.stem, picture.name) for end in CAPTION_SUFFIXES]
    return next((there[one] for one in keys if one in there), None)


def caption_line(answer: str, wording: Wording) -> str:
    """Return what a captioner said in a wording, on one line as it is written beside a picture.

    Raises:
        DataError: if nothing is left of it, or it would be read as boxes.
    """
    text = tidied(wording.of(answer))
    if not tidied(answer) or not wording.model_copy(update={"template": "{}"}).of(answer):
        raise DataError(f"Nothing is left of the caption {answer!r:.80}.", "Write one by hand, or leave out less.")
    if holds_labels(answer) or holds_labels(text):
        raise DataError(f"The caption {answer!r:.80} would be read as boxes of YOLO.", "Write one by hand.")
    return text


def captions_in(path: Path) -> tuple[str, ...]:
    """Return the captions of a file; none if it is empty.

    Raises:
        DataError: as `read_text`.
    """
    text = read_text(path, f"The caption {path.name}")
    lines = text.splitlines() if path.suffix.lower() == SEVERAL else [text]
    return tuple(filter(None, map(tidied, lines)))
