"""Guidance: the combination of the predictions of the branches into one.

c is the prediction under the prompt, u under the negative prompt. Plain functions of tensors (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.request.request import Guidance


def active(guidance: Guidance, step: Step) -> bool:
    """Return whether guidance acts at this step: its scale is not 1 and the step lies in [start, stop)."""
    first, last = _place(guidance.start, step), _place(guidance.stop, step)
    return guidance.scale not in (None, 1.0) and first <= step.index < last


def _place(share: float, step: Step) -> int:
    """Return the step at a share of all steps; 0.29 of 100 is 29 despite rounding of floats."""
    return int(share * step.count + 1e-9)


def branches(guidance: Guidance, step: Step, distilled: bool = False) -> tuple[Branch, ...]:
    """Return the branches to compute at this step, in the order of the batch (diffusers': negative first).

    Args:
        guidance: of the request.
        step: position of the loop.
        distilled: whether the denoiser reads the scale instead (`Components.distilled`).
    """
    return (Branch.NEGATIVE, Branch.POSITIVE) if active(guidance, step) and not distilled else (Branch.POSITIVE,)


def classifier_free(c: Tensor, u: Tensor, scale: float) -> Tensor:
    """Return u + scale (c - u) (arXiv:2207.12598, in the form of Imagen): scale 1 gives c, 0 gives u."""
    return u + scale * (c - u)


def rescaled(guided: Tensor, c: Tensor, amount: float) -> Tensor:
    """Pull the spread of the guided prediction towards that of c (arXiv:2305.08891, eq. 15-16).

    Args:
        guided: guided prediction.
        c: prediction under the prompt.
        amount: 0 leaves `guided`, 1 gives it the spread of c, per picture.
    """
    axes = list(range(1, c.ndim))
    matched = guided * (c.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return amount * matched + (1 - amount) * guided


def combine(
    guidance: Guidance,
    predictions: Mapping[Branch, Tensor],
    guide: Callable[[Tensor, Tensor, float], Tensor] = classifier_free,
) -> Tensor:
    """Combine the predictions of the branches.

    Args:
        guidance: of the request.
        predictions: of each branch.
        guide: how the family of the base combines two, `classifier_free` for most.
    """
    c = predictions[Branch.POSITIVE]
    if Branch.NEGATIVE not in predictions:
        return c
    guided = guide(c, predictions[Branch.NEGATIVE], 1.0 if guidance.scale is None else guidance.scale)
    return rescaled(guided, c, guidance.rescale) if guidance.rescale else guided
