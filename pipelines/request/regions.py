"""Regions of a picture with prompts of their own. Needs no torch."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from pipelines.errors import RequestError
from pipelines.request.boxes import Edges, misplaced
from pipelines.request.settings import FileOf, Frozen
from pipelines.words import Composed

MOST_REGIONS = 10
"""Most regions of one picture: each takes predictions of its own."""


class Region(Frozen):
    """A part of the picture that follows a prompt of its own; the request's prompt is that of the rest."""

    prompt: Composed = Field(min_length=1)
    """Description of what is there. Weights of a concept that it names act in its region alone."""

    negative_prompt: Composed = ""
    """Negative prompt of this region alone; that of the request if empty."""

    box: Edges | None = None
    """Left, top, right and bottom edge, as fractions of the width and height from the top left corner."""

    mask: Annotated[str | None, FileOf("picture")] = None
    """A picture that is white where the region is, instead of a box; it is scaled to the size of the picture."""

    soft: float = Field(default=0.0, ge=0, le=0.5)
    """Width of a soft rim, as a fraction of the picture's smaller side; within it region and rest are mixed."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if (self.box is None) == (self.mask is None):
            said = "neither a box nor a mask" if self.box is None else "a box and a mask"
            raise ValueError(f"the region of {self.prompt!r:.60} has {said}; give one of the two")
        if self.box is not None and (why := misplaced(self.box)):
            shown = ", ".join(f"{edge:g}" for edge in self.box)
            raise ValueError(f"the region of {self.prompt!r:.60} ({shown}) {why}")
        return self


_BOX = re.compile(r"(?P<prompt>.+):(?P<box>[-+\d.eE ]+(?:,[-+\d.eE ]+)*)", re.DOTALL)
_MASK = re.compile(r"(?P<prompt>.+)@(?P<mask>[^@]+)", re.DOTALL)


def region_use(text: str) -> dict[str, object]:
    """Convert `a fox:0.1,0.2,0.5,0.6` or `a fox@mask.png` to the fields of a `Region`.

    Raises:
        RequestError: if it is of neither form.

    >>> region_use("a fox:0,0,0.5,1"), region_use("a fox@mask.png")
    ({'prompt': 'a fox', 'box': [0.0, 0.0, 0.5, 1.0]}, {'prompt': 'a fox', 'mask': 'mask.png'})
    """
    if (match := _BOX.fullmatch(text)) and match["box"].count(",") == 3:
        try:
            return {"prompt": match["prompt"].strip(), "box": [float(edge) for edge in match["box"].split(",")]}
        except ValueError:
            pass
    elif masked := _MASK.fullmatch(text):
        return {"prompt": masked["prompt"].strip(), "mask": masked["mask"]}
    raise RequestError(
        f"The region {text!r:.80} is not a prompt with its place.",
        "Write PROMPT:LEFT,TOP,RIGHT,BOTTOM in fractions, for example a fox:0.1,0.2,0.5,0.6, or PROMPT@MASK.png.",
    )
