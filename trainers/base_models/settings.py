"""Settings of the trainings that give a 9-channel UNet; command lines are derived from them. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.request.request import Frozen


class InpaintingUNetConfig(Frozen):
    """Duration and speed of the training of a 9-channel UNet."""

    steps: int = Field(default=3000, ge=1, le=1_000_000)
    """Optimiser steps."""

    minutes: float | None = Field(default=None, gt=0)
    """End after so much time if that is sooner; the learning rate falls towards it."""

    batch: int = Field(default=8, ge=1, le=4096)
    """Pictures, or visual prompts, a step."""

    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Learning rate; 1e-3 for pocket and 1e-5 for larger bases by default."""

    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """Muon for the hidden matrices learns faster from scratch; auto takes it for pocket and AdamW for other bases."""

    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the moving average that is written; 0 for none."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random numbers."""


class InpaintingConfig(InpaintingUNetConfig):
    """Settings of inpainting."""

    images: Path
    """Folder of pictures, read as for the other methods; captions beside them, masks of what they show if there are."""

    skip_doubtful: bool = False
    """Learn without pictures that cannot be read or look like the mask of another, instead of stopping to name them."""

    resolution: int | None = Field(default=None, ge=16, le=4096)
    """Side in pixels that pictures are scaled and cropped to; the base model's own by default."""

    empty: float = Field(default=0.1, ge=0, le=1)
    """Share of captions that are left empty."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring a picture."""


class InContextConfig(InpaintingUNetConfig):
    """Settings of visual prompts."""

    pairs: Path
    """Folder of pairs: fox.before.png with fox.after.png, or before/fox.png with after/fox.png; or of such folders, one
    for each task."""

    skip_doubtful: bool = False
    """Learn without pairs that lack a half, cannot be read or are of two sizes, instead of stopping to name them."""

    cell: int | None = Field(default=None, ge=16, le=2048)
    """Side in pixels of a picture on the canvas; the base model's own size by default, so the canvas is twice that."""

    examples: int = Field(default=2, ge=1, le=16)
    """Most examples on a canvas; every fourth step has more than one."""

    hint: str = Field(default="", max_length=300)
    """The task in words, given with some of the visual prompts."""

    hinted: float = Field(default=0.5, ge=0, le=1)
    """Share of visual prompts that are given it."""

    blank: float = Field(default=0.1, ge=0, le=1)
    """Share of visual prompts whose examples are left blank, so that an example can guide."""


class ModelDestination(Frozen):
    """The base to train on, and the folder of the result."""

    output: Path | None = None
    """The new model folder: the base with unet_inpainting/ in it; outputs/models/BASE-inpainting by default."""

    base: str = "pocket"
    """pocket, a diffusers folder, a .safetensors checkpoint, or a hub id; of 4 channels."""

    start: Path | None = None
    """A 9-channel UNet to go on from; by default the one beside the base, or the base itself, widened."""

    half: bool = False
    """Store weights in float16."""

    keep_every: int = Field(default=200, ge=1)
    """Steps between writes of the training state."""
