"""Usable pictures of a folder: doubtful ones are noted and left out. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pipelines.events import Note, OnEvent
from trainers.data.folders import Example, read_folder


def sound_examples(folder: Path, on_event: OnEvent) -> list[Example]:
    """Return the pictures of a folder that can be read and are no masks of others; the others are noted.

    A training asks before it leaves a picture out (`Reading.sound`); what compares with pictures need not.

    Args:
        folder: folder to read.
        on_event: receives a note for each picture that is left out.

    Raises:
        DataError: as `read_folder`, or if nothing is left.
    """
    reading = read_folder(folder).sound(skip=True)
    for name, why in reading.doubtful.items():
        on_event(Note(f"{name} is left out: {why}"))
    return list(reading.examples)
