"""Measurement of a concept and its candidates, with the figures written into their cards. Loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.candidates import JudgeScorer, ProposedCandidate, Scorer, choose
from pipelines.concepts.card import HASH_KEY, read_header
from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError, ConfigError
from pipelines.events import OnEvent
from pipelines.measures.clip import Clip
from pipelines.measures.picture_encoder import PictureEncoder
from pipelines.models.components import Components
from studio.library.names import require_measurable
from studio.work.runner import judge
from trainers.data.sound_pictures import sound_examples
from trainers.loop.candidates import candidates, kept_step


def measure(
    components: Components,
    path: Path,
    images: Path,
    *,
    clip: Path | None = None,
    dino: Path | None = None,
    on_event: OnEvent,
    should_stop: Callable[[], bool] = lambda: False,
) -> ProposedCandidate:
    """Measure a concept with its candidates against the initial word; their cards hold the figures then.

    Args:
        components: the base it was trained on.
        path: the concept file.
        images: folder of pictures to compare with.
        clip: folder of a CLIP that measures; by default the judge of `pocket`, which knows only stickers.
        dino: folder of an image encoder whose likeness is reported beside, and decides nothing.
        on_event: a step and a preview for each, and a note for each picture that is left out.
        should_stop: asked now and then.

    Raises:
        ConceptError: if it cannot be read, does not fit the base or is a slider.
        DataError: if there are no pictures.
        ModelError: if there is no such CLIP or encoder.
        Cancelled: if `should_stop` said so; no card has changed then.
    """
    require_measurable(path)
    concept = Concept.load(path)
    examples = sound_examples(images, on_event)
    files = dict(candidates(path))
    if kept_step(path) is None:  # none of them: it is measured by itself
        steps = concept.card.recipe.get("steps")
        files = {steps if isinstance(steps, int) and steps > 0 else 1: path}
    written = {file: _sum(file) for file in (*files.values(), path)}
    scorer = scorer_for(components, concept, clip)
    second = None if dino is None else PictureEncoder.load(dino, str(components.device))
    choice = choose(
        components, _Learned(files), examples, scorer, second=second, on_event=on_event, should_stop=should_stop
    )
    for step, file in files.items():
        for place in dict.fromkeys((file, path)):
            if written[place] == written[file]:
                _note(place, written[file], choice.scores(step))
    return choice


@dataclass(frozen=True)
class _Learned(Mapping[int, Concept]):
    """Concepts by their steps, each read on access: all of them need not fit into memory."""

    files: Mapping[int, Path]

    def __getitem__(self, step: int) -> Concept:
        return Concept.load(self.files[step])

    def __iter__(self) -> Iterator[int]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _sum(path: Path) -> str:
    """Return the checksum of a concept's tensors, as its header has it."""
    return read_header(path).get("__metadata__", {}).get(HASH_KEY, "")


def _note(path: Path, written: str, scores: dict[str, float]) -> None:
    """Write figures into a card, unless the file was deleted, renamed or replaced while it was measured."""
    with suppress(ConceptError):
        if _sum(path) == written:
            Concept.load(path).with_scores(scores).save(path)


def scorer_for(components: Components, concept: Concept, clip: Path | None) -> Scorer | None:
    """Return the scorer of pictures of a base: the CLIP that is named, the judge of `pocket`, or None."""
    if clip is not None:
        return Clip.load(clip, str(components.device))
    if components.family.world != "pocket":
        return None
    return JudgeScorer(judge(), concept.card.kind in ("object", "subject"))


def scorer_of_prompts(components: Components, clip: Path | None) -> Scorer:
    """Return the scorer of whole pictures by their prompts: the CLIP that is named, or the judge of `pocket`.

    Raises:
        ModelError: if there is no such CLIP.
        ConfigError: if the base has no judge of its own and none is named.
    """
    if clip is not None:
        return Clip.load(clip, str(components.device))
    if components.family.world != "pocket":
        raise ConfigError(
            f"{components.name} has no judge of its own to tell the best of several pictures.",
            "On the command line name a CLIP with --clip FOLDER; else ask for one candidate.",
        )
    return JudgeScorer(judge(), things=False)


def told(choice: ProposedCandidate) -> dict[str, Any]:
    """Return a choice as plain data."""
    return {
        "word": choice.word,
        "baseline": choice.baseline.figures,
        "rows": [{"step": row.step, "figures": row.figures} for row in choice.rows],
        "step": choice.step,
        "reason": choice.reason,
    }
