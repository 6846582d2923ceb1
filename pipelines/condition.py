"""Condition: one thing asked of a picture; `conditions/` has a file for each.

A condition says what it adds to the conditioning of each branch of guidance, *including its own null form* for the
unconditional branch, and may put right the latents after each step. The loop owns the merging: nested dicts merge,
and two conditions that claim the same argument are an error rather than a silent override.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from pipelines.errors import RequestError
from pipelines.models.components import Components, Conditioning
from pipelines.request.request import Request


class Branch(Enum):
    """A prediction of classifier-free guidance: conditional or unconditional."""

    NEGATIVE = "negative"
    POSITIVE = "positive"


def _not_yet() -> Tensor:
    raise RuntimeError("there is no estimate before the scheduler's step")


@dataclass(frozen=True)
class Step:
    """The position of the denoising loop.

    Attributes:
        index: 0-based.
        count: steps in all.
        timestep: of the noise schedule, as the scheduler gives it.
        following: the timestep the latents are at after this step; None after the last.
        estimate: gives the finished latents (B, C, h, w) as the prediction of this step has them; computed when it is
            called, which only `constrain` can.
        before: steps of the whole schedule that were left out before the first of these, as where a picture is redrawn.
    """

    index: int
    count: int
    timestep: Tensor
    following: Tensor | None
    estimate: Callable[[], Tensor] = _not_yet
    before: int = 0

    def within(self, share: float) -> bool:
        """Return whether this is among the first `share` of the steps; 0.29 of 100 is 29 despite rounding of floats."""
        return self.index < int(share * self.count + 1e-9)


def least_strength(steps: int) -> float:
    """Return the least strength, in thousandths, that is a step of so many.

    >>> least_strength(3), int(least_strength(3) * 3)
    (0.334, 1)
    """
    return math.ceil(1000 / steps) / 1000


class Condition(Protocol):
    """One thing asked of a picture."""

    def attach(self, components: Components, count: int) -> AbstractContextManager[None]:
        """Prepare for a run of `count` pictures; whatever is changed is put back on exit."""
        ...

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return what it adds: tensors with one row for each picture; the same keys for every branch.

        What is given as `CONCAT`, (B, c, h, w), is joined to the latents of a UNet as further channels.
        """
        ...

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents (B, C, h, w) after the scheduler's step, corrected where this condition demands it."""
        ...


@runtime_checkable
class Correction(Condition, Protocol):
    """A condition that corrects the latents before each prediction."""

    def corrected(self, latents: Tensor, step: Step, predict: Callable[[Tensor], object]) -> Tensor:
        """Return the latents (B, C, h, w) to predict from; `predict` computes the prediction under the prompt."""
        ...


@runtime_checkable
class Canvas(Condition, Protocol):
    """A condition that edits a given picture. A run has at most one."""

    def sized(self, request: Request, components: Components) -> Request:
        """Return the request with the size to generate at, where it leaves that open."""
        ...

    def begin(self, noise: Tensor, scheduler: Any) -> tuple[Tensor, Tensor]:
        """Return the start latents, made from the unit noise (B, C, h, w), and the timesteps left."""
        ...

    def finish(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Return the edited picture with the generated ones put back into it."""
        ...


def merge(parts: list[Mapping[str, Any]], where: str = "") -> dict[str, Any]:
    """Merge nested arguments.

    Raises:
        RequestError: if two of them give the same argument.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if key not in merged:
                merged[key] = value
            elif isinstance(merged[key], Mapping) and isinstance(value, Mapping):
                merged[key] = merge([merged[key], value], f"{where}{key}.")
            else:
                raise RequestError(f"Two conditions of this request both set {where}{key}.", "Leave one of them out.")
    return merged


def stack(branches: list[Any]) -> Any:
    """Join the arguments of several branches along the batch, so that one UNet call computes them all.

    Raises:
        ValueError: if the branches do not have the same keys (a condition without its null form).
    """
    first = branches[0]
    if isinstance(first, Mapping):
        if any(set(branch) != set(first) for branch in branches):
            raise ValueError(f"branches differ in their arguments: {[sorted(branch) for branch in branches]}")
        return {key: stack([branch[key] for branch in branches]) for key in first}
    return torch.cat(branches) if isinstance(first, Tensor) else first


def mapped(conditioning: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> Conditioning:
    """Return a conditioning with every tensor in it changed."""
    return {key: mapped(one, change) if isinstance(one, Mapping) else change(one) for key, one in conditioning.items()}
