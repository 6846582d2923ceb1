"""Guidance of a UNet that was distilled with it (LCM and the like): an embedding of the scale, in one branch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.guidance import active
from pipelines.models.components import Components, Conditioning
from pipelines.request.request import Guidance


class DistilledGuidance:
    """The guidance scale for a UNet that takes it as an input; without effect on others.

    Such a UNet predicts at once what two branches would give together (Luo et al., arXiv:2310.04378, section 4.2), so
    there is no negative branch. Where guidance is off its scale is 1.

    Args:
        guidance: of the request.
    """

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self._conditioning: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Compute the embeddings of the scale and of 1, if the UNet reads them."""
        for on, scale in ((True, self.guidance.scale), (False, 1.0)):
            self._conditioning[on] = components.family.told_scale(components, 1.0 if scale is None else scale, count)
        try:
            yield
        finally:
            self._conditioning = {True: {}, False: {}}

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return the embedding of the scale at this step."""
        return self._conditioning[active(self.guidance, step)]

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents
