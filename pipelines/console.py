"""Consoles that lack letters: what is printed never ends work that was done."""

from __future__ import annotations

import io
import sys


def print_anything() -> None:
    """Have letters that the console lacks, and bytes of file names that are none, printed as escapes.

    Windows writes cp1252 into files and pipes, LC_ALL=C means ASCII, and no encoding has the bytes of a name that is
    not UTF-8.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
