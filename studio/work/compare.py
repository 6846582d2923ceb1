"""Execution of requests, also as comparisons: every cell equals its picture alone, and a labelled sheet of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.best_of import best_of
from pipelines.errors import RequestError
from pipelines.events import Event, Note, OnEvent, Preview, StepDone
from pipelines.files import require_room
from pipelines.models.components import Components
from pipelines.pictures.sheet import Sheet
from pipelines.request.axes import Axis, cells, labels
from pipelines.request.request import Request
from studio.library.names import require_strengths
from studio.settings import Machine, Picking
from studio.work import runner
from studio.work.measure import scorer_of_prompts
from studio.work.naming import named_placed
from studio.work.progress import Progress

ALL = Picking()
SIDE = 128
"""Pixels of a picture on the sheet, at least."""

WIDEST = 4096
"""Pixels of the pictures on the sheet, across or down, as long as each has its `SIDE`."""

LABEL = 160  # pixels of the column that says what the rows are
LONGEST = 300  # characters of a caption


def draw(
    request: Request,
    axes: Sequence[Axis],
    base: str,
    output: Path,
    machine: Machine,
    *,
    components: Components | None = None,
    picking: Picking = ALL,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Generate a request, or compare it along the axes if there are any, and write the pictures.

    Cells are made one by one, so that each is, bit for bit, what its request alone makes.

    Args:
        request: the request, common to all cells.
        axes: none, one or two; the first runs across.
        base: the base model.
        output: folder for the pictures.
        machine: device settings.
        components: the base if it is in memory already.
        picking: how many candidates of each picture are drawn, and what judges them.
        on_event: receives events instead of a progress line; those of all cells as of one work, with previews.
        should_stop: asked before each step.

    Returns:
        The pictures; of a comparison the sheet first, then the cells row by row.

    Raises:
        StudioError: if a cell cannot be, before anything is generated; if candidates are to be compared.
        Cancelled: if `should_stop` said so; cells that are done stay.
    """
    request = named_placed(request, machine.finder) if not axes else request
    if picking.best_of > 1:
        return _picked(request, axes, base, output, machine, picking, components, on_event, should_stop)
    if not axes:
        return runner.write_pictures(
            request, base, output, machine, components=components, on_event=on_event, should_stop=should_stop
        )
    each = [named_placed(cell, machine.finder) for cell in _cells(request, axes, output)]
    components = components or runner.open_base(base, machine)
    steps = [int(cell.resolved(components.defaults).steps or 1) for cell in each]
    together = _Together(on_event or Progress("compare"), steps)
    paths: list[Path] = []
    for cell, label in zip(each, labels(axes), strict=True):
        made = runner.write_pictures(
            cell,
            base,
            output,
            machine,
            components=components,
            on_event=together.tell,
            should_stop=should_stop,
            watch=False,
        )
        paths += made
        together.done(_opened(made[0]), label)
    return [sheet(request, axes, paths).save(runner.free_path(output, "comparison")), *paths]


def _cells(request: Request, axes: Sequence[Axis], output: Path) -> list[Request]:
    """Return the pictures of a comparison row by row, which can all be drawn and have room."""
    each = [cell for row in cells(request, axes) for cell in row]
    require_strengths(each)
    require_room(output, (1 + len(each)) << 20)
    return each


def _picked(
    request: Request,
    axes: Sequence[Axis],
    base: str,
    output: Path,
    machine: Machine,
    picking: Picking,
    components: Components | None,
    on_event: OnEvent | None,
    should_stop: Callable[[], bool],
) -> list[Path]:
    """Write the best of the candidates of each picture, and say the scores; arguments as of `draw`."""
    if axes:
        raise RequestError("A comparison shows every picture and keeps none.", "Leave out best_of, or compare.")
    require_room(output, request.count << 20)
    components = components or runner.open_base(base, machine)
    told, known = on_event or Progress("best of"), (base, components.fingerprint())
    scorer = scorer_of_prompts(components, picking.clip)
    steps = int(request.resolved(components.defaults).steps or 1)
    together = _Together(told, [steps] * (request.count * picking.best_of))
    paths: list[Path] = []

    def tell(event: Event) -> None:
        together.tell(event)
        if isinstance(event, StepDone) and event.step == event.steps:
            together.next()

    for best in best_of(components, request, picking.best_of, scorer, on_event=tell, should_stop=should_stop):
        paths += runner.save_pictures(best.result, known, components, output, machine)
        told(Preview(together.before, best.result.pictures[0], f"seed {best.seed}"))
        told(Note(best.told()))
    return paths


class _Together:
    """Progress of several pictures as of one work.

    Args:
        on_event: receives it.
        steps: of each picture, as planned.
    """

    def __init__(self, on_event: OnEvent, steps: Sequence[int]) -> None:
        self.on_event, self.steps = on_event, steps
        self._number = 0
        self._began = time.monotonic()
        self._said: set[str] = set()

    @property
    def before(self) -> int:
        """Return the steps of the pictures that are done."""
        return sum(self.steps[: self._number])

    def tell(self, event: Event) -> None:
        """Pass on the messages of the current picture; the same note only once."""
        if isinstance(event, StepDone):
            # Image-to-image carries out only a share of its steps: counted as that share of the planned ones.
            step = self.before + round(self.steps[self._number] * event.step / event.steps)
            self.on_event(StepDone(step, sum(self.steps), event.terms, time.monotonic() - self._began))
        elif not isinstance(event, Note) or event.text not in self._said:
            self._said |= {event.text} if isinstance(event, Note) else set()
            self.on_event(event)

    def next(self) -> None:
        """Go on to the next picture."""
        self._number += 1

    def done(self, picture: Any, label: str) -> None:
        """Show the picture that is done, and go on to the next."""
        self.next()
        self.on_event(Preview(self.before, picture, label))


def sheet(request: Request, axes: Sequence[Axis], paths: Sequence[Path]) -> Sheet:
    """Return the cells of a comparison, row by row, with their differences as captions."""
    columns = len(axes[0].values)
    longest = max(_longest(path) for path in paths)
    most = max(columns, len(paths) // columns)
    # Small pictures are enlarged in whole pixels, large ones made smaller where there are many.
    cell = -(-SIDE // longest) * longest if longest < SIDE else min(longest, max(SIDE, WIDEST // most))
    title = "" if any(axis.field == "prompt" for axis in axes) else request.prompt[:LONGEST]
    drawn = Sheet(cell, LABEL if len(axes) > 1 else 6, title)
    drawn.head([axes[0].label(value)[:LONGEST] for value in axes[0].values])
    captions = [axes[1].label(value)[:LONGEST] for value in axes[1].values] if len(axes) > 1 else [""]
    for number, caption in enumerate(captions):
        drawn.row(caption, [_within(path, cell) for path in paths[number * columns : (number + 1) * columns]])
    return drawn


def _longest(path: Path) -> int:
    """Return the longer side in pixels, by the header of the file alone."""
    with Image.open(path) as picture:
        return max(picture.size)


def _within(path: Path, cell: int) -> Image.Image:
    """Return a picture no larger than its cell, so that a hundred large ones are never in memory together."""
    picture = _opened(path)
    scale = cell / max(picture.size)
    if scale >= 1:  # the sheet enlarges
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
