"""`studio mask`: masks from a click, a box or strokes. Importable without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from pipelines.errors import RequestError
from pipelines.request.inpaint import Selection
from pipelines.request.request import problems
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine

Listed = Annotated[tuple[str, ...], Parameter(negative="")]


def stroke(text: str) -> dict[str, object]:
    """Convert `0.1,0.2 0.3,0.4:0.05`, places with a width behind the colon if wanted, to the fields of a `Stroke`."""
    places, colon, width = text.partition(":")
    fields: dict[str, object] = {"points": tuple(places.split())}
    return fields | ({"width": width} if colon else {})


def mask(
    picture: Path,
    *,
    click: Listed = (),
    without: Listed = (),
    box: str | None = None,
    brush: Listed = (),
    sam: Path | None = None,
    grow: int = 0,
    feather: int = 0,
    offer: Annotated[bool, Parameter(negative="")] = False,
    output: Path = Path("outputs/mask.png"),
) -> None:
    """Make a mask of what is pointed at: white is repainted by --inpaint-mask. Places are fractions of the picture.

    Parameters
    ----------
    picture
        The picture.
    click
        A place in what is meant, such as 0.5,0.4. May be repeated.
    without
        A place in what is not meant. May be repeated.
    box
        Left, top, right and bottom edge of a box around what is meant, such as 0.1,0.2,0.5,0.6.
    brush
        A stroke of a round brush: places, and its width behind a colon: "0.1,0.2 0.3,0.4:0.05". May be repeated.
    sam
        Folder of a Segment Anything model that finds the outlines; by default colours and edges decide.
    grow
        Pixels by which the mask is widened.
    feather
        Pixels over which it fades, outside.
    offer
        Also write what else may be meant, as mask-2.png and so on, likeliest first.
    output
        The mask, a PNG.
    """
    fields = {"clicks": click, "without": without, "box": box, "strokes": [stroke(text) for text in brush]}
    try:
        selection = Selection.model_validate(fields | {"sam": None if sam is None else str(sam)})
    except ValidationError as error:
        raise RequestError(problems(error), "studio mask --help says how places are given.") from None
    if selection.empty:
        raise RequestError(
            "Nothing was pointed at.", "Give --click, --box or --brush: studio mask picture.png --click 0.5,0.4"
        )
    from pipelines.files import whole_file
    from pipelines.masks.files import softened
    from pipelines.masks.selection import selected
    from pipelines.pictures.files import open_picture

    guesses = selected(open_picture(picture), selection)
    for number, guess in enumerate(guesses if offer else guesses[:1], 1):
        path = output if number == 1 else output.with_stem(f"{output.stem}-{number}")
        with whole_file(path) as temporary:
            softened(guess.mask, grow, feather).save(temporary, format="PNG")
        print(f"{path}  {guess.quality:.2f}")


def score_masks(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Carry out `studio score --masks`; neither stickers nor base nor machine matter to it."""
    from evaluation.masks import figures, mask_table
    from evaluation.masks import score_masks as scored

    tallies = scored(asked.pictures or 40)
    say(json.dumps(figures(tallies), indent=1) if form == "json" else mask_table(tallies))
