"""The benchmark of boxes, `studio score --boxes`."""

from __future__ import annotations

import json
from collections.abc import Callable

from evaluation import boxes as scoring
from pipelines.errors import ConfigError
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base
from trainers.stickers.world import HELD_OUT


def score_boxes(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Draw seeded layouts with and without boxes and score them; says each way as it comes.

    Raises:
        ConfigError: for another base than pocket, or a sticker that is none of the held-out ones.
    """
    if base != "pocket":
        raise ConfigError(f"Layouts are composed for pocket, not for {base}.", "Leave --base out.")
    if unknown := [name for name in only if name not in HELD_OUT]:
        raise ConfigError(f"{unknown[0]!r} is no held-out sticker.", f"They are {', '.join(HELD_OUT)}.")
    components, judge = open_base("pocket", machine), Judge.load(POCKET / "judge")
    tell = say if form == "table" else None
    layouts, ways = scoring.score_boxes(components, judge, asked.pictures or scoring.LAYOUTS, say=tell)
    rows = {way: dict(one.figures) for way, one in ways.items()}
    if asked.sheet is not None:
        path = scoring.box_sheet(layouts, ways).save(asked.sheet)
        if tell is not None:
            tell(str(path))
    if asked.concepts:
        rows |= scoring.score_concepts(components, judge, only or tuple(HELD_OUT), on_event=Progress("boxes"), say=tell)
    if form == "json":
        say(json.dumps(rows, indent=1))
