"""Settings of each method, typed once; command line, REST and web form are derived from them. Needs no torch."""

from __future__ import annotations

from pydantic import Field

from pipelines.request.request import Frozen
from pipelines.words import Composed


class TaskWordConfig(Frozen):
    """Settings of a word that is learned from pairs of pictures."""

    token: Composed = Field(min_length=1, max_length=60)
    """The new word, for example <my-task>."""

    init: str = "picture"
    """The known word it starts from."""

    vectors: int = Field(default=1, ge=1, le=64)
    """Embedding vectors of the word."""

    steps: int = Field(default=200, ge=1, le=100_000)
    """Optimiser steps."""

    batch: int = Field(default=4, ge=1, le=256)
    """Grids a step."""

    rate: float = Field(default=6e-3, gt=0, le=1)
    """Learning rate."""

    blank: float = Field(default=0.7, ge=0, le=1)
    """Share of grids whose example is left out, so that the word must tell alone what is to be done."""

    seed: int = Field(default=0, ge=0)
    """Seed of all random numbers."""
