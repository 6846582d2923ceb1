"""Outputs of a training while it runs: previews, candidates, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from pipelines.errors import NotNumbers
from pipelines.events import Note, OnEvent, Preview, ignore
from pipelines.generation import generate
from pipelines.request.request import Request
from trainers.data.batches import Example, usable
from trainers.loop.candidates import candidate_steps
from trainers.loop.ema import EMA
from trainers.method import Artifact, Trainable

if TYPE_CHECKING:
    from trainers.run import Run

REPORT = 10  # steps between reports
Offer = Callable[[int, Artifact], None]


def after_step(
    run: Run,
    trainable: Trainable,
    examples: Sequence[Example],
    average: EMA,
    on_event: OnEvent,
    offer: Offer | None,
    shown: Callable[[], AbstractContextManager[None]],
) -> Callable[[int], dict[str, float]]:
    """Return the callback after each step: it updates the average and at times gives previews, candidates, figures.

    Args:
        run: method and settings.
        trainable: the trained parts.
        examples: the pictures.
        average: of what is trained.
        on_event: receives previews; none are drawn for `ignore`.
        offer: receives candidates with the steps they were trained for; None for none.
        shown: puts the result into the parameters inside its `with`, the average among others.
    """
    wanted = candidate_steps(run.train.steps, run.train.candidates) if offer else frozenset[int]()

    def after(done: int) -> dict[str, float]:
        for line in trainable.news():  # first: what stopped being a number must not get into the average
            on_event(Note(line))
        if run.train.ema:
            average.update()
        due = run.train.preview_every and done % run.train.preview_every == 0
        previews = on_event if due and on_event is not ignore else None
        with shown() if previews or done in wanted else nullcontext():
            if previews:
                try:
                    previews(_preview(trainable, run, examples, done))
                except NotNumbers as error:
                    previews(Note(f"no preview after step {done}: {error.message}"))
            # One that is no number any more would stop the run at its next report, and be refused when it is read.
            if offer and done in wanted and all(bool(one.isfinite().all()) for one in trainable.parameters.values()):
                offer(done, run.method.export(trainable))
        return trainable.figures() if done % REPORT == 0 or done == run.train.steps else {}

    return after


def on_plain_ground(prompt: str, world: str) -> str:
    """Return the prompt of a preview; for pocket with a background colour on which most things are visible."""
    return f"{prompt} on a blue background" if world == "pocket" and "background" not in prompt else prompt


def _preview(trainable: Trainable, run: Run, examples: Sequence[Example], step: int) -> Preview:
    """Draw what is learned as it is now."""
    if trainable.preview is not None:
        return trainable.preview(step)
    word = run.config.spoken
    prompt = _sample(trainable, examples, word).replace("{}", word)
    prompt = on_plain_ground(prompt, trainable.components.family.world)
    made: Any = generate(trainable.components, Request(prompt=prompt, steps=15, seed=run.train.seed))
    return Preview(step, made.pictures[0], prompt)


def _sample(trainable: Trainable, examples: Sequence[Example], token: str) -> str:
    """Return a caption to show the concept with: the first template, or else the first caption of a picture."""
    own = (caption for example in examples for caption in example.captions if usable(caption, token))
    return next(iter(trainable.templates), None) or next(own)
