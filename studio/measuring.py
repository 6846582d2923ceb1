"""Measures a concept and the candidates beside it, and writes what came out into their cards. Loads torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.clip import Clip
from pipelines.components import Components
from pipelines.concept import Concept
from pipelines.events import OnEvent
from studio.runner import judge
from trainers.candidates import candidates
from trainers.choosing import Choice, Eyes, JudgeEyes, choose
from trainers.reading import read_folder


def measure(
    components: Components,
    path: Path,
    images: Path,
    *,
    clip: Path | None = None,
    on_event: OnEvent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Choice:
    """Measure a concept with its candidates against the word it started from; their cards hold the figures then.

    Args:
        components: the base it was trained on.
        path: the concept file.
        images: folder of pictures to compare with.
        clip: folder of a CLIP that measures; by default the judge of `pocket`, who knows stickers alone.
        on_event: a step and a preview for each.
        should_stop: asked now and then.

    Raises:
        ConceptError: if it cannot be read or does not fit the base.
        DataError: if there are no pictures.
        ModelError: if there is no such CLIP.
        Cancelled: if `should_stop` said so; no card has changed then.
    """
    examples = read_folder(images).examples
    concept = Concept.load(path)
    files = candidates(path)
    learned = {step: Concept.load(file) for step, file in files.items()}
    if not any(one.digest() == concept.digest() for one in learned.values()):
        steps = concept.card.recipe.get("steps")
        files, learned = {}, {steps if isinstance(steps, int) and steps > 0 else 1: concept}
    eyes = eyes_for(components, concept, clip)
    choice = choose(components, learned, examples, eyes, on_event=on_event, should_stop=should_stop)
    for step, one in learned.items():
        scored = one.with_scores(choice.scores(step))
        if step in files:
            scored.save(files[step])
        if one.digest() == concept.digest():
            scored.save(path)
    return choice


def eyes_for(components: Components, concept: Concept, clip: Path | None) -> Eyes | None:
    """Who measures pictures of a base: the CLIP that is named, the judge of `pocket`, or nobody."""
    if clip is not None:
        return Clip.load(clip, str(components.device))
    if components.family != "pocket":
        return None
    return JudgeEyes(judge(), concept.card.kind in ("object", "subject"))


def told(choice: Choice) -> dict[str, Any]:
    """What came out as plain data."""
    return {
        "word": choice.word,
        "baseline": choice.baseline.figures,
        "rows": [{"step": row.step, "figures": row.figures} for row in choice.rows],
        "step": choice.step,
        "reason": choice.reason,
    }
