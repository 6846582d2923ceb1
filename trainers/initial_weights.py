"""Initial weights from a seed: constructors of networks take no generator and draw from torch's global source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Let what is constructed on the CPU inside the `with` draw from a seed; the global source goes on as if unused."""
    before = torch.get_rng_state()
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    try:
        yield
    finally:
        torch.set_rng_state(before)
