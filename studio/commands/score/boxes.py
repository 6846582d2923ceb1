"""The benchmarks of boxes and of several learned things in theirs, `studio score --boxes` and `--regions`."""

from __future__ import annotations

import json
from collections.abc import Callable

from evaluation import boxes as scoring
from evaluation import overlapping_boxes, regions
from pipelines.errors import ConfigError
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.components import Components
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base
from trainers.stickers.world import HELD_OUT


def score_boxes(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Draw seeded layouts with and without boxes, then boxes that overlap, and score them; says each way as it comes.

    Raises:
        ConfigError: for another base than pocket, or a sticker that is none of the held-out ones.
    """
    components, judge = _opened(only, base, machine)
    tell = say if form == "table" else None
    count = asked.pictures or scoring.LAYOUTS
    layouts, ways = scoring.score_boxes(components, judge, count, say=tell)
    rows = {way: dict(one.figures) for way, one in ways.items()}
    heard = (lambda way, row: tell(scoring.box_row(way, row))) if tell is not None else None
    rows |= overlapping_boxes.score_overlaps(components, count, say=heard)
    if asked.sheet is not None:
        path = scoring.box_sheet(layouts, ways).save(asked.sheet)
        if tell is not None:
            tell(str(path))
    if form == "json":
        say(json.dumps(rows, indent=1))


def score_regions(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Teach held-out stickers and draw several in one picture, each in its box; says each way as it comes.

    Raises:
        ConfigError: for another base than pocket, or a sticker that is none of the held-out ones.
    """
    components, judge = _opened(only, base, machine)
    tell = say if form == "table" else None
    things, count = only or tuple(HELD_OUT), asked.pictures or regions.LAYOUTS
    rows = regions.score_regions(components, judge, things, count=count, on_event=Progress("regions"), say=tell)
    if form == "json":
        say(json.dumps(rows, indent=1))


def _opened(only: tuple[str, ...], base: str, machine: Machine) -> tuple[Components, Judge]:
    """Return `pocket` and its judge.

    Raises:
        ConfigError: for another base, or a sticker that is none of the held-out ones.
    """
    if base != "pocket":
        raise ConfigError(f"Layouts are composed for pocket, not for {base}.", "Leave --base out.")
    if unknown := [name for name in only if name not in HELD_OUT]:
        raise ConfigError(f"{unknown[0]!r} is no held-out sticker.", f"They are {', '.join(HELD_OUT)}.")
    return open_base("pocket", machine), Judge.load(POCKET / "judge")
