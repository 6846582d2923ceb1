"""Weakened self-attention, for guidance away from what a denoiser predicts with it (PAG and SEG).

In the middle of a UNet each position attends to itself alone (PAG, Ahn et al., arXiv:2403.17377, eq. 7), or with
queries that are blurred over the picture (SEG, Hong, arXiv:2408.00760, eq. 10). Only the last of several predictions of
one call is weakened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.errors import RequestError
from pipelines.models.components import Components


def require_self_attention(components: Components, preset: str) -> None:
    """Refuse a base whose denoiser has no self-attention in its middle.

    Raises:
        RequestError: naming the base, and what to use instead.
    """
    if not _middle(components):
        raise RequestError(
            f"The guidance {preset} weakens the self-attention in the middle of a UNet, which {components.name} lacks.",
            "Use the preset cfg or apg with this base.",
        )


def _middle(components: Components) -> list[str]:
    """Return the names of the self-attention processors in the middle of a UNet."""
    processors = getattr(components.denoiser, "attn_processors", {})
    return [name for name in processors if name.startswith("mid_block.") and name.endswith("attn1.processor")]


@contextmanager
def weakened(components: Components, preset: str, blur: float | None, parts: int, ratio: float) -> Iterator[None]:
    """Weaken the self-attention for the last of several predictions in the batch, while the `with` lasts.

    Args:
        components: the base; its processors are the same afterwards.
        preset: "pag" or "seg".
        blur: for seg the spread of the blur in positions; None for one without end.
        parts: predictions in the batch.
        ratio: width of the latents divided by their height.
    """
    unet: Any = components.denoiser
    before = dict(unet.attn_processors)
    after = {
        name: _Weakened(one, preset, blur, parts, ratio) if name in _middle(components) else one
        for name, one in before.items()
    }
    unet.set_attn_processor(after)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


class _Weakened:
    """An attention processor that computes the last part of the batch with weakened attention."""

    def __init__(self, processor: Any, preset: str, blur: float | None, parts: int, ratio: float) -> None:
        self.processor, self.preset, self.blur, self.parts, self.ratio = processor, preset, blur, parts, ratio

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        regions: Any = None,
        **others: Any,
    ) -> Tensor:
        # Self-attention has no use for what words are kept to.
        whole = self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, **others)
        last = hidden_states.chunk(self.parts)[-1]
        value = attn.to_v(last)
        mixed = value if self.preset == "pag" else self._blurred(attn, last, value)
        own = attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor
        return torch.cat([whole[: -len(last)], own.to(whole.dtype)])

    def _blurred(self, attn: Any, hidden: Tensor, value: Tensor) -> Tensor:
        """Return attention (B, N, C) whose queries are blurred."""
        query = blurred(attn.to_q(hidden), self.blur, self.ratio)
        heads: list[Tensor] = [
            one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (query, attn.to_k(hidden), value)
        ]
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=attn.scale)
        return mixed.transpose(1, 2).flatten(2)


def blurred(query: Tensor, blur: float | None, ratio: float) -> Tensor:
    """Return queries (B, N, C) of positions on a grid, blurred by a Gaussian over it; without end by their mean.

    Args:
        query: row by row.
        blur: standard deviation in positions, or None.
        ratio: width of the grid divided by its height.
    """
    if blur is None:
        return query.mean(dim=1, keepdim=True).expand_as(query)
    height = max(1, round(math.sqrt(query.shape[1] / ratio)))
    width = query.shape[1] // height
    if height * width != query.shape[1]:
        raise ValueError(f"{query.shape[1]} positions are no grid of ratio {ratio:g}")
    grid = query.transpose(1, 2).unflatten(-1, (height, width))
    for axis, length in ((-2, height), (-1, width)):
        reach = min(math.ceil(3 * blur), length - 1)
        if not reach:
            continue
        at = torch.arange(-reach, reach + 1, device=query.device, dtype=torch.float32)
        weights = torch.exp(-(at**2) / (2 * blur**2))
        weights = (weights / weights.sum()).to(query.dtype)
        padding = (0, 0, reach, reach) if axis == -2 else (reach, reach, 0, 0)
        shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
        kernel = weights.reshape(shape).expand(grid.shape[1], 1, *weights.reshape(shape).shape[2:])
        grid = F.conv2d(F.pad(grid, padding, mode="reflect"), kernel, groups=grid.shape[1])
    return grid.flatten(2).transpose(1, 2)
