"""Settings of each method, typed once; command line, REST and web form are derived from them. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipelines.request.request import Frozen
from pipelines.words import Composed


class GroundingConfig(Frozen):
    """Settings of a training of the gated layers for boxes; changing any begins another training."""

    batch: int = Field(default=32, ge=1, le=4096)
    """Pictures a step."""

    rate: float = Field(default=1e-3, gt=0, le=1)
    """Learning rate of the layers: 0.001 for small ones as of pocket, 0.00005 for those of Stable Diffusion."""

    gate_rate: float = Field(default=10.0, gt=0, le=1000)
    """Learning rate of the gates as a multiple of it. At that of the layers they would open over tens of thousands of
    steps."""

    muon: bool = False
    """Train matrices by Muon instead of AdamW, which takes a fraction of the steps on small layers."""

    gate: float = Field(default=0.0, ge=0, lt=1)
    """Begin with new layers whose attention is open by this much, instead of with the base's; the base is changed
    from the first step, but layers behind closed gates learn next to nothing at first."""

    places_first: float = Field(default=0.0, ge=0, le=1)
    """Share of the training, at its beginning, that is about places: timesteps from 0.4 of the schedule on, where they
    are decided, and four captions in five left empty, so that only boxes say what is where."""

    warmup: int = Field(default=100, ge=1)
    """Steps over which the rates rise."""

    caption_drop: float = Field(default=0.2, ge=0, le=1)
    """Share of captions left empty."""

    grounding_drop: float = Field(default=0.1, ge=0, le=1)
    """Share of pictures without any of their boxes."""

    box_drop: float = Field(default=0.3, ge=0, le=1)
    """In half of the pictures, the share of single boxes left out."""

    unnamed: float = Field(default=0.1, ge=0, le=1)
    """Share of boxes with a phrase that names nothing; the caption then decides the thing."""

    blur: float = Field(default=0.5, ge=0, le=10)
    """Noise on the phrases of a fifth of the pictures, in standard deviations of all phrases: words learned later,
    which lie between those known, are then read too."""

    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the average that is written; 0 for none."""

    seed: int = Field(default=0, ge=0)
    """Source of every draw."""


class GroundingDestination(Frozen):
    """Data, base, duration and output file of a training of gated layers."""

    images: Path | None = None
    """Folder of pictures with boxes: captions beside them as for other methods, boxes as fox.bbox (lines of JSON with
    label and bbox in fractions), in one annotations.json (COCO), or of YOLO (images/, labels/ and data.yaml)."""

    skip_doubtful: bool = False
    """Learn without pictures that cannot be read or look like the mask of another, instead of stopping to name them."""

    composed: int = Field(default=0, ge=0)
    """Learn from so many composed pictures instead, on pocket."""

    mirror: bool = False
    """Also show each picture mirrored, with its boxes; not for captions that say left and right."""

    resolution: int | None = Field(default=None, ge=16, le=4096)
    """Side of the pictures in pixels, to which they are squeezed; the base's own by default."""

    base: str = "pocket"
    """pocket, a diffusers folder, a .safetensors checkpoint, or a hub id. One without gated layers is given some."""

    steps: int = Field(default=2000, ge=1)
    """Optimiser steps."""

    minutes: float | None = Field(default=None, gt=0)
    """End after so much time if that is sooner."""

    output: Path = Path("outputs/grounding.safetensors")
    """File for the layers alone; it is written at every checkpoint too."""

    overwrite: bool = False
    """Replace a file that is there."""

    keep_every: int = Field(default=250, ge=1)
    """Steps between writes of the training state and of the layers."""


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
