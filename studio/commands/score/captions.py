"""The benchmark of captions of sticker pictures, `studio score --captions`."""

from __future__ import annotations

import json
from collections.abc import Callable

from evaluation.captions import gain, stickers
from pipelines.errors import ConfigError
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import judge, open_base
from trainers.stickers.world import HELD_OUT


def score_captions(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Caption composed scenes and count the exact ones; says those that are not. Or score what is learned by captions.

    Raises:
        ConfigError: for another base than pocket, or a choice of scenes.
    """
    if asked.taught and base == "pocket":
        return _score_taught(asked, only, form, machine, say)
    if base != "pocket" or only:
        what = f"base {base}" if base != "pocket" else f"choice {only[0]!r}"
        raise ConfigError(f"Captions are measured on all scenes of pocket, not on the {what}.", "Leave it out.")
    found = stickers.told(stickers.StickerCaptioner(judge()), asked.pictures or stickers.SCENES)
    rows = stickers.accuracy(found)
    if form == "json":
        say(json.dumps({kind: {"exact": exact, "scenes": count} for kind, (exact, count) in rows.items()}, indent=1))
        return
    for one in found:
        if one.true != one.made:
            say(f"{one.true}: {one.made or 'nothing'}")
    say(stickers.table(rows))


def _score_taught(
    asked: Benchmarks, only: tuple[str, ...], form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Teach stickers under templates and under captions, and score both.

    Raises:
        ConfigError: if one of the choice is no held-out sticker.
    """
    if unknown := [name for name in only if name not in HELD_OUT]:
        raise ConfigError(f"{unknown[0]!r} is no held-out sticker.", f"They are {', '.join(HELD_OUT)}.")
    rows = gain.gain(
        open_base("pocket", machine),
        judge(),
        only or tuple(HELD_OUT),
        count=asked.pictures or gain.SEEDS,
        on_event=Progress("teach"),
        say=say if form == "table" else lambda line: None,
    )
    told = {thing: {way: vars(one) for way, one in ways.items()} for thing, ways in rows.items()}
    say(json.dumps(told, indent=1) if form == "json" else gain.table(rows))
