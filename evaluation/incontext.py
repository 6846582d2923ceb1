"""Quality of answers to visual prompts: tasks of the sticker world on scenes and stickers held out of training.

Beside the answers stand three baselines: the query itself, the answer without an example (its cells blank), and the
answer to a wrong example: of another task, or of the same task with another parameter that only the example shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evaluation.picture_measures import MAIN, Measure, measures
from pipelines.events import Note, OnEvent, ignore
from pipelines.incontext import best_detail, paint, settled
from pipelines.measures.judge import Judge
from pipelines.models.components import Components
from pipelines.pictures.grids import Grid
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_pictures
from pipelines.request.request import Request
from trainers.stickers.tasks import TASKS, TRAINED_TASKS, Drawings, Material, Pool, pairs, scenes_for
from trainers.stickers.world import HELD_OUT

PICTURES = 12
"""Questions of each task."""
SEED = 7_000
WAYS = ("answer", "copy", "no example", "wrong example")
"""The model's answers, then the baselines."""
BATCH = 16
STEPS = 10
"""Denoising steps of an answer: more change little where an example leaves little open."""

SEEN_IN_QUERY = ("style",)
"""Tasks whose parameter the query shows as well: which of the styles it is in."""

PUBLISHED = (
    "Published for MAE-VQGAN (Bar et al.), on another set of tasks (photographs): foreground masks 0.24 to 0.30 mIoU "
    "on the four folds of Pascal-5i, detection 0.25."
)

# -- questions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """Questions of one task.

    Attributes:
        cells: (B, 2, 2, 3, S, S), example and query, before and after; the query's after is the truth.
        wrong: (B, 2, 3, S, S), a wrong example for each.
    """

    cells: Tensor
    wrong: Tensor

    @property
    def truths(self) -> Tensor:
        """The right answers, (B, 3, S, S)."""
        return self.cells[:, -1, 1]

    def asked(self, way: str) -> Tensor:
        """Return the cells with the truth greyed, and with the example of a way."""
        cells = self.cells.clone()
        cells[:, -1, 1] = 0
        if way == "no example":
            cells[:, 0] = 0
        elif way == "wrong example":
            cells[:, 0] = self.wrong
        return cells


def questions(name: str, count: int, drawings: Drawings, names: Sequence[str], seed: int = SEED) -> Questions:
    """Return questions of a task about scenes of these stickers, every scene used once.

    Args:
        name: a key of `TASKS`.
        count: number of items.
        drawings: of the stickers.
        names: stickers to choose from.
        seed: source of chance.
    """
    task = TASKS[name]
    material = Pool(scenes_for(task.scenes, 2 * count, seed, names), drawings).take(
        torch.arange(2 * count).view(count, 2)
    )
    cells = pairs(task, material, torch.Generator().manual_seed(seed))
    hidden = task.reveals and name not in SEEN_IN_QUERY
    return Questions(cells, _otherwise(name, material, cells, seed) if hidden else _elsewise(name, material, seed))


def _otherwise(name: str, material: Material, cells: Tensor, seed: int) -> Tensor:
    """Return examples of the same task with another parameter, one that changes the query's answer."""
    wrong, missing = cells[:, 0].clone(), torch.ones(len(cells), dtype=torch.bool)
    attempt = seed
    while missing.any():
        attempt += 1
        other = pairs(TASKS[name], material, torch.Generator().manual_seed(attempt))
        differs = (other[:, -1, 1] - cells[:, -1, 1]).abs().flatten(1).amax(1) > 0.1
        wrong = torch.where((missing & differs)[:, None, None, None, None], other[:, 0], wrong)
        missing &= ~differs
    return wrong


def _elsewise(name: str, material: Material, seed: int) -> Tensor:
    """Return examples of other tasks in turn, on the same pictures.

    An example of masks is none that is wrong for boxes: the box around a mask is the right one.
    """
    near = ("mask", "box") if name == "box" else (name,)
    others = [one for one in TRAINED_TASKS if one not in near and TASKS[one].scenes in ("any", TASKS[name].scenes)]
    made = [pairs(TASKS[one], material, torch.Generator().manual_seed(seed + 1))[:, 0] for one in others]
    return torch.stack([made[row % len(others)][row] for row in range(len(material.pictures))])


# -- scores -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskScore:
    """The answers to the questions of a task, and their figures.

    Attributes:
        name: of the task.
        figures: way -> measure -> figures (B,).
        questions: the questions.
        answers: way -> (B, 3, S, S).
        measure: the one it is judged by.
    """

    name: str
    figures: Mapping[str, Mapping[str, Tensor]]
    questions: Questions
    answers: Mapping[str, Tensor]
    measure: Measure
    main: str
    table: dict[str, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        means = {way: {m: float(f.mean()) for m, f in rows.items()} for way, rows in self.figures.items()}
        object.__setattr__(self, "table", means)

    @property
    def beats_all(self) -> bool:
        """Return whether the answer is better than every baseline, by the task's own measure."""
        return all(self.measure.better(self.mean("answer"), self.mean(way)) for way in WAYS[1:])

    def mean(self, way: str) -> float:
        """Return the mean of the task's own measure."""
        return self.table[way][self.main]

    @property
    def margin(self) -> tuple[float, float]:
        """Return the advantage of the right example over the wrong one, with half its 95 % interval (paired)."""
        gain = self.figures["answer"][self.main] - self.figures["wrong example"][self.main]
        gain = gain if self.measure.higher else -gain
        return float(gain.mean()), 1.96 * float(gain.std(correction=0)) / math.sqrt(len(gain))


def _answered(components: Components, cells: Tensor, request: Request, grids: Sequence[Grid], way: str) -> Tensor:
    """Return the answers as anybody gets them, with as much of the query's detail as its example asks for."""
    detail = () if way == "no example" else best_detail(components, cells, request, grids)
    return paint(components, cells, request, grids, detail=detail).answers


def score_task(
    components: Components,
    name: str,
    asked: Questions,
    judge: Judge,
    *,
    request: Request | None = None,
    grids: Sequence[Grid] = (Grid(),),
    batch: int = BATCH,
) -> TaskScore:
    """Answer the questions of a task in every way, and measure the answers.

    Args:
        components: with an inpainting UNet.
        name: of the task.
        asked: the questions.
        judge: measures likeness.
        request: sampler and guidance; by default the base's own with `STEPS`, without guidance.
        grids: arrangements that are averaged.
        batch: questions at once.
    """
    request = settled(components, request or Request(prompt="", seed=SEED, steps=STEPS))
    answers = {"copy": asked.cells[:, -1, 0]}
    for way in ("answer", "no example", "wrong example"):
        parts = asked.asked(way).split(batch)
        answers[way] = torch.cat(
            [
                _answered(components, part, request.model_copy(update={"seed": request.seed + batch * i}), grids, way)
                for i, part in enumerate(parts)
            ]
        )
    known = measures(judge)
    figures = {
        way: {key: one.take(answers[way], asked.truths, asked.cells[:, -1, 0]) for key, one in known.items()}
        for way in WAYS
    }
    main = MAIN.get(name, "pixel")
    return TaskScore(name, figures, asked, answers, known[main], main)


def score_tasks(
    components: Components,
    names: Sequence[str] = tuple(TASKS),
    count: int = PICTURES,
    *,
    stickers: Sequence[str] = tuple(HELD_OUT),
    request: Request | None = None,
    judge: Judge,
    on_score: Callable[[TaskScore], None] = lambda score: None,
    on_event: OnEvent = ignore,
) -> dict[str, TaskScore]:
    """Score tasks on scenes of stickers that were held out of all training.

    Args:
        components: with an inpainting UNet.
        names: keys of `TASKS`.
        count: questions of each.
        stickers: names of what the scenes show.
        request: sampler and guidance.
        judge: measures likeness.
        on_score: receives each score as it comes.
        on_event: receives a note for each task.
    """
    drawings, scores = Drawings.of(stickers), {}
    for name in names:
        on_event(Note(f"{name}: {count} questions in three ways"))
        asked = questions(name, count, drawings, stickers)
        scores[name] = score_task(components, name, asked, judge, request=request)
        on_score(scores[name])
    return scores


# -- what is shown ----------------------------------------------------------------------------------------------


def row(score: TaskScore) -> str:
    """Return the figures of a task as a line of text."""
    figures = "  ".join(f"{way} {score.mean(way):.3f}" for way in WAYS)
    gain, half = score.margin
    kind = "trained" if score.name in TRAINED_TASKS else "held out"
    return (
        f"{score.name:<9}{kind:<9}{score.measure.name:<12}{figures}  right over wrong {gain:+.3f} +- {half:.3f}"
        f"  pixel error {score.table['answer']['pixel']:.3f}"
        f"  drawn likeness {score.table['answer']['drawn']:.3f} (the query itself {score.table['copy']['drawn']:.3f})"
    )


def summary(scores: Mapping[str, TaskScore]) -> list[str]:
    """Return sentences with the conclusions from all tasks."""
    trained = [score for name, score in scores.items() if name in TRAINED_TASKS]
    lines = [f"trained tasks above all three baselines: {sum(s.beats_all for s in trained)} of {len(trained)}"]
    below = [score.name for score in trained if not score.beats_all]
    lines += [f"not above: {', '.join(below)}"] if below else []
    clear = [score for score in trained if score.margin[0] > score.margin[1]]
    lines.append(f"right example above wrong one, interval clear of 0: {len(clear)} of {len(trained)}")
    return [*lines, PUBLISHED]


def as_json(scores: Mapping[str, TaskScore]) -> dict[str, Any]:
    """Return all figures as plain data."""
    return {
        name: {
            "trained": name in TRAINED_TASKS,
            "measure": score.main,
            "higher_is_better": score.measure.higher,
            "questions": len(score.questions.cells),
            "ways": score.table,
            "beats_all_baselines": score.beats_all,
            "right_over_wrong": dict(zip(("mean", "half_interval"), score.margin, strict=True)),
        }
        for name, score in scores.items()
    } | {"published": PUBLISHED}


def sheet(scores: Mapping[str, TaskScore], shown: int = 2) -> Sheet:
    """Return rows of tasks: example pair, query, answer, truth."""
    drawn = Sheet(cell=96, label=150)
    drawn.head(["before", "after", "query", "answer", "truth"] * shown)
    for name, score in scores.items():
        columns = [
            torch.stack([*score.questions.cells[i, 0], score.questions.cells[i, 1, 0], score.answers["answer"][i],
                         score.questions.truths[i]])
            for i in range(min(shown, len(score.questions.cells)))
        ]  # fmt: skip
        kind = "" if name in TRAINED_TASKS else " (never trained)"
        told = f"{score.measure.name} {score.mean('answer'):.2f}\nwrong example {score.mean('wrong example'):.2f}"
        drawn.row(f"{name}{kind}\n{told}", to_pictures(torch.cat(columns)))
    return drawn
