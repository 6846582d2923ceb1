"""The geometry of a visual prompt: example pairs and a query on one canvas, of which one cell is painted.

Every cell keeps the model's own picture size, so the canvas is larger than it (two pairs of 64 px make 128 x 128), and
cells touch: a gap would not fall on the grid of the latents. Pairs are always given in the same order, the examples
first and the query last, before and after; where they lie on the canvas is the grid's affair, and `crop` undoes it.

Source: Bar et al., "Visual Prompting via Image Inpainting" (arXiv:2209.00647), which resizes cells to half a canvas and
parts them by white; both are left out here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LARGEST = 16
"""Most examples on a canvas."""


@dataclass(frozen=True)
class Grid:
    """Rows of pairs, before on the left and after on the right; the query is the last row.

    Attributes:
        examples: pairs that are shown, 0 to `LARGEST`.
        answer: the cell to be painted, as (pair, side): the query's after is (-1, 1).
        swapped: after on the left, before on the right.
        reversed: the query is the first row, the last example the second.
        transposed: pairs stand in columns, before above after.
        mirrored: every cell is shown mirrored; what is cropped is mirrored back.

    Raises:
        ValueError: if there are too many examples, or there is no such cell.
    """

    examples: int = 1
    answer: tuple[int, int] = (-1, 1)
    swapped: bool = False
    reversed: bool = False
    transposed: bool = False
    mirrored: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.examples <= LARGEST:
            raise ValueError(f"{self.examples} examples; a canvas takes 0 to {LARGEST}")
        if not -self.pairs <= self.answer[0] < self.pairs or self.answer[1] not in (0, 1):
            raise ValueError(f"no cell {self.answer} in {self.pairs} pairs")

    @property
    def pairs(self) -> int:
        """The number of pairs: the examples and the query."""
        return self.examples + 1

    @property
    def shape(self) -> tuple[int, int]:
        """The cells of the canvas as (rows, columns)."""
        return (2, self.pairs) if self.transposed else (self.pairs, 2)

    def place(self, pair: int, side: int) -> tuple[int, int]:
        """Return the row and column of a cell on the canvas."""
        pair %= self.pairs
        along = self.pairs - 1 - pair if self.reversed else pair
        across = 1 - side if self.swapped else side
        return (across, along) if self.transposed else (along, across)

    def compose(self, cells: Tensor) -> Tensor:
        """Return the canvas of pairs.

        Args:
            cells: (B, pairs, 2, C, h, w), the examples first and the query last, before and after. What the answer's
                cell holds is shown as it is: grey it, or rely on the mask.

        Returns:
            (B, C, rows * h, columns * w).

        Raises:
            ValueError: if the cells are not those of this grid.
        """
        if cells.ndim != 6 or cells.shape[1:3] != (self.pairs, 2):
            raise ValueError(f"cells of shape {tuple(cells.shape)}; wanted (B, {self.pairs}, 2, C, h, w)")
        if self.mirrored:
            cells = cells.flip(-1)
        if self.reversed:
            cells = cells.flip(1)
        if self.swapped:
            cells = cells.flip(2)
        if self.transposed:
            cells = cells.transpose(1, 2)
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def mask(self, height: int, width: int) -> Tensor:
        """Return the mask (1, 1, rows * height, columns * width) float32, 1 on the answer's cell.

        Args:
            height: of a cell, in whatever unit the mask is wanted: pixels or latents.
            width: of a cell.
        """
        rows, columns = self.shape
        mask = torch.zeros(1, 1, rows * height, columns * width)
        self._cell(mask).fill_(1)
        return mask

    def crop(self, canvas: Tensor) -> Tensor:
        """Return the answer's cell (B, C, h, w) of a canvas of pixels or latents, in its own orientation.

        Raises:
            ValueError: if the canvas is not made of whole cells.
        """
        cell = self._cell(canvas)
        return cell.flip(-1) if self.mirrored else cell

    def _cell(self, canvas: Tensor) -> Tensor:
        rows, columns = self.shape
        if canvas.shape[-2] % rows or canvas.shape[-1] % columns:
            raise ValueError(f"a canvas of {tuple(canvas.shape[-2:])} has no {rows} x {columns} cells")
        height, width = canvas.shape[-2] // rows, canvas.shape[-1] // columns
        row, column = self.place(*self.answer)
        return canvas[..., row * height : (row + 1) * height, column * width : (column + 1) * width]

    def arrangements(self) -> tuple[Grid, ...]:
        """Return this grid and its seven variants: rows reversed, columns swapped, cells mirrored; for averaging.

        Their answers stand in the same orientation once cropped. Transposing is left out: a model trained on rows
        reads columns as other pairs.
        """
        return tuple(
            replace(self, mirrored=m, swapped=s, reversed=r)
            for m in (self.mirrored, not self.mirrored)
            for s in (self.swapped, not self.swapped)
            for r in (self.reversed, not self.reversed)
        )
