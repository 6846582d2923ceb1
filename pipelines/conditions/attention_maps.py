"""Attention maps: where in the picture each word of the prompt is looked up (DAAM, Tang et al., arXiv:2210.04885).

The attention of the picture to the words, softmaxed, is averaged over heads, layers and steps, for the prediction under
the prompt: the cross-attention of a UNet, or the attention of a transformer in which picture and text attend to each
other. Nothing of the picture changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.condition import Branch, Step
from pipelines.errors import RequestError
from pipelines.models.attention import cross_attention_shown, looked_up, shown
from pipelines.models.components import Components, Conditioning


class AttentionMaps:
    """A condition that asks for nothing and remembers where words were looked up.

    Args:
        prompt: of the request.
    """

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self._sums: dict[int, Tensor] = {}
        self._calls = 0
        self._places: list[tuple[str, list[int]]] = []
        self._parts: Sequence[bool] = ()
        self._pictured = 0
        self._components: Components | None = None

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Watch every cross-attention of a UNet, or every joint attention of a transformer.

        Raises:
            RequestError: if the base computes attention in a way that cannot be read.
        """
        self._components, self._sums, self._calls = components, {}, 0
        self._places = components.family.words(components, self.prompt)
        watched = cross_attention_shown(components, self) if components.has_unet else shown(components, self._see)
        with watched:
            yield

    @contextmanager
    def watching(self, parts: Sequence[bool], sample: Tensor) -> Iterator[None]:
        """Look at the predictions of one call that are marked, while the `with` lasts.

        Args:
            parts: whether it is under the prompt, of each prediction in the batch.
            sample: latents (B, C, h, w) of one of them.
        """
        self._parts, self._pictured = parts, sample.shape[-2] * sample.shape[-1]
        try:
            yield
        finally:
            self._parts = ()

    def rows(self, batch: int) -> list[int]:
        """Return the places in a batch that are looked at."""
        each = batch // max(1, len(self._parts))
        return [part * each + k for part, marked in enumerate(self._parts) if marked for k in range(each)]

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return nothing."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def _see(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> None:
        """Add what the picture's tokens of one joint attention look up."""
        components, rows = self._components, self.rows(len(query))
        if not rows or components is None:
            return
        tokens = self._pictured // (components.multiple // components.factor) ** 2
        begin, text = components.family.seats(key.shape[2], tokens) or (0, 0)
        columns = sorted({text + place for _, places in self._places for place in places})
        own = mask[rows] if mask is not None and len(mask) == len(query) else mask
        seen = looked_up(query[rows], key[rows], own, scale, slice(begin, begin + tokens), columns)
        spread = seen.new_zeros(*seen.shape[:2], max((one - text for one in columns), default=-1) + 1)
        spread[..., [one - text for one in columns]] = seen
        self.add(spread)

    def add(self, attention: Tensor) -> None:
        """Add the attention (B, N, L) of one layer."""
        before = self._sums.get(attention.shape[1])
        self._sums[attention.shape[1]] = attention if before is None else before + attention
        self._calls += 1

    def maps(self, height: int, width: int) -> dict[str, Tensor]:
        """Return each word's share of the attention at each place, (B, height, width) in [0, 1].

        Args:
            height: of the maps; the latents' is the finest that is known.
            width: of the maps.

        Raises:
            RequestError: if nothing was drawn yet.
        """
        if not self._sums:
            raise RequestError(
                "No attention was seen: no picture was drawn, or the attention of this base is computed unseen.",
                "Give the maps to generate() first, and leave --attention at sdpa.",
            )
        total: Tensor | None = None
        for positions, summed in self._sums.items():
            rows = max(1, round((positions * height / width) ** 0.5))
            grid = summed.transpose(1, 2).unflatten(-1, (rows, positions // rows))
            large = interpolate(grid, (height, width), mode="bilinear", align_corners=False)
            total = large if total is None else total + large
        shares = total / self._calls  # pyright: ignore[reportOptionalOperand]
        return {word: shares[:, places].sum(dim=1).cpu() for word, places in self._places}
