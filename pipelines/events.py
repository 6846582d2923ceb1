"""Reports of long work while it runs: plain frozen records, importable without torch.

Everything that takes longer than a moment has an `on_event` argument and calls it with these; progress bars, the web
page and the job log are only different readers of the same stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepDone:
    """One optimisation or denoising step (or a group of them) is done.

    Attributes:
        step: steps done so far, 1-based.
        steps: steps planned.
        terms: named figures, averaged since the last report: loss terms, displacement, norm, rate.
        seconds: time since the loop began.
    """

    step: int
    steps: int
    terms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Preview:
    """A picture of the state of the work.

    Attributes:
        step: step at which it was made.
        picture: a `PIL.Image.Image`.
        caption: the prompt it shows.
    """

    step: int
    picture: object
    caption: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence for the person: what is being done now, what was left out and why."""

    text: str


Event = StepDone | Preview | Note
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Receive an event and do nothing with it."""
