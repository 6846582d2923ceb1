"""The console: print letters that it lacks as escapes, and leave out one message of a library that needs no action."""

from __future__ import annotations

import io
import logging
import sys


def print_anything() -> None:
    """Print characters that the console lacks, and undecodable bytes of file names, as escapes.

    Windows writes cp1252 into files and pipes, LC_ALL=C means ASCII, and no encoding has the bytes of a name that is
    not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def leave_out_the_fallback_to_pillow() -> None:
    """Leave out transformers' warning that an image processor falls back to Pillow where torchvision is not installed.

    Diffusers imports these processors with its pipelines, so every command would print the warning twice. Pillow is
    what is wanted here. All other messages of that logger are kept.
    """
    # transformers' loggers are those of `logging`, by the names of its modules; it need not be imported for this.
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_no_fallback_to_pillow)


def _is_no_fallback_to_pillow(record: logging.LogRecord) -> bool:
    return "ImageProcessor` requires torchvision (not installed); falling back to `" not in record.getMessage()
