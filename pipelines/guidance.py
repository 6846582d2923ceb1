"""Formulas of guidance: predictions under several conditions into one.

c is the prediction under the prompt, u under the negative prompt, k one that is to be left. Plain functions of tensors
(B, C, h, w), each picture by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipelines.condition import Step
from pipelines.request.guidance import Guidance

AXES = (1, 2, 3)


def acts(guidance: Guidance, step: Step) -> bool:
    """Return whether a step lies in [start, stop) of the guidance."""
    return _place(guidance.start, step) <= step.index < _place(guidance.stop, step)


def active(guidance: Guidance, step: Step) -> bool:
    """Return whether the scale acts at this step: it is not 1, and the step lies in [start, stop)."""
    return guidance.scale not in (None, 1.0) and acts(guidance, step)


def _place(share: float, step: Step) -> int:
    """Return the step at a share of all steps; 0.29 of 100 is 29 despite rounding of floats."""
    return int(share * step.count + 1e-9)


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


def scheduled(scale: float, schedule: str, index: int, count: int) -> float:
    """Return the scale at a step of `count`, whose mean over all of them is `scale` (arXiv:2404.13040, section 4).

    Args:
        scale: of the guidance, 1 for none.
        schedule: "constant", "linear" or "cosine"; the latter two rise from the first step to the last.
        index: of the step, 0-based.
        count: steps in all.
    """
    share = (index + 0.5) / count
    factor = {"constant": 1.0, "linear": 2 * share, "cosine": 1 - math.cos(math.pi * share)}[schedule]
    return 1 + (scale - 1) * factor


def fitted(c: Tensor, u: Tensor) -> Tensor:
    """Return u scaled to lie as near c as it can: u <c, u> / |u|^2 (CFG-Zero*, arXiv:2503.18886, eq. 7)."""
    c32, u32 = c.float(), u.float()
    share = (c32 * u32).sum(AXES, keepdim=True) / (u32.square().sum(AXES, keepdim=True) + 1e-8)
    return (share * u32).to(u.dtype)


def tangential(c: Tensor, u: Tensor) -> Tensor:
    """Return u without its part outside the main direction of c and u (TCFG, arXiv:2503.18137, eq. 13-15).

    That direction is the first right-singular vector of both as rows of a matrix.
    """
    rows = torch.stack([c.flatten(1), u.flatten(1)], dim=1).float()
    main = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1]
    along = (rows[:, 1:] @ main.transpose(1, 2)) @ main
    return along.reshape(u.shape).to(u.dtype)


def clipped(difference: Tensor, longest: float) -> Tensor:
    """Return a difference, shortened to a length where it is longer."""
    length = torch.linalg.vector_norm(difference, dim=AXES, keepdim=True)
    return difference * (longest / length.clamp(min=1e-12)).clamp(max=1.0)


def projected(difference: Tensor, onto: Tensor, parallel: float) -> Tensor:
    """Return the part of a difference across `onto`, and a share of that along it (APG, arXiv:2410.02416, eq. 7).

    Args:
        difference: of two predictions.
        onto: the prediction under the prompt.
        parallel: the share, eta; 1 leaves the difference as it is.
    """
    d64, o64 = difference.double(), onto.double()
    unit = o64 / torch.linalg.vector_norm(o64, dim=AXES, keepdim=True).clamp(min=1e-12)
    along = (d64 * unit).sum(AXES, keepdim=True) * unit
    return (d64 - along + parallel * along).to(difference.dtype)


def pushed(guided: Tensor, c: Tensor, k: Tensor, strength: float) -> Tensor:
    """Return the guided prediction pushed away from a weakened one: + strength (c - k) (PAG, arXiv:2403.17377, eq. 8).

    SEG (arXiv:2408.00760, eq. 12) pushes alike.
    """
    return guided + strength * (c - k)
