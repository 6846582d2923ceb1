"""`studio mask`: masks from a click, a box or strokes. Importable without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from pipelines.errors import RequestError
from pipelines.request.inpaint import Selection
from pipelines.request.request import problems
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.masks.selection import Guess

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
    name: str | None = None,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    sam: Path | None = None,
    finder: Path | None = None,
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
    name
        What is meant by its name, such as "red cup": with --finder, or a sticker that pocket knows.
    everything
        Masks of all things, the largest first: mask.png, mask-2.png and so on. With --sam by a grid of clicks.
    sam
        Folder of a Segment Anything model that finds the outlines (SAM, SAM 2, EdgeTAM, the tracker of SAM 3); by
        default colours and edges decide.
    finder
        Folder of a model that finds names: OWLv2, Grounding DINO, or SAM 3, which knows outlines too.
    grow
        Pixels by which the mask is widened.
    feather
        Pixels over which it fades, outside.
    offer
        Also write what else may be meant, or is called so, as mask-2.png and so on, likeliest first.
    output
        The mask, a PNG.
    """
    selection = _selection({"clicks": click, "without": without, "box": box}, brush, sam)
    _require_one_way(selection, name, everything, finder)
    from pipelines.files import whole_file
    from pipelines.masks.files import softened
    from pipelines.pictures.files import open_picture

    guesses = _meant(open_picture(picture), selection, name, everything, (sam, finder))
    for number, guess in enumerate(guesses if offer or everything else guesses[:1], 1):
        path = output if number == 1 else output.with_stem(f"{output.stem}-{number}")
        with whole_file(path) as temporary:
            softened(guess.mask, grow, feather).save(temporary, format="PNG")
        print(f"{path}  {guess.quality:.2f}")


def _selection(given: dict[str, object], brush: tuple[str, ...], sam: Path | None) -> Selection:
    """Return what is pointed at; raises `RequestError` with every problem of it."""
    fields = given | {"strokes": [stroke(text) for text in brush], "sam": None if sam is None else str(sam)}
    try:
        return Selection.model_validate(fields)
    except ValidationError as error:
        raise RequestError(problems(error), "studio mask --help says how places are given.") from None


def _require_one_way(selection: Selection, name: str | None, everything: bool, finder: Path | None) -> None:
    """Refuse nothing to mask, and more than one way of saying it.

    Raises:
        RequestError: naming them.
    """
    if (ways := sum((not selection.empty, name is not None, everything))) != 1:
        raise RequestError(
            "Nothing was pointed at." if not ways else f"{ways} ways of pointing were given.",
            "Give --click, --box or --brush, or --name, or --all: studio mask picture.png --click 0.5,0.4",
        )
    if finder is not None and name is None:
        raise RequestError(f"--finder {finder} finds names, and there is none.", 'Give one: --name "red cup"')


def _meant(
    picture: Image.Image, selection: Selection, name: str | None, everything: bool, models: tuple[Path | None, ...]
) -> list[Guess]:
    """Return the masks of what is pointed at, called so, or all; with the models for outlines and for names."""
    from pipelines.masks.selection import pieces, selected

    sam, finder = models
    if name is not None:
        from studio.work.naming import outlined, things_named

        return [outlined(picture, thing, sam) for thing in things_named(picture, name, finder)]
    if everything and sam is not None:
        from pipelines.masks.sam import Sam

        return Sam.load(sam).everything(picture)
    return pieces(picture) if everything else selected(picture, selection)


def score_masks(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Carry out `studio score --masks`; neither stickers nor base nor machine matter to it."""
    from evaluation.masks import figures, mask_table
    from evaluation.masks import score_masks as scored

    tallies = scored(asked.pictures or 40)
    say(json.dumps(figures(tallies), indent=1) if form == "json" else mask_table(tallies))
