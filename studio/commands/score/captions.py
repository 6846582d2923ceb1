"""The benchmark of captions of sticker pictures, `studio score --captions`."""

from __future__ import annotations

import json
from collections.abc import Callable

from evaluation import captions
from pipelines.errors import ConfigError
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.runner import judge


def score_captions(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Caption composed scenes and count the exact ones; says those that are not.

    Raises:
        ConfigError: for another base than pocket, or a choice of scenes.
    """
    if base != "pocket" or only:
        what = f"base {base}" if base != "pocket" else f"choice {only[0]!r}"
        raise ConfigError(f"Captions are measured on all scenes of pocket, not on the {what}.", "Leave it out.")
    found = captions.told(captions.StickerCaptioner(judge()), asked.pictures or captions.SCENES)
    rows = captions.accuracy(found)
    if form == "json":
        say(json.dumps({kind: {"exact": exact, "scenes": count} for kind, (exact, count) in rows.items()}, indent=1))
        return
    for one in found:
        if one.true != one.made:
            say(f"{one.true}: {one.made or 'nothing'}")
    say(captions.table(rows))
