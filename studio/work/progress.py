"""A progress line on standard error, fed by events."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TextIO

from pipelines.events import Event, Note, Preview, StepDone
from pipelines.files import whole_file

WIDTH = 24


class Progress:
    """Draws the newest state over the last on a terminal; elsewhere prints every tenth part.

    Args:
        title: name of the work.
        stream: output stream.
        previews: file that preview pictures are written to, or None.
    """

    def __init__(self, title: str, stream: TextIO | None = None, previews: Path | None = None) -> None:
        self.title, self.stream, self.previews = title, stream or sys.stderr, previews
        self._tenth = -1
        self._first: tuple[int, float] | None = None

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Note):
            self._line(f"{self.title}: {event.text}\n")
        elif isinstance(event, Preview) and self.previews:
            picture: Any = event.picture
            path = self.previews.with_name(f"{self.previews.stem}-{event.step}.png")
            with whole_file(path) as temporary:
                picture.save(temporary, format="PNG")

    def _step(self, event: StepDone) -> None:
        share = event.step / event.steps
        if self._first is None or event.step < self._first[0]:
            self._first = (event.step, event.seconds)
        # A resumed run begins in the middle, so its pace is taken between reports.
        begun, then = self._first
        pace = (event.seconds - then) / (event.step - begun) if event.step > begun else None
        left = "" if pace is None else f"  {pace * (event.steps - event.step):.0f} s left"
        figures = "  ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
        bar = "#" * round(share * WIDTH)
        text = f"{self.title} [{bar:<{WIDTH}}] {event.step}/{event.steps}{left}  {figures}"
        if self.stream.isatty():
            self._line(f"\r\x1b[K{text}" + ("\n" if event.step == event.steps else ""))
        elif int(share * 10) > self._tenth or event.step == event.steps:
            self._tenth = int(share * 10)
            self._line(text + "\n")

    def _line(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
