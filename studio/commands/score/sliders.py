"""The benchmark of sliders, `studio score --sliders`."""

from __future__ import annotations

import json
from collections.abc import Callable

from evaluation import sliders
from pipelines.errors import ConfigError
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base


def score_sliders(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Teach sliders and try them on other things at several strengths; says each as it comes.

    Raises:
        ConfigError: for another base than pocket, or a slider that is none of those that are measured.
    """
    if base != "pocket":
        raise ConfigError(f"Sliders are measured on pocket, not on {base}.", "Leave --base out.")
    if unknown := [name for name in only if name not in sliders.KINDS]:
        raise ConfigError(f"{unknown[0]!r} is no slider that is measured.", f"They are {', '.join(sliders.KINDS)}.")
    components, found = open_base("pocket", machine), {}
    for name in only or tuple(sliders.KINDS):
        progress = Progress(name)
        found |= sliders.measure(components, (name,), asked.pictures or sliders.SEEDS, on_event=progress)
        if form == "table":
            say(sliders.table({name: found[name]}))
    if asked.sheet is not None:
        path = sliders.sheet(found).save(asked.sheet, colours=256)
        if form == "table":
            say(str(path))
    if form == "json":
        say(json.dumps({name: one.told() for name, one in found.items()}, indent=1))
