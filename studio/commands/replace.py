"""`studio replace`: find a thing in a picture, mask it, generate another in its place. Importable without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pipelines.errors import RequestError
from pipelines.request.request import Request
from studio.commands.flags import Asked, given
from studio.library.names import ready
from studio.settings import Machine


def replace(
    picture: Path,
    thing: str,
    replacement: str,
    *,
    asked: Annotated[Asked, Parameter(name="*")] = Asked(),  # noqa: B008
    base: str = "pocket",
    output: Path = Path("outputs"),
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Replace a thing in a picture. Its surroundings alone are generated, and the rest stays to the bit.

    Parameters
    ----------
    picture
        The picture.
    thing
        What is replaced, by its name: a sticker that pocket knows. Anything else is pointed at instead, with
        --inpaint-click, --inpaint-box or --inpaint-mask; the name is then only for you.
    replacement
        The prompt of what comes there, such as "a cat" or "a <my-cat>" with --concept.
    base
        pocket (the default), a diffusers folder, a .safetensors checkpoint, or a hub id.
    output
        Folder for the pictures.
    """
    wishes = given(asked)
    inpaint: dict[str, Any] = {"image": str(picture), "grow": 2, "padding": 6, "only_masked": True}
    inpaint |= wishes.get("inpaint", {})
    if not {"mask", "click", "box"} & set(inpaint):
        inpaint["box"] = box_of(picture, thing)
    request = ready(Request.read({**wishes, "prompt": replacement, "inpaint": inpaint}), base)
    from studio.work import runner

    for path in runner.write_pictures(request, base, output, machine):
        print(path)


def box_of(picture: Path, thing: str) -> tuple[float, ...]:
    """Return the box of a sticker in a picture, in fractions.

    Raises:
        RequestError: if it is no sticker, or not in the picture; says what was found.
    """
    from pipelines.pictures.files import open_picture
    from pipelines.pictures.tensors import to_tensor
    from trainers.stickers.world import ALL_NAMES

    name = thing.strip().lower().removeprefix("the ").removeprefix("a ").removeprefix("an ")
    if name not in ALL_NAMES:
        raise RequestError(
            f"{thing!r} is no sticker that can be found by its name.", "Point at it: --inpaint-click 0.5,0.4"
        )
    seen = _finder()(to_tensor(open_picture(picture)))
    boxes = [one.box for one in seen if one.name == name]
    if not boxes:
        found = ", ".join(one.name for one in seen) or "nothing"
        raise RequestError(
            f"There is no {name} in {picture.name}; found: {found}.", "Point at it: --inpaint-click 0.5,0.4"
        )
    return tuple(min(1.0, max(0.0, edge)) for edge in boxes[0])


@cache
def _finder() -> Any:
    """Return the finder of all stickers, which takes a while to be made."""
    from evaluation.sticker_finder import Finder
    from trainers.stickers.world import ALL_NAMES

    return Finder(ALL_NAMES)
