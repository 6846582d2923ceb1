"""The benchmark of keeping the best of several candidates, `studio score --best-of`."""

from __future__ import annotations

import json
from collections.abc import Callable

from evaluation import best_of
from pipelines.errors import ConfigError
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.runner import judge, open_base


def score_best_of(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Draw candidates and score what is kept of them; says each prompt as it comes.

    Raises:
        ConfigError: for another base than pocket, or a choice of prompts.
    """
    if base != "pocket" or only:
        what = f"base {base}" if base != "pocket" else f"choice {only[0]!r}"
        raise ConfigError(f"Candidates are measured on pocket and all its prompts, not on the {what}.", "Leave it out.")
    tell = say if form == "table" else None
    found = best_of.drawn_candidates(open_base("pocket", machine), judge(), asked.pictures or best_of.PROMPTS, tell)
    figures = best_of.tables(found)
    if form == "json":
        say(json.dumps(figures, indent=1))
    for kind, rows in figures.items() if form == "table" else ():
        say(best_of.table(kind, rows))
