"""Pairs of a folder, as examples of a visual prompt."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import ConfigError, DataError
from pipelines.events import Note, OnEvent
from pipelines.incontext import ExamplePair, open_opaque, pairs_in
from pipelines.measures.clip import Clip
from pipelines.measures.judge import Judge
from pipelines.measures.nearest_examples import judges_eye, nearest
from pipelines.models import POCKET
from pipelines.pictures.files import open_picture
from pipelines.request.request import LARGEST_GRID
from studio.work.progress import Progress


def nearest_pairs(folder: Path, query: Path, count: int, clip: Path | None) -> list[tuple[str, str]]:
    """Return before and after of the pairs of a folder whose picture before is most like the query, nearest last.

    Raises:
        ConfigError: if more are wanted than a grid takes.
        DataError: if the folder holds no pairs that can be read.
        ModelError: if there is no such CLIP.
    """
    if not 1 <= count <= LARGEST_GRID:
        raise ConfigError(f"--nearest {count} is out of range.", f"A grid takes 1 to {LARGEST_GRID} examples.")
    pairs = _readable(folder, Progress("incontext"))
    embed = judges_eye(Judge.load(POCKET / "judge")) if clip is None else Clip.load(clip).pictures
    return [(pair.before, pair.after) for pair in nearest(open_opaque(query), pairs, embed, count)]


def _readable(folder: Path, on_event: OnEvent) -> list[ExamplePair]:
    """Return the pairs of a folder of which both pictures can be read; the others are noted.

    Raises:
        DataError: as `pairs_in`, or if there is none.
    """
    kept: list[ExamplePair] = []
    why = ""
    for pair in pairs_in(folder):
        try:
            for path in (pair.before, pair.after):
                open_picture(Path(path))
        except DataError as error:
            why = str(error)
            on_event(Note(f"The pair {Path(pair.before).stem} is left out: {why}"))
        else:
            kept.append(pair)
    if not kept:
        raise DataError(f"No pair in {folder} can be read. {why}", "Put that right, or give another folder.")
    return kept
