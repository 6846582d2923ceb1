"""Settings of inpainting: the picture, the mask, the transition between them. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines.errors import RequestError
from pipelines.request.settings import FileOf, Frozen


def _numbers(given: object) -> object:
    """Read `0.5,0.4` as numbers; anything else is left to the validation."""
    try:
        return tuple(float(number) for number in given.split(",")) if isinstance(given, str) else given
    except ValueError:
        raise ValueError("give fractions of the width and height from the top left corner, such as 0.5,0.4") from None


Share = Annotated[float, Field(ge=0, le=1)]
Place = Annotated[tuple[Share, Share], BeforeValidator(_numbers)]
"""Across and down, as fractions from the top left corner; also read from `0.5,0.4`."""
Area = Annotated[tuple[Share, Share, Share, Share], BeforeValidator(_numbers)]
"""Left, top, right and bottom edge, as fractions; also read from `0.1,0.2,0.5,0.6`."""


class Stroke(Frozen):
    """A stroke of a round brush."""

    points: tuple[Place, ...] = Field(min_length=1)
    """Points of the stroke."""

    width: float = Field(default=0.08, gt=0, le=1)
    """Width as a fraction of the picture's shorter side."""


class Selection(Frozen):
    """A click, a box or strokes in a picture."""

    clicks: tuple[Place, ...] = ()
    """Points inside the thing."""

    without: tuple[Place, ...] = ()
    """Points outside the thing."""

    box: Area | None = None
    """A box around the thing."""

    strokes: tuple[Stroke, ...] = ()
    """Strokes over the thing."""

    sam: str | None = None
    """Folder of a Segment Anything model that finds the outlines; by default colours and edges decide."""

    @property
    def empty(self) -> bool:
        """Return whether the selection is empty."""
        return not (self.clicks or self.box or self.strokes)


BLEND = "blend"
"""Instead of the folder of an inpainting UNet: inpaint with a base's own UNet."""


class Inpaint(Frozen):
    """A picture of which a part is repainted or, without a mask, that is changed as a whole (image-to-image)."""

    image: Annotated[str, FileOf("picture")] = Field(min_length=1)
    """Path of the picture. Transparency is laid on white."""

    mask: Annotated[str | None, FileOf("picture")] = None
    """Path of the mask, of the picture's size: white is repainted, black is kept to the bit, grey fades from one to the
    other; transparent counts as black. None repaints everything."""

    click: Place | None = None
    """A point in the thing to repaint, in fractions such as 0.5,0.4, instead of a mask."""

    box: Area | None = None
    """Left, top, right and bottom edge of a box around the thing that is repainted, in fractions, instead of a mask."""

    name: str = Field(default="", max_length=200)
    """Name of the thing to repaint, such as "the red cup", instead of a mask: a sticker that pocket knows, or anything
    that the finder of --finder knows. The surest is taken, and its box is kept in the place of the name."""

    sam: str | None = None
    """Folder of a Segment Anything model that finds the outline of that thing; by default colours and edges decide."""

    unet: str | None = None
    """Folder of the inpainting UNet, or "blend" to do without and blend latents; by default that of the base, if it has
    one."""

    strength: float = Field(default=1.0, gt=0, le=1)
    """Strength of the change: 1 starts from noise alone, less from the noised picture at that share of the steps
    before the end (SDEdit, arXiv:2108.01073)."""

    grow: int = Field(default=0, ge=0, le=512)
    """Pixels by which the mask is widened."""

    feather: int = Field(default=0, ge=0, le=512)
    """Pixels over which the repainted part fades into the picture, outside the mask."""

    only_masked: bool = False
    """Generate the surroundings of the mask alone, at the size of the request, instead of the whole picture."""

    padding: int = Field(default=32, ge=0, le=4096)
    """Pixels around the mask that are generated along as context, with `only_masked`."""

    digests: tuple[str, ...] = ()
    """SHA-256 of the files of picture and mask; filled in when painted, so that changed files are noticed."""

    @property
    def whole(self) -> bool:
        """Return whether the whole picture is changed: image-to-image."""
        return self.mask is None and self.selection.empty and not self.name

    @property
    def selection(self) -> Selection:
        """The selection in the picture."""
        return Selection(clicks=() if self.click is None else (self.click,), box=self.box, sam=self.sam)

    def require_files(self) -> None:
        """Check that picture and mask are there.

        Raises:
            RequestError: if one is not.
        """
        for what, path in (("picture", self.image), ("mask", self.mask)):
            if path is not None and not Path(path).is_file():
                raise RequestError(f"There is no {what} {path} to inpaint.", "Check its path.")

    @model_validator(mode="after")
    def _one_mask(self) -> Self:
        if self.mask is not None and not self.selection.empty:
            raise ValueError("there is a mask and a click or box as well; give one of them")
        if self.name and not (self.mask is None and self.selection.empty):
            raise ValueError(f"there is the name {self.name!r:.60} and a mask, click or box as well; give one of them")
        return self
