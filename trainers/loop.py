"""The training loop: losses in, optimiser steps out. Every method and every stage of pre-training runs on it.

What is special about a method is a function `losses(index, generator) -> {name: term}`; the loop sums the terms, steps,
reports, checkpoints, stops when asked to and stops by itself when a loss is no longer a number. Chance comes from one
`torch.Generator` per step, seeded by (seed, step), so a resumed run draws exactly what an uninterrupted one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.errors import Cancelled, ConfigError
from pipelines.events import Note, OnEvent, StepDone, ignore
from trainers.checkpoints import Checkpoint

Losses = Callable[[int, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Pace:
    """How long and how a loop runs.

    Attributes:
        steps: optimiser steps in all.
        seed: source of every draw.
        accumulate: calls of `losses` per optimiser step; their mean is optimised.
        clip: largest gradient norm, or None.
        report: steps between reports. Reading a loss waits for the device, so not every step.
    """

    steps: int
    seed: int = 0
    accumulate: int = 1
    clip: float | None = None
    report: int = 10


def step_generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step; the same for a run that was resumed."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step * 7_919 + 17) % (1 << 63))


def warm_stable_decay(step: int, steps: int, warm: int = 100, decay: float = 0.3) -> float:
    """Factor on the learning rate: linear warm-up, a plateau, linear decay to 0 over the last `decay` of the run."""
    left = (steps - step) / max(1.0, decay * steps)
    return min(1.0, (step + 1) / max(1, warm), max(0.0, left))


def optimise(
    losses: Losses,
    optimizers: list[torch.optim.Optimizer],
    pace: Pace,
    *,
    rate: Callable[[int, int], float] = lambda step, steps: 1.0,
    after_step: Callable[[int], dict[str, float] | None] = lambda step: None,
    checkpoint: Checkpoint | None = None,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Run the loop and return the steps done.

    Args:
        losses: gives the named loss terms of a batch, by its index from 0; called `pace.accumulate` times a step with
            the generator of that step.
        optimizers: all stepped each step; their learning rates are those set on them times `rate(step, steps)`.
        pace: steps, seed, accumulation, clipping, reporting.
        rate: learning-rate factor.
        after_step: called with the steps done (moving averages, previews); figures it returns join the report.
        checkpoint: state to resume from and to keep.
        backward: how a summed loss is differentiated (accelerate's, in a distributed run).
        on_event: receives `StepDone` and `Note`.
        should_stop: asked once a step; true leaves the loop with `Cancelled`, state kept.

    Raises:
        Cancelled: if `should_stop` said so.
        ConfigError: if a loss is not finite, naming the terms; or if more steps are done than asked for.
    """
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    begun = _begun(checkpoint, pace, on_event)
    report, start = _Means(), time.monotonic()
    for step in range(begun, pace.steps):
        if should_stop():
            if checkpoint:
                checkpoint.save(step)
            raise Cancelled(f"stopped after step {step} of {pace.steps}.")
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, value in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = value * rate(step, pace.steps)
        generator = step_generator(pace.seed, step)
        for part in range(pace.accumulate):
            terms = losses(step * pace.accumulate + part, generator)
            backward(torch.stack(list(terms.values())).sum() / pace.accumulate)
            report.add(terms)
        _step(optimizers, pace.clip)
        done = step + 1
        figures = after_step(done) or {}
        if done % pace.report == 0 or done == pace.steps:
            means = report.take()
            _require_finite(means, done)
            on_event(StepDone(done, pace.steps, means | figures, time.monotonic() - start))
        if checkpoint and (done % checkpoint.every == 0 or done == pace.steps):
            checkpoint.save(done)
    return pace.steps


def _begun(checkpoint: Checkpoint | None, pace: Pace, on_event: OnEvent) -> int:
    """Restore the state that was kept and give the steps it had done."""
    begun = checkpoint.load() if checkpoint else 0
    if begun > pace.steps:
        raise ConfigError(
            f"{begun} steps are done already, {pace.steps} were asked for.", "Ask for more, or begin anew."
        )
    if begun:
        on_event(Note(f"resumed after step {begun}"))
    return begun


class _Means:
    """Means of named terms, summed on their device so that nothing waits for it before they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        self.count += 1
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, term.new_zeros(())) + term.detach()

    def take(self) -> dict[str, float]:
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def _step(optimizers: list[torch.optim.Optimizer], clip: float | None) -> None:
    if clip is not None:
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _require_finite(means: dict[str, float], step: int) -> None:
    broken = [name for name, value in means.items() if not abs(value) < float("inf")]
    if broken:
        raise ConfigError(
            f"the loss ({', '.join(broken)}) stopped being a number by step {step}.",
            "Lower the learning rate or train in float32, and delete the training state that was kept, if any.",
        )
