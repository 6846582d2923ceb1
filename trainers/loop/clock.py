"""Progress of a training: by its steps, or by the minutes it may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.errors import Cancelled


class Clock:
    """The time of a training, without pauses between runs.

    Args:
        minutes: wall-clock time it may take; None counts steps alone.

    Attributes:
        steps: done so far; set by the loop.
    """

    def __init__(self, minutes: float | None) -> None:
        self.limit = None if minutes is None else 60 * minutes
        self.steps = 0
        self.resume(0.0)

    def resume(self, seconds: float) -> None:
        """Count the seconds of earlier runs."""
        self.before, self.began = seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds of training so far, with those of earlier runs."""
        return self.before + time.monotonic() - self.began

    def count(self, done: int) -> None:
        """Remember the steps done."""
        self.steps = done

    @property
    def over(self) -> bool:
        """Return whether the minutes are over."""
        return self.limit is not None and self.seconds >= self.limit

    def share(self, step: int, steps: int) -> float:
        """Return the progress between 0 and 1, of the steps or of the minutes, whichever is further."""
        by_time = 0.0 if self.limit is None else self.seconds / self.limit if self.limit else 1.0
        return min(1.0, max(step / steps, by_time))


@contextmanager
def until(clock: Clock) -> Iterator[None]:
    """End the training normally when it is stopped because its minutes are over."""
    try:
        yield
    except Cancelled:
        if not clock.over:
            raise
