"""Hooks around text encoding, by which parts of a concept change what the layers of the UNet read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

EncodeIds = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Token ids (B, window) -> context (B, window, dim) and pooled vector (B, dim')."""


class TextHook(Protocol):
    """A wrapper of the encoding of token ids."""

    def __call__(self, which: int, ids: Tensor, encode: EncodeIds) -> tuple[Tensor, Tensor]:
        """Return context and pooled vector of the ids.

        Args:
            which: number of the text encoder.
            ids: (B, window).
            encode: the encoding to wrap.
        """
        ...
