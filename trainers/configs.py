"""Settings of each method, typed once; command line, REST and web form are derived from them. Needs no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.request import Frozen
from trainers.config import LowRankConfig, ObjectiveConfig, SubjectConfig, TokenConfig


class TextualInversionConfig(TokenConfig, ObjectiveConfig):
    """Settings of Textual Inversion."""

    kind: Literal["object", "style"] = "object"
    """What the pictures share; decides the prompt templates."""

    wordings: Literal["auto", "object", "style", "pocket"] = "auto"
    """Prompt templates; "auto" takes those of `kind`, and for `pocket` the few it understands."""


class DreamBoothConfig(SubjectConfig, LowRankConfig):
    """Settings of DreamBooth."""

    token: str = Field(min_length=1, max_length=60)
    """The identifier: a rare word of one token (`studio identifiers` lists some), or with `pivotal` a new word."""

    form: Literal["lora", "full"] = "lora"
    """Low-rank changes, small and quick, or all weights of the UNet."""

    pivotal: bool = False
    """Make the identifier a new word and learn its embedding together with the weights."""

    vectors: int = Field(default=1, ge=1, le=64)
    """Embedding vectors of the new word, with `pivotal`."""

    word_rate: float = Field(default=5.0, gt=0, le=1000)
    """Learning rate of the new word relative to that of the weights, with `pivotal`."""

    text_encoder: bool = False
    """Train the text encoders too: better likeness, sooner overdone."""

    text_rate: float = Field(default=1.0, gt=0, le=10)
    """Learning rate of the text encoders relative to that of the UNet."""

    @property
    def learns_words(self) -> bool:
        """Whether the tokens are new words."""
        return self.pivotal

    @property
    def trains_weights(self) -> bool:
        """Whether weights of the UNet themselves are trained, which then stay float32."""
        return self.form == "full"

    @property
    def trains_text(self) -> bool:
        """Whether gradients go through the text encoders, which then stay float32."""
        return self.pivotal or self.text_encoder

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.form == "full" and self.dora:
            raise ValueError("dora belongs to low-rank changes; use it with form lora")
        return self


class CustomDiffusionConfig(SubjectConfig):
    """Settings of Custom Diffusion."""

    token: str = Field(min_length=1, max_length=60)
    """The new word, for example `<my-fox>`."""

    word_rate: float = Field(default=1.0, gt=0, le=1000)
    """Learning rate of the new word relative to that of the weights."""

    @property
    def trains_weights(self) -> bool:
        """Whether weights of the UNet themselves are trained, which then stay float32."""
        return True

    @property
    def trains_text(self) -> bool:
        """Whether gradients go through the text encoders, which then stay float32."""
        return True


class ReVersionConfig(TokenConfig, LowRankConfig, ObjectiveConfig):
    """Settings of ReVersion."""

    kind: Literal["relation"] = "relation"
    """What is learned."""

    init: str = Field(default="and", min_length=1)
    """An existing word of one token to start from."""

    left: str = ""
    """Name of the first thing, where it is the same in all pictures; else say it for each in pairs.json."""

    right: str = ""
    """Name of the second thing."""

    steer: float = Field(default=0.01, ge=0, le=10)
    """Weight of the steering loss; 0 switches it off."""

    positives: int = Field(default=4, ge=1, le=64)
    """Prepositions drawn for each picture of a step."""

    temperature: float = Field(default=0.07, gt=0, le=10)
    """Temperature of the steering loss."""

    basis: tuple[str, ...] = ()
    """Prepositions to steer toward; those of the paper that the base knows by default."""

    focal: float = Field(default=0.5, ge=0, le=1)
    """How strongly timesteps are drawn toward the noisy end; 0 for all alike."""

    norm_pull: float = Field(default=0.0, ge=0, le=10)
    """Weight of a pull of the word's length to the median length of prepositions; 0 for none."""

    lora: bool = False
    """Learn low-rank changes of the UNet beside the word, for relations that the base cannot draw."""

    word_rate: float = Field(default=5.0, gt=0, le=1000)
    """Learning rate of the word relative to that of the weights, with `lora`."""

    keep: float = Field(default=1.0, ge=0, le=100)
    """With `lora`, weight of holding the base's own predictions for ordinary captions fast."""


def configs() -> dict[str, type[Frozen]]:
    """The settings of each method, by its name."""
    return {
        "textual-inversion": TextualInversionConfig,
        "dreambooth": DreamBoothConfig,
        "custom-diffusion": CustomDiffusionConfig,
        "reversion": ReVersionConfig,
    }


class TaskWordConfig(Frozen):
    """Settings of a word for what pairs of pictures show."""

    token: str = Field(min_length=1, max_length=60)
    """The new word, for example <my-task>."""

    init: str = "picture"
    """The known word it starts from."""

    vectors: int = Field(default=1, ge=1, le=64)
    """How many rows it has."""

    steps: int = Field(default=200, ge=1, le=100_000)
    """Optimiser steps."""

    batch: int = Field(default=4, ge=1, le=256)
    """Grids a step."""

    rate: float = Field(default=6e-3, gt=0, le=1)
    """Learning rate."""

    blank: float = Field(default=0.7, ge=0, le=1)
    """Share of grids whose example is left out, so that the word must tell alone what is to be done."""

    seed: int = Field(default=0, ge=0)
    """Source of chance."""
