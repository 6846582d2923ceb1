"""`studio choose`: the choice among the candidates of a training. Importable without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pipelines.errors import ConfigError
from studio.library import concepts
from studio.settings import Machine
from trainers.loop.candidates import candidates
from trainers.loop.candidates import take as put_in_place


def choose(
    concept: str,
    *,
    images: Path | None = None,
    take: Annotated[bool, Parameter(negative="")] = False,
    step: int | None = None,
    clip: Path | None = None,
    dino: Path | None = None,
    sheet: Path | None = None,
    form: Annotated[Literal["table", "json"], Parameter(name="--format")] = "table",
    base: str = "pocket",
    folder: Annotated[Path, Parameter(name="--library")] = concepts.FOLDER,
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Measure a concept and the candidates of its training, and propose which to keep, with the reason.

    All get the same prompts and seeds, beside the word training started from. Figures are kept in their cards.

    Parameters
    ----------
    concept
        Its file, the file's name, or the word; `studio train --candidates 5` keeps candidates.
    images
        Folder of pictures to compare with: better ones that training did not see than those it did.
    take
        Put the proposed step in the place of the concept; the candidates stay.
    step
        Measure nothing: put the candidate of this step in the place of the concept.
    clip
        Folder of a CLIP that measures likeness and alignment on other bases than pocket; without it the error on the
        pictures alone is measured there.
    dino
        Folder of an image encoder (DINOv2, ViT, ...), a second judge: its likeness is shown and decides nothing.
    sheet
        Also write a contact sheet here.
    form
        table or json.
    base
        The base model the concept belongs to.
    folder
        Where the concepts are.
    """
    path = concepts.found(concept, folder)
    if step is not None:
        put_in_place(path, step)
        print(path)
        return
    if images is None:
        raise ConfigError("It is not said which pictures to compare with.", "Give --images FOLDER, or --step to take.")
    from studio.work import runner
    from studio.work.measure import measure, told
    from studio.work.progress import Progress

    choice = measure(runner.open_base(base, machine), path, images, clip=clip, dino=dino, on_event=Progress("choose"))
    print(json.dumps(told(choice), indent=1) if form == "json" else "\n".join(table(told(choice))))
    if sheet is not None:
        print(choice.sheet().save(sheet, colours=256))
    if take and choice.step in candidates(path):
        put_in_place(path, choice.step)
        print(path)


def table(told: Mapping[str, Any]) -> Iterator[str]:
    """Return lines with the figures of each step, and the proposal."""
    rows = [(f"{told['word']!r}, before", told["baseline"])]
    rows += [(f"step {row['step']}", row["figures"]) for row in told["rows"]]
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))
    yield " " * 20 + "".join(f"{name.replace('_', ' '):>14}" for name in names)
    for name, figures in rows:
        yield f"{name:<20}" + "".join(f"{figures[one]:>14.3f}" if one in figures else " " * 14 for one in names)
    yield f"Proposed: step {told['step']}. {told['reason']}"
