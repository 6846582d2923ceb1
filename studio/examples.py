"""Examples for a visual prompt, chosen from a folder of pairs."""

from __future__ import annotations

from pathlib import Path

from pipelines.clip import Clip
from pipelines.components import POCKET
from pipelines.errors import ConfigError
from pipelines.incontext import judges_eye, nearest, open_opaque, pairs_in
from pipelines.judge import Judge
from pipelines.request import LARGEST_GRID


def nearest_pairs(folder: Path, query: Path, count: int, clip: Path | None) -> list[tuple[str, str]]:
    """Before and after of the pairs of a folder whose picture before is most like the query, the nearest last.

    Raises:
        ConfigError: if more are wanted than a grid takes.
        DataError: if the folder holds no pairs, or a picture cannot be read.
        ModelError: if there is no such CLIP.
    """
    if not 1 <= count <= LARGEST_GRID:
        raise ConfigError(f"--nearest {count} is out of range.", f"A grid takes 1 to {LARGEST_GRID} examples.")
    pairs = pairs_in(folder)
    embed = judges_eye(Judge.load(POCKET / "judge")) if clip is None else Clip.load(clip).pictures
    return [(pair.before, pair.after) for pair in nearest(open_opaque(query), pairs, embed, count)]
