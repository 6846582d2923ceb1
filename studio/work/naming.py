"""Things in pictures by their names: one place for the command line, REST and the page. Loads torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

from evaluation.sticker_finder import Finder
from pipelines.errors import RequestError
from pipelines.masks.names import NamedThing, bare, name_finder
from pipelines.masks.selection import Guess, selected
from pipelines.pictures.files import open_picture
from pipelines.pictures.tensors import to_tensor
from pipelines.request.inpaint import Selection
from pipelines.request.request import Request
from trainers.stickers.world import ALL_NAMES

POINT = "Point at it: --inpaint-click 0.5,0.4"


def things_named(picture: Image.Image, name: str, finder: Path | None) -> list[NamedThing]:
    """Return what is called so in a picture, the surest first.

    Args:
        picture: RGB.
        name: with or without an article.
        finder: folder of a model; without one the stickers of pocket are found by their drawings.

    Raises:
        RequestError: if there is nothing; of stickers it says what there is.
        ModelError: if the folder holds no finder.
    """
    if finder is not None:
        return name_finder(finder)(picture, name)
    said = bare(name)
    if said not in ALL_NAMES:
        raise RequestError(
            f"{name!r:.60} is no sticker that can be found by its name.",
            f"Give a model that finds names: --finder FOLDER. {POINT}",
        )
    seen = _stickers()(to_tensor(picture))
    found = [NamedThing(said, _within(one.box), 1.0) for one in seen if one.name == said]
    if not found:
        there = ", ".join(one.name for one in seen) or "nothing"
        raise RequestError(f"There is no {said} in the picture; found: {there}.", POINT)
    return found


def outlined(picture: Image.Image, thing: NamedThing, sam: Path | None) -> Guess:
    """Return the mask of a thing that was found: by a Segment Anything model, as its finder knows it, or by its box.

    Args:
        picture: RGB.
        thing: in it.
        sam: folder of the model, if there is one.

    Raises:
        ModelError: if the folder holds none.
    """
    if thing.mask is not None and sam is None:
        return Guess(thing.mask, thing.score)
    asked = Selection(box=thing.box, sam=None if sam is None else str(sam))
    return Guess(selected(picture, asked)[0].mask, thing.score)


def named_placed(request: Request, finder: Path | None) -> Request:
    """Return a request with the box of what it names to be repainted in the place of the name.

    Raises:
        RequestError: if its picture is not there, or nothing in it is called so.
        ModelError: if the folder holds no finder.
    """
    if request.inpaint is None or not request.inpaint.name:
        return request
    request.inpaint.require_files()
    best = things_named(open_picture(Path(request.inpaint.image)), request.inpaint.name, finder)[0]
    return request.model_copy(update={"inpaint": request.inpaint.model_copy(update={"name": "", "box": best.box})})


def _within(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return a box without what reaches beyond the picture."""
    left, top, right, bottom = (min(1.0, max(0.0, edge)) for edge in box)
    return left, top, right, bottom


@cache
def _stickers() -> Finder:
    """Return the finder of all stickers, which takes a while to be made."""
    return Finder(ALL_NAMES)
