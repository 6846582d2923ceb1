"""Configuration of training, typed once; command line, TOML and web form are derived from it. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.request import Frozen


class DataConfig(Frozen):
    """Which pictures to learn from, and how they are read."""

    images: Path
    """Folder of training pictures; a `.txt` file beside a picture is its caption."""

    resolution: int | None = Field(default=None, ge=16, le=4096)
    """Side in pixels that pictures are scaled to; the base model's own by default."""

    center_crop: bool = False
    """Crop to a square instead of squeezing."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of mirroring a picture."""


class TrainConfig(Frozen):
    """How long and how fast to train."""

    steps: int = Field(default=3000, ge=1, le=1_000_000)
    """Optimiser steps."""

    batch: int = Field(default=4, ge=1, le=1024)
    """Pictures a step."""

    accumulate: int = Field(default=1, ge=1, le=1024)
    """Batches per optimiser step, where memory is short; the gradient is their mean."""

    learning_rate: float = Field(default=5e-4, gt=0, le=10)
    """Learning rate, before `scale_lr`."""

    scale_lr: bool = True
    """Multiply the learning rate by batch and accumulation, as the official recipe does."""

    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    """AdamW's decoupled weight decay."""

    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up of the learning rate, constant afterwards."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Source of all chance; the same seed gives the same concept."""

    preview_every: int = Field(default=0, ge=0)
    """Steps between preview pictures; 0 for none."""

    precision: Literal["no", "bf16"] = "no"
    """bf16: UNet and autoencoder in bfloat16, for a GPU; the text encoder and what is trained stay float32."""

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.learning_rate * (self.batch * self.accumulate if self.scale_lr else 1)


class TokenConfig(Frozen):
    """A method that learns a word."""

    token: str = Field(min_length=1, max_length=100)
    """The new word, for example `<my-fox>`."""

    init: str = Field(min_length=1)
    """An existing word of one token near the thing; training starts from it."""

    vectors: int = Field(default=1, ge=1, le=64)
    """Embedding vectors of the word: more hold more detail and edit less well."""
