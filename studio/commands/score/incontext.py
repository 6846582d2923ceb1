"""The benchmark of visual prompts, `studio score --incontext`."""

from __future__ import annotations

import json
from collections.abc import Callable

from evaluation import incontext as scoring
from pipelines.errors import ConfigError
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.inpainting_unet import inpainting_components
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base
from trainers.stickers.tasks import TASKS


def score_answers(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Score every task; says each as it comes, then what follows from all.

    Raises:
        ConfigError: for a task there is none of.
        ModelError: if the base has no inpainting UNet.
    """
    unknown = [name for name in only if name not in TASKS]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no task of visual prompts.", f"They are {', '.join(TASKS)}.")
    components = inpainting_components(open_base(base, machine))
    if components.defaults.size != 64:
        raise ConfigError(
            f"The tasks are drawn at 64 pixels, {base} paints {components.defaults.size}.", "Score pocket."
        )
    scores = scoring.score_tasks(
        components,
        only or tuple(TASKS),
        asked.pictures or scoring.PICTURES,
        judge=Judge.load(POCKET / "judge"),
        on_score=lambda score: say(scoring.row(score)) if form == "table" else None,
        on_event=Progress("incontext"),
    )
    say(json.dumps(scoring.as_json(scores), indent=1) if form == "json" else "\n".join(scoring.summary(scores)))
    if asked.sheet is not None:
        say(str(scoring.sheet(scores).save(asked.sheet, colours=256)))
