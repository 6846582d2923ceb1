"""The schedule of a training: how long it takes, how fast it learns, and from which seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainers.loop.clock import Clock


@dataclass(frozen=True)
class Schedule:
    """Duration, learning rate, seed, gradient limits and reports of a training.

    Attributes:
        steps: optimiser steps in all.
        minutes: end after so much time if that is sooner.
        rate: learning rate of the optimisers, for those that are made from the schedule.
        warmup: steps over which the rate rises in a line.
        decay: share of the training, at its end, over which the rate falls to 0 in a line; 0 keeps it.
        seed: source of every draw.
        accumulate: calls of `losses` per optimiser step; their mean is optimised.
        clip: largest gradient norm, or None.
        report: steps between reports. Reading a loss waits for the device, so not every step.
    """

    steps: int
    minutes: float | None = None
    rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    seed: int = 0
    accumulate: int = 1
    clip: float | None = None
    report: int = 10

    def factor(self, clock: Clock) -> Callable[[int, int], float]:
        """Return the factor on the learning rate, by step and steps, or the minutes that are over."""
        return lambda step, steps: warm_stable_decay(step, steps, self.warmup, self.decay, clock.share(step, steps))


def warm_stable_decay(step: int, steps: int, warm: int = 100, decay: float = 0.3, share: float | None = None) -> float:
    """Return the factor on the learning rate: linear warm-up, a plateau, linear decay to 0 over the last `decay`.

    Args:
        step: the step, from 0.
        steps: steps of the run.
        warm: steps of warm-up.
        decay: share of the run, 0 to 1; 0 keeps the plateau to the end.
        share: of the run that is over, where time may end it before its steps do.
    """
    left = (steps - step) / max(1.0, decay * steps) if decay else 1.0
    left = min(left, (1 - share) / decay) if decay and share is not None and share > step / steps else left
    return min(1.0, (step + 1) / max(1, warm), max(0.0, left))
