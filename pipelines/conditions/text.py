"""The prompt and the negative prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.models.components import Components
from pipelines.models.text import Encoded, encode_prompts


class Text:
    """Cross-attention to the prompt; the null form is the negative prompt.

    Args:
        prompt: description of the picture.
        negative_prompt: prompt of the unconditional branch; empty for the empty text.
        size: width and height in pixels, an input of SDXL.
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
        self._kwargs: dict[Branch, dict[str, Any]] = {}

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Encode both prompts once for the run."""
        with torch.no_grad():
            positive, negative = encode_prompts(components, [self.prompt, self.negative_prompt], self.skip)
        if components.zero_empty and not self.negative_prompt and not self.encode_empty:
            negative = Encoded(
                torch.zeros_like(negative.context),
                None if negative.pooled is None else torch.zeros_like(negative.pooled),
            )
        for branch, encoded in ((Branch.POSITIVE, positive), (Branch.NEGATIVE, negative)):
            kwargs: dict[str, Any] = {"encoder_hidden_states": _rows(encoded.context, count, components)}
            if encoded.pooled is not None:
                width, height = self.size
                ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
                kwargs["added_cond_kwargs"] = {
                    "text_embeds": _rows(encoded.pooled, count, components),
                    "time_ids": _rows(ids, count, components),
                }
            self._kwargs[branch] = kwargs
        try:
            yield
        finally:
            self._kwargs = {}

    def unet_kwargs(self, branch: Branch, step: Step) -> dict[str, Any]:
        """Return the encoded prompt of the branch."""
        return self._kwargs[branch]

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents


def _rows(one: Tensor, count: int, components: Components) -> Tensor:
    return one.to(components.device, components.dtype).expand(count, *one.shape[1:])
