"""`studio replace`: find a thing in a picture, mask it, generate another in its place. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pipelines.request.request import Request
from studio.commands.flags import Asked, given
from studio.library.names import ready
from studio.settings import DrawingMachine


def replace(
    picture: Path,
    thing: str,
    replacement: str,
    *,
    asked: Annotated[Asked, Parameter(name="*")] = Asked(),  # noqa: B008
    base: str = "pocket",
    output: Path = Path("outputs"),
    machine: Annotated[DrawingMachine, Parameter(name="*")] = DrawingMachine(),  # noqa: B008
) -> None:
    """Replace a thing in a picture. Its surroundings alone are generated, and the rest stays to the bit.

    Parameters
    ----------
    picture
        The picture.
    thing
        What is replaced, by its name: a sticker that pocket knows, or with --finder anything that model knows, such as
        "the red cup". It can be pointed at instead, with --inpaint-click, --inpaint-box or --inpaint-mask; the name is
        then only for you.
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
    if not {"mask", "click", "box", "name"} & set(inpaint):
        inpaint["name"] = thing
    request = ready(Request.read({**wishes, "prompt": replacement, "inpaint": inpaint}), base)
    from studio.work.compare import draw

    for path in draw(request, (), base, output, machine):
        print(path)
