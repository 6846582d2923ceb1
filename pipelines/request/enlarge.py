"""Settings of the second pass that makes pictures larger. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.errors import RequestError
from pipelines.request.settings import FileOf, Frozen

ENDINGS = ".safetensors, .pth, .pt or .bin"
"""Endings of the files of upscalers, for people."""


def may_be_upscaler(name: str) -> bool:
    """Return whether a file may be an upscaler by its name.

    >>> may_be_upscaler("4x-UltraSharp.PTH"), may_be_upscaler("cat.png")
    (True, False)
    """
    return Path(name.lower()).suffix in (".safetensors", ".pth", ".pt", ".bin")


class Enlarge(Frozen):
    """A second pass that draws the pictures larger with the same base, tile by tile (as "hires fix" elsewhere).

    Boxes and regions have placed their things by then: it follows the prompt alone, with all concepts everywhere.
    """

    factor: float = Field(default=1.0, ge=1, le=4)
    """Times the width and height of the first pass; 1 leaves the pictures as they are."""

    strength: float | None = Field(default=None, ge=0, le=1)
    """Share of the steps that is drawn again on the enlarged picture (SDEdit, arXiv:2108.01073): more invents more
    detail and keeps less of the picture, 0 enlarges it alone. The base's own by default: 0.3, and 0 for pocket, which
    knows things at one size alone."""

    by: Literal["pixels", "latents"] = "pixels"
    """Form that is enlarged first: the finished pictures, which stay sharp, or their latents, which need a strength of
    0.5 or more."""

    upscaler: Annotated[str | None, FileOf("upscaler")] = None
    """File of a network that enlarges the finished pictures, in the place of bicubic interpolation: ESRGAN,
    Real-ESRGAN and their like (.safetensors or .pth); others with the extra "upscalers"."""

    digests: tuple[str, ...] = ()
    """SHA-256 of the upscaler; filled in when it was used, so that another file is noticed."""

    @property
    def acts(self) -> bool:
        """Return whether there is a second pass."""
        return self.factor > 1

    @model_validator(mode="after")
    def _enlarges_in_one_way(self) -> Self:
        if self.upscaler is not None and self.by == "latents":
            raise ValueError("an upscaler enlarges finished pictures, no latents; leave it out, or enlarge by pixels")
        return self

    def require_file(self) -> None:
        """Check that the upscaler is there and may be one.

        Raises:
            RequestError: if not.
        """
        if self.upscaler is None:
            return
        if not Path(self.upscaler).is_file():
            raise RequestError(f"There is no file {self.upscaler} of an upscaler.", "Check its path.")
        if not may_be_upscaler(self.upscaler):
            name = Path(self.upscaler).name
            raise RequestError(f"{name} is no file of an upscaler.", f"Those end in {ENDINGS}.")
