"""Settings of guidance: how strongly a picture follows its prompts, and by which formula. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.errors import RequestError
from pipelines.request.settings import Frozen
from pipelines.words import Composed

Preset = Literal["cfg", "apg", "cfg-zero", "tcfg", "pag", "seg", "autoguidance"]

PARAMETERS: Mapping[str, tuple[Preset, ...]] = MappingProxyType(
    {
        "parallel": ("apg",),
        "norm": ("apg",),
        "momentum": ("apg",),
        "zero_steps": ("cfg-zero",),
        "perturbed": ("pag", "seg"),
        "blur": ("seg",),
    }
)
"""Settings that mean something for some presets alone."""


class Guidance(Frozen):
    """Guidance by the difference of predictions (classifier-free, Ho and Salimans, arXiv:2207.12598)."""

    preset: Preset = "cfg"
    """Formula: cfg, the plain one; apg, only what is new in the difference, for high scales without burnt colours
    (arXiv:2410.02416); cfg-zero, the negative part fitted to the positive, for rectified flow (arXiv:2503.18886); tcfg,
    the negative part without what does not lie along it (arXiv:2503.18137); pag and seg, beside cfg away from a
    prediction with weakened self-attention (arXiv:2403.17377, 2408.00760); autoguidance, away from the base without the
    concepts' weights (after arXiv:2406.02507)."""

    scale: float | None = Field(default=None, ge=0, le=50)
    """Strength of the prompt; 1 switches guidance off. The base's own by default."""

    rescale: float | None = Field(default=None, ge=0, le=1)
    """Pull the guided prediction to the spread of the unguided one (arXiv:2305.08891, 3.4); 0.7 for zero-SNR models.
    The base's own by default."""

    start: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps before which guidance is off (arXiv:2404.07724)."""

    stop: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps after which guidance is off; equal to `start` it switches guidance off."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the scale over the steps, with the same mean: linear and cosine rise from 1 (arXiv:2404.13040)."""

    parallel: float = Field(default=0.0, ge=0, le=1)
    """For apg: share kept of the part of the difference that lies along the prediction (eta); it burns colours."""

    norm: float | None = Field(default=None, gt=0, le=1000)
    """For apg: longest difference (r). By default 15 for the latents of 1024 px, as in the paper, and in proportion to
    the root of their size for others."""

    momentum: float = Field(default=-0.5, gt=-1, le=0)
    """For apg: weight of the earlier steps' differences (beta); below 0 they push away."""

    zero_steps: int | None = Field(default=None, ge=0, le=10)
    """For cfg-zero: first steps that are not taken. By default 1 for rectified flow, 0 for others."""

    perturbed: float = Field(default=3.0, ge=0, le=20)
    """For pag and seg: strength of the push away from the weakened prediction."""

    blur: float | None = Field(default=None, gt=0, le=100)
    """For seg: spread in positions with which the queries of self-attention are blurred; without end by default."""

    encode_empty: bool = False
    """Encode an empty negative prompt also where the base takes zeros for it (SDXL)."""

    @model_validator(mode="after")
    def _an_interval(self) -> Self:
        if self.start > self.stop:
            raise ValueError(
                f"start {self.start:g} lies after stop {self.stop:g}, so guidance would never be on; "
                "choose start <= stop, or scale 1 for no guidance"
            )
        return self

    @model_validator(mode="after")
    def _of_its_preset(self) -> Self:
        for name, presets in PARAMETERS.items():
            value = getattr(self, name)
            if self.preset not in presets and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} {value:g} means nothing for the preset {self.preset}; leave it out, or choose the preset "
                    f"{' or '.join(presets)}"
                )
        return self


MOST_PROMPTS = 8
"""Most further prompts of one picture."""


class Prompt(Frozen):
    """A further prompt of the same picture (composable diffusion, Liu et al., arXiv:2206.01714, eq. 11)."""

    prompt: Composed = Field(min_length=1)
    """Description of what else shall be in the picture, or with a weight below 0 of what shall not."""

    weight: float = Field(default=1.0, ge=-5, le=5)
    """Strength relative to the guidance scale: above 0 AND, below 0 NOT."""

    negative_prompt: Composed = ""
    """Negative prompt of this prompt alone; that of the request if empty."""


def prompt_use(text: str) -> dict[str, object]:
    """Convert `a house:0.8` to the fields of a `Prompt`; without a number behind the last colon it is all prompt.

    Raises:
        RequestError: if there is no prompt.

    >>> prompt_use("a red car:-0.5"), prompt_use("a house")
    ({'prompt': 'a red car', 'weight': -0.5}, {'prompt': 'a house'})
    """
    prompt, colon, weight = text.rpartition(":")
    fields: dict[str, object]
    try:
        fields = {"prompt": prompt.strip(), "weight": float(weight)} if colon else {"prompt": text.strip()}
    except ValueError:  # a colon of the prompt itself
        fields = {"prompt": text.strip()}
    if not fields["prompt"]:
        raise RequestError(f"The further prompt {text!r:.60} says nothing.", "Write PROMPT:WEIGHT, as in a house:0.8.")
    return fields
