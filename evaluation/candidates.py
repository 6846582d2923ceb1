"""The choice among candidates of a training: each is measured, and one is proposed with its reason.

All are shown the same prompts and seeds, beside the word that training started from. How well a concept shows its
pictures usually rises until the end while how well it follows prompts falls, so neither alone decides: among the steps
whose likeness is within one standard error of the best (the one-standard-error rule of Breiman et al., 1984, on
differences between pictures of the same seed), the one that follows prompts best is proposed, the earliest of equals.

A judge is easily content: it likes real pictures of other things, too. Where the thing can be cut out of its pictures,
likeness is the drawn one (`pipelines.measures.drawn`), and a step is proposed only if drawing and judge both say that
it shows the pictures better than the word it started from, and the judge better than other things do.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from evaluation.sticker_finder import Finder
from evaluation.truth import crops_of, other_things
from pipelines.concepts.card import ConceptCard, Kind
from pipelines.concepts.concept import Concept
from pipelines.errors import Cancelled, NotNumbers
from pipelines.events import OnEvent, Preview, StepDone, ignore
from pipelines.generation import generate
from pipelines.measures.judge import INPUT, Judge
from pipelines.models.components import Components
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import fit, to_tensor
from pipelines.request.request import ConceptUse, Request
from trainers.data.batches import LatentSet, prompt_templates
from trainers.data.folders import Example
from trainers.losses import conditioning, denoising_errors, pixels_of
from trainers.settings import ObjectiveConfig
from trainers.stickers.drawn import best_of, cut_from
from trainers.stickers.relations import RELATED
from trainers.stickers.world import article

SEEDS, STEPS = 3, 12
"""Pictures of each prompt, and denoising steps of each."""
LEVELS = 12
"""Timesteps, spread evenly, at which the error on the training pictures is measured."""
CERTAIN = 2.0
"""Standard errors by which a step must be better than the word it started from, as the best of several is compared."""
KEPT = 0.9
"""Share of its alignment that the class word must keep; changing it more is the price of no likeness."""

MEASURED = {
    "drawn": "Drawn likeness to your pictures",
    "likeness": "Likeness to your pictures",
    "error": "Error on your pictures",
}
"""Figures that describe a step in words; the first of them that it has is used."""
DRAWINGS = 2
"""Pictures whose thing is cut out and compared with what was drawn."""

POCKET_THINGS = ("a {}", "a {} on a yellow background", "a {} on a blue background", "a {} to the left of a house")
POCKET_STYLES = ("a {} fox", "a {} house on a yellow background", "a {} car on a blue background", "a {} apple")
THINGS = ("a photo of a {}", "a {} on the beach", "a {} in the snow", "a {} with a city in the background")
STYLES = tuple(f"a {one} in the style of {{}}" for one in ("house", "dog", "tree", "car"))
PAIRS = (("cat", "box"), ("dog", "basket"), ("bird", "car"), ("rabbit", "hat"))
"""Things that relations are tried between on real bases; on `pocket`, stickers that were in no picture."""
TRIED, PAIR_SEED = 8, 7


class PictureScorer(Protocol):
    """An image encoder."""

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors (N, D)."""
        ...


class Scorer(PictureScorer, Protocol):
    """An encoder of pictures and texts into one space: a CLIP."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (N, D)."""
        ...


@dataclass(frozen=True)
class JudgeScorer:
    """The judge of `pocket`, applied to the largest thing of a picture where a thing was learned."""

    judge: Judge
    things: bool

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors (N, D)."""
        if self.things:
            return self.judge.embed_pictures(crops_of(pictures))
        return self.judge.embed_pictures(torch.stack([to_tensor(fit(one, INPUT, INPUT)) for one in pictures]))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (N, D)."""
        return self.judge.embed_texts(list(texts))


@dataclass(frozen=True, eq=False)
class Row:
    """The measurements of a concept, or of the word that training started from.

    Attributes:
        step: steps it was trained for; 0 for that word.
        figures: means by name.
        fit: similarity to the training pictures by the judge, or by the error, higher is better, (N,); the same
            order in all rows.
        edit: agreement with prompts, (M,), or None without a scorer.
        pictures: measured pictures, the seeds of a prompt together.
        drawn: drawn likeness of each picture, (N,), or None where the thing could not be cut out.
    """

    step: int
    figures: dict[str, float]
    fit: Tensor
    edit: Tensor | None = None
    pictures: Sequence[Image.Image] = ()
    drawn: Tensor | None = None

    @property
    def alike(self) -> Tensor:
        """The deciding likeness: the drawn likeness, or `fit` without one."""
        return self.fit if self.drawn is None else self.drawn


@dataclass(frozen=True)
class ProposedCandidate:
    """The candidate proposed, and the measurements.

    Attributes:
        baseline: the word that training started from.
        rows: the concepts, by steps.
        step: the one proposed.
        reason: why, in a sentence or two.
        word: that word.
    """

    baseline: Row
    rows: tuple[Row, ...]
    step: int
    reason: str
    word: str

    def scores(self, step: int) -> dict[str, float]:
        """Return figures of a step for the card, with those of the baseline beside them as NAME_word."""
        row = next(row for row in self.rows if row.step == step)
        return row.figures | {f"{name}_word": value for name, value in self.baseline.figures.items()}

    def sheet(self, cell: int = 96) -> Sheet:
        """Return the measured pictures, a row for each step."""
        sheet = Sheet(cell=cell, title="The same prompts and seeds for every step")
        for row, name in ((self.baseline, f"“{self.word}”, before"), *((row, f"step {row.step}") for row in self.rows)):
            said = "\n".join(f"{figure.replace('_', ' ')} {value:.3f}" for figure, value in row.figures.items())
            sheet.row(f"{name}{' (proposed)' if row.step == self.step else ''}\n{said}", row.pictures[:8])
        return sheet


def choose(
    components: Components,
    candidates: Mapping[int, Concept],
    examples: Sequence[Example],
    scorer: Scorer | None,
    *,
    second: PictureScorer | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> ProposedCandidate:
    """Measure concepts of one training and propose one of them.

    Args:
        components: the base they were trained on; bit-identical afterwards.
        candidates: steps -> concept, at least one; each is asked for in its turn, so they need not be in memory.
        examples: pictures to compare with: better ones that training did not see, usually those it did.
        scorer: measures the pictures; None measures the error on the training pictures alone.
        second: a judge whose likeness is reported and decides nothing, so that the choice can be checked by it.
        on_event: a `StepDone` and a `Preview` for each of them.
        should_stop: asked before each and within.

    Raises:
        Cancelled: if `should_stop` said so.
        ConceptError: if one does not fit the base.
    """
    card = candidates[max(candidates)].card
    trial = _Trial(components, card, examples, scorer, second, should_stop)
    word = card.init or "thing"
    rows: list[Row] = []
    began = time.monotonic()
    for number, step in enumerate([0, *sorted(candidates)]):
        rows.append(trial.row(step, candidates[step] if step else None, word, rows[0] if rows else None))
        on_event(StepDone(number + 1, len(candidates) + 1, rows[-1].figures, time.monotonic() - began))
        on_event(Preview(step, rows[-1].pictures[0], f"step {step}" if step else word))
    step, reason = proposed(rows[0], rows[1:], word)
    return ProposedCandidate(rows[0], tuple(rows[1:]), step, reason, word)


def _prompts(kind: Kind, pocket: bool, pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return prompts with a `{}`, to show a concept in."""
    if kind == "relation":
        return tuple(f"{article(one)} {one} {{}} {article(other)} {other}" for one, other in pairs)
    if kind == "style":
        return POCKET_STYLES if pocket else STYLES
    return POCKET_THINGS if pocket else THINGS


def _pairs(card: ConceptCard, pocket: bool) -> Sequence[tuple[str, str]]:
    """Return the things a relation is tried between, on `pocket` none that its pictures show."""
    if not pocket:
        return PAIRS
    unseen, rng = [name for name in RELATED if name not in card.left + card.right], random.Random(PAIR_SEED)
    return [(one, other) for one, other in (rng.sample(unseen, 2) for _ in range(TRIED))]


class _Trial:
    """The measurements that all candidates of a training go through."""

    def __init__(
        self,
        components: Components,
        card: ConceptCard,
        examples: Sequence[Example],
        scorer: Scorer | None,
        second: PictureScorer | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.components, self.scorer, self.should_stop, self.second = components, scorer, should_stop, second
        self.shown = second.pictures([one.picture for one in examples]) if second is not None else None
        pocket, relation = components.family.world == "pocket", card.kind == "relation"
        # Captions say the concept's word, which stands for the baseline's as well.
        marked = [tuple(text.replace(card.token, "{}") for text in one.captions) for one in examples]
        self.examples = [replace(one, captions=texts) for one, texts in zip(examples, marked, strict=True)]
        self.pairs = _pairs(card, pocket) if relation else ()
        self.prompts = _prompts(card.kind, pocket, self.pairs)
        self.seeds = 1 if relation and pocket else SEEDS
        self.finder = Finder(sorted({name for pair in self.pairs for name in pair})) if relation and pocket else None
        seen = scorer is not None and not relation
        pictures = [one.picture for one in examples]
        self.real = scorer.pictures(pictures) if scorer is not None and seen else None
        things = isinstance(scorer, JudgeScorer) and scorer.things
        self.drawings = cut_from(pictures)[:DRAWINGS] if things else ()
        self.others = scorer.pictures(other_things()) if scorer is not None and things else None
        size = components.defaults.size
        self.latents = LatentSet(components, self.examples, resolution=size)

    def row(self, step: int, concept: Concept | None, word: str, baseline: Row | None) -> Row:
        """Measure one concept, or the word alone."""
        said = concept.token if concept else word
        error = self._error(concept, said)
        figures = _finite({"error": float(error.mean())})
        pictures = self._pictures(concept, said)  # also where nobody measures them: people look
        if self.second is not None and self.shown is not None:
            figures["second_likeness"] = float((self.second.pictures(pictures) @ self.shown.T).mean())
        if self.finder is not None:
            edit = self._both_there(pictures)
            return Row(step, {"both_there": float(edit.mean())} | figures, -error, edit, pictures)
        if self.scorer is None or self.real is None:
            return Row(step, figures, -error, None, pictures)
        seen = self.scorer.pictures(pictures)
        fit, edit = (seen @ self.real.T).mean(1), self._aligned(seen, word)
        figures = {"likeness": float(fit.mean()), "alignment": float(edit.mean())} | figures
        drawn: Tensor | None = None
        if self.drawings:
            drawn = torch.tensor([best_of(to_tensor(one), self.drawings).likeness for one in pictures])
            figures = {"drawn": float(drawn.mean())} | figures
        if self.others is not None and concept is not None:
            figures["likeness_floor"] = float((self.others @ self.real.T).mean())
        if concept is not None and concept.changes and baseline is not None and baseline.figures.get("alignment"):
            kept = self._aligned(self.scorer.pictures(self._pictures(concept, word)), word)
            figures["class_kept"] = float(kept.mean()) / baseline.figures["alignment"]
        return Row(step, _finite(figures), fit, edit, pictures, drawn)

    def _pictures(self, concept: Concept | None, said: str) -> list[Image.Image]:
        made: list[Image.Image] = []
        for index, prompt in enumerate(self.prompts):
            request = Request(
                prompt=prompt.replace("{}", said),
                concepts=(ConceptUse(source="measured"),) if concept else (),
                count=self.seeds,
                seed=1000 * (index + 1),
                steps=STEPS,
            )
            concepts = {"measured": concept} if concept else {}
            try:
                made += generate(self.components, request, concepts=concepts, should_stop=self.should_stop).pictures
            except NotNumbers:  # nothing is like it, so it is never proposed
                side = self.components.defaults.size
                made += [Image.new("RGB", (side, side))] * self.seeds
        return made

    def _aligned(self, seen: Tensor, word: str) -> Tensor:
        assert self.scorer is not None
        wording = [prompt.replace("{}", word) for prompt in self.prompts for _ in range(self.seeds)]
        return (seen * self.scorer.texts(wording)).sum(1)

    def _both_there(self, pictures: Sequence[Image.Image]) -> Tensor:
        assert self.finder is not None
        found = [{thing.name for thing in self.finder(to_tensor(one))} for one in pictures]
        return torch.tensor([float(set(pair) <= names) for pair, names in zip(self.pairs, found, strict=True)])

    @torch.no_grad()
    def _error(self, concept: Concept | None, said: str) -> Tensor:
        """Return denoising errors on the pictures at evenly spread timesteps, with equal noise for every candidate."""
        if concept is None:
            return self._errors(self.components, said)
        with concept.attach(self.components) as attached:
            return self._errors(attached, said)

    def _errors(self, components: Components, said: str) -> Tensor:
        process = components.family.process(components)
        templates = prompt_templates("pocket" if components.family.world == "pocket" else "object")
        errors: list[Tensor] = []
        for index in range(LEVELS):
            if self.should_stop():
                raise Cancelled("stopped while errors were measured.")
            generator = torch.Generator().manual_seed(index)
            batch = self.latents.draw(index, min(len(self.examples), 8), said, templates, generator)
            noise = torch.randn(batch.latents.shape, generator=generator).to(components.device)
            place = torch.tensor(int((index + 0.5) / LEVELS * process.count), device=components.device)
            draw = noise, process.at(place).expand(len(batch.latents))
            told = conditioning(components, batch.captions, batch.frames, pixels_of(components, batch.latents))
            errors.append(denoising_errors(components, batch, draw, process, told, ObjectiveConfig()))
        return torch.cat(errors).cpu()


def _finite(figures: dict[str, float]) -> dict[str, float]:
    """Return the finite ones: a network in float16 may overflow."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def proposed(baseline: Row, rows: Sequence[Row], word: str) -> tuple[int, str]:
    """Return the step to keep and the reason.

    Args:
        baseline: the word training started from.
        rows: the concepts, at least one, the same prompts and seeds in all.
        word: that word.
    """
    told = [row for row in rows if bool(torch.isfinite(row.fit).all())]
    if not told or not bool(torch.isfinite(baseline.fit).all()):
        return max(row.step for row in rows), "What was measured is no number. Try --dtype float32."
    fair = [row for row in told if row.figures.get("class_kept", 1.0) >= KEPT]
    spoilt = [str(row.step) for row in told if row not in fair]
    left_out = f" Left out for changing what “{word}” means: step {', '.join(spoilt)}." if spoilt and fair else ""
    if not fair:
        left_out, fair = f" Each step changed what “{word}” means.", told
    better = [row for row in fair if _shows(row, baseline)]
    if not better:
        tried = "More steps, other pictures or a way that changes weights may help."
        said = f"No step clearly shows the pictures better than “{word}”, where training started. {tried}{left_out}"
        return max(row.step for row in fair), said
    best = max(better, key=lambda row: float(row.alike.mean()))
    equal = [row for row in better if not _above(best.alike, row.alike)]
    chosen = max(equal, key=lambda row: (0.0 if row.edit is None else float(row.edit.mean()), -row.step))
    said = f"{_measured(chosen)}, before training {_value(baseline)}."
    if chosen is not best:
        said += f" The best, {_value(best)} at step {best.step}, is not clearly better (one standard error) and "
        said += _edited(chosen, best)
    elif others := [row for row in fair if row is not best]:
        second = max(others, key=lambda row: float(row.alike.mean()))
        said += f" The next best is {_value(second)} at step {second.step}."
    return chosen.step, said + left_out


def _shows(row: Row, baseline: Row) -> bool:
    """Return whether judge and drawing both prefer it to the word, and to other things, in likeness to the pictures."""
    drawn = row.drawn is None or baseline.drawn is None or _above(row.drawn, baseline.drawn, CERTAIN)
    floor = row.figures.get("likeness_floor")
    known = floor is None or _above(row.fit, torch.full_like(row.fit, floor), CERTAIN)
    return drawn and known and _above(row.fit, baseline.fit, CERTAIN)


def _above(one: Tensor, other: Tensor, errors: float = 1.0) -> bool:
    """Return whether one is higher by a number of standard errors of the mean difference, picture by picture."""
    difference = (one - other).double()
    spread = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()) > errors * spread


def _value(row: Row) -> str:
    return f"{row.figures[next(name for name in MEASURED if name in row.figures)]:.3f}"


def _measured(row: Row) -> str:
    return f"{next(said for name, said in MEASURED.items() if name in row.figures)} {_value(row)}"


def _edited(chosen: Row, best: Row) -> str:
    """Return the reason for a candidate that is not the best in likeness."""
    if chosen.edit is None or best.edit is None:
        return "took longer."
    what = "shows both things less well" if "both_there" in chosen.figures else "follows prompts less well"
    own, other = f"{float(chosen.edit.mean()):.3f}", f"{float(best.edit.mean()):.3f}"
    return f"{what}: {other} against {own}." if own != other else "took longer."
