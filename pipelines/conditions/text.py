"""The prompt and the negative prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from pipelines.condition import Branch, Step, mapped
from pipelines.models.components import Components, Conditioning


class Text:
    """The prompt as the family of the base reads it; the null form is the negative prompt.

    Args:
        prompt: description of the picture.
        negative_prompt: prompt of the unconditional branch; empty for the empty text.
        size: width and height in pixels, which some families read.
        skip: number of last layers of the text encoders to leave out beside those the family leaves out.
        encode_empty: encode an empty negative prompt also where the base takes zeros for it.
    """

    def __init__(
        self,
        prompt: str,
        negative_prompt: str = "",
        size: tuple[int, int] = (512, 512),
        *,
        skip: int = 0,
        encode_empty: bool = False,
    ) -> None:
        self.prompt, self.negative_prompt, self.size = prompt, negative_prompt, size
        self.skip, self.encode_empty = skip, encode_empty
        self._told: dict[Branch, Conditioning] = {}

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Encode both prompts once for the run."""
        family = components.family
        with torch.no_grad():
            both = family.encode_text(components, [self.prompt, self.negative_prompt], skip=self.skip)
        zeros = components.zero_empty and not self.negative_prompt and not self.encode_empty
        width, height = self.size
        frames = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        for row, branch in enumerate((Branch.POSITIVE, Branch.NEGATIVE)):
            blank = zeros and branch is Branch.NEGATIVE
            own = mapped(both, partial(_row, index=row, blank=blank))
            framed = family.framed(components, own, frames)
            self._told[branch] = mapped(framed, lambda one: one.expand(count, *one.shape[1:]))
        try:
            yield
        finally:
            self._told = {}

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return the encoded prompt of the branch."""
        return self._told[branch]

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents


def _row(one: Tensor, index: int, blank: bool) -> Tensor:
    """Return a row of a tensor, or as many zeros."""
    own = one[index : index + 1]
    return torch.zeros_like(own) if blank else own
