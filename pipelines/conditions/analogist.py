"""Analogist: a visual prompt answered by an inpainting model that was never trained on grids.

On a square of an example pair A, A' and a query B with its answer B', what relates A to B in self-attention is laid
over what relates A' to B' (self-attention cloning), and the prompt is kept from all cells but B' (cross-attention
masking).

Source: Gu et al., "Analogist: Out-of-the-box Visual In-Context Learning with Image Diffusion Model" (SIGGRAPH 2024,
arXiv:2405.10316). Cells lie on the grid of the latents here, without the paper's gap of two pixels, so that they are
whole at every level of the UNet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from pipelines.condition import Branch, Step
from pipelines.models.components import Components, Conditioning
from pipelines.pictures.grids import Grid

STRENGTH = 1.3
"""Strength of the cloned attention relative to the original (the paper's s)."""
PAPER_BLOCKS = (3 / 16, 11 / 16)
"""The paper patches blocks 3 to 10 of the 16 of Stable Diffusion 1.x: the same share of any UNet."""

Place = tuple[slice, slice]


@dataclass(frozen=True)
class Square:
    """The places of the four cells: row and column of each, 0 or 1.

    Attributes:
        a: before, of the example.
        a2: after, of the example.
        b: before, of the query.
        b2: the answer.
        ratio: height of the canvas over its width.
    """

    a: tuple[int, int]
    a2: tuple[int, int]
    b: tuple[int, int]
    b2: tuple[int, int]
    ratio: float = 1.0

    @classmethod
    def of(cls, grid: Grid, ratio: float = 1.0) -> Square:
        """Return the cells of a grid of one example; the painted cell is B'.

        Raises:
            ValueError: if the grid has more or fewer examples than one.
        """
        if grid.examples != 1:
            raise ValueError(f"{grid.examples} examples; Analogist knows squares of one")
        pair, side = grid.answer[0] % 2, grid.answer[1]
        cells = ((1 - pair, 1 - side), (1 - pair, side), (pair, 1 - side), (pair, side))
        return cls(*(grid.place(*cell) for cell in cells), ratio=ratio)

    def shape(self, tokens: int) -> tuple[int, int]:
        """Return the rows and columns of a map of this many tokens."""
        rows = round(math.sqrt(tokens * self.ratio))
        return rows, tokens // rows

    def place(self, cell: tuple[int, int], shape: tuple[int, int]) -> Place:
        """Return the rows and columns of a cell on a map of that shape."""
        height, width = shape[0] // 2, shape[1] // 2
        row, column = cell
        return slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)


def cloned(logits: Tensor, square: Square, strength: float) -> Tensor:
    """Return self-attention logits where those between A and B replace those between A' and B'.

    Args:
        logits: (heads, tokens, tokens), queries first, already divided by the root of the head's size.
        square: places of the cells.
        strength: factor of what is cloned.

    Returns:
        The same with S[A', B'] = strength * S[A, B] and S[B', A'] = strength * S[B, A], before the softmax.
    """
    shape = square.shape(logits.shape[-1])
    maps = logits.view(-1, *shape, *shape)
    a, a2, b, b2 = (square.place(cell, shape) for cell in (square.a, square.a2, square.b, square.b2))
    laid = maps.clone()
    laid[:, *a2, *b2] = strength * maps[:, *a, *b]
    laid[:, *b2, *a2] = strength * maps[:, *b, *a]
    return laid.view_as(logits)


class ClonedSelfAttention:
    """Attention processor that computes the logits itself, because fused attention never shows them."""

    def __init__(self, square: Square, strength: float) -> None:
        self.square, self.strength = square, strength

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Apply self-attention over tokens (B, N, C) with the cloned logits."""
        projections: tuple[Any, ...] = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (attn.head_to_batch_dim(layer(hidden_states)) for layer in projections)
        logits = query.float() @ key.float().transpose(1, 2) * attn.scale
        weights = cloned(logits, self.square, self.strength).softmax(-1).to(value.dtype)
        attended: Any = attn.batch_to_head_dim(weights @ value)
        layers: Any = attn.to_out
        return layers[1](layers[0](attended))


def blocks(unet: UNet2DConditionModel) -> list[Any]:
    """Return the transformer blocks in the order of computation, down, middle, up, which their names do not follow."""
    stages = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    spatial = [one for stage in stages for one in getattr(stage, "attentions", None) or ()]
    return [block for one in spatial for block in one.transformer_blocks]


class Analogist:
    """The condition: patches the UNet for a run and adds no argument of its own.

    Args:
        grid: a grid of one example.
        ratio: height of the canvas over its width.
        strength: factor of the cloned relation; 0 cuts A' and B' apart.
        within: which of the blocks, as shares of all of them in the order they are computed.
    """

    def __init__(
        self, grid: Grid, ratio: float = 1.0, strength: float = STRENGTH, within: tuple[float, float] = PAPER_BLOCKS
    ) -> None:
        self.square, self.strength, self.within = Square.of(grid, ratio), strength, within

    def chosen(self, unet: UNet2DConditionModel) -> list[Any]:
        """Return the blocks that are patched."""
        listed = blocks(unet)
        first, last = (round(share * len(listed)) for share in self.within)
        return listed[first:last]

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Patch the chosen blocks; put them back on exit."""
        with ExitStack() as lasting:
            for block in self.chosen(components.unet):
                lasting.callback(block.attn1.set_processor, block.attn1.processor)
                block.attn1.set_processor(ClonedSelfAttention(self.square, self.strength))
                if block.attn2 is not None:
                    # Masked where the values enter the last layer, so that any implementation of attention does.
                    handle = block.attn2.to_out[0].register_forward_pre_hook(self._masked)
                    lasting.callback(handle.remove)
            yield

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return nothing: the patched blocks act on all branches alike."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def _masked(self, layer: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        """Return what the prompt adds, (B, tokens, C), kept for the answer's cell alone."""
        attended = arguments[0]
        shape = self.square.shape(attended.shape[1])
        keep = attended.new_zeros(shape)
        keep[self.square.place(self.square.b2, shape)] = 1
        return (attended * keep.view(1, -1, 1),)
