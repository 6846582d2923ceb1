"""Things and their boxes. Needs no torch."""

from __future__ import annotations

import math
import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from pipelines.errors import RequestError
from pipelines.request.settings import FileOf, Frozen
from pipelines.words import Composed

BOXES = 30
"""Most boxes of one picture: the places GLIGEN's layers are trained with."""


Edges = tuple[float, float, float, float]
"""Left, top, right and bottom."""


class Box(Frozen):
    """A thing and its box."""

    phrase: Composed = Field(min_length=1)
    """The thing in the box, in words of the prompt; also the word of a learned concept."""

    box: Edges
    """Left, top, right and bottom edge, as fractions of the width and height from the top left corner."""

    picture: Annotated[str | None, FileOf("picture")] = None
    """A picture of the thing to follow, for bases whose grounding reads pictures."""

    @field_validator("box")
    @classmethod
    def _rounded(cls, box: Edges) -> Edges:
        left, top, right, bottom = (snapped(edge) for edge in box)
        return left, top, right, bottom

    @model_validator(mode="after")
    def _inside_the_picture(self) -> Self:
        if why := misplaced(self.box):
            shown = ", ".join(f"{edge:g}" for edge in self.box)
            raise ValueError(f"the box of {self.phrase!r:.60} ({shown}) {why}")
        return self


def snapped(edge: float, reach: float = 1e-6) -> float:
    """Return an edge, moved to the border if it lies outside by no more than a rounding error."""
    return min(max(edge, 0.0), 1.0) if -reach <= edge <= 1 + reach else edge


def misplaced(box: Edges) -> str:
    """Return what is wrong with a box of fractions, and what to do about it; empty if nothing is.

    >>> misplaced((0.5, 0.1, 0.2, 0.6))
    'has its right edge left of its left edge; give left, top, right, bottom'
    """
    left, top, right, bottom = box
    if not all(math.isfinite(edge) for edge in box):
        return "is not finite; give four numbers from 0 to 1"
    if max(box) > 2 and min(box) >= 0:
        return "looks like pixels; give fractions from 0 to 1: pixels divided by the width and height"
    if min(box) < 0 or max(box) > 1:
        return "lies outside the picture; give fractions from 0 to 1"
    if right < left:
        return "has its right edge left of its left edge; give left, top, right, bottom"
    if bottom < top:
        return "has its bottom edge above its top edge; give left, top, right, bottom"
    if right == left or bottom == top:
        return "has no area; give left < right and top < bottom"
    return ""


_BOX = re.compile(r"(?P<phrase>.+):(?P<box>[^:@]*)(?:@(?P<picture>.+))?", re.DOTALL)


def box_use(text: str) -> dict[str, object]:
    """Convert `fox:0.1,0.2,0.5,0.6`, with `@reference.png` behind it if wanted, to the fields of a `Box`.

    Raises:
        RequestError: if it is not of that form.
    """
    match = _BOX.fullmatch(text)
    edges = match["box"].split(",") if match else []
    try:
        numbers = [float(edge) for edge in edges]
    except ValueError:
        numbers = []
    if match is None or len(numbers) != 4:
        raise RequestError(
            f"The box {text!r:.80} is not a phrase with four numbers.",
            "Write PHRASE:LEFT,TOP,RIGHT,BOTTOM in fractions, for example fox:0.1,0.2,0.5,0.6.",
        )
    fields: dict[str, object] = {"phrase": match["phrase"].strip(), "box": numbers}
    return fields | ({"picture": match["picture"]} if match["picture"] else {})
