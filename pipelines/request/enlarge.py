"""Settings of the second pass that makes pictures larger. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.request.settings import Frozen


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

    @property
    def acts(self) -> bool:
        """Return whether there is a second pass."""
        return self.factor > 1
