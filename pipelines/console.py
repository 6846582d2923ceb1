"""Consoles with few characters: printing never ends work that is done."""

from __future__ import annotations

import io
import sys


def print_anything() -> None:
    """Print characters that the console lacks, and undecodable bytes of file names, as escapes.

    Windows writes cp1252 into files and pipes, LC_ALL=C means ASCII, and no encoding has the bytes of a name that is
    not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
