"""Schedulers by name, always built from the base's own configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from pipelines.errors import RequestError
from pipelines.request.request import Scheduler, Spacing
from pipelines.request.samplers import SPACED, able

KINDS: dict[Scheduler, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "dpm++2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-a": (EulerAncestralDiscreteScheduler, {}),
    "lcm": (LCMScheduler, {}),
}
"""Class and the settings that make it what its name says."""


_SETTINGS: Mapping[Spacing, dict[str, Any]] = MappingProxyType(
    {"own": {}, "karras": {"use_karras_sigmas": True}, "sgm": {"timestep_spacing": "trailing"}}
)
"""The settings that make each spacing."""


def build(name: Scheduler, config: Mapping[str, Any], steps: int, device: Any, spacing: Spacing = "own") -> Any:
    """Return a scheduler with its timesteps set.

    Args:
        name: which.
        config: of the base's own scheduler (noise schedule, prediction type, spacing).
        steps: denoising steps.
        device: of the timesteps.
        spacing: of its noise levels.

    Raises:
        RequestError: if it cannot do that many steps, or has no such spacing.
    """
    if not able(name, spacing):
        others = ", ".join(SPACED[spacing])
        raise RequestError(f"The sampler {name} has no {spacing} spacing.", f"Use {others}, or spacing own.")
    kind, settings = KINDS[name]
    settings = settings | _SETTINGS[spacing]
    known = inspect.signature(kind.__init__).parameters
    kept = {key: value for key, value in config.items() if key in known}
    if "clip_sample" in known:
        # Latents are not pictures: clipping them to [-1, 1] wrecks the colours.
        settings = settings | {"clip_sample": bool(config.get("clip_sample", False))}
    scheduler = kind(**(kept | settings))
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, AssertionError) as error:  # LCM cannot do more steps than it was distilled for
        first = str(error).splitlines()[0] if str(error) else "there are not so many noise levels."
        raise RequestError(f"The sampler {name} cannot do {steps} steps: {first}", "Use fewer steps.") from None
    most = int(config.get("num_train_timesteps", 1000)) - 1
    # The multistep solvers drop a repeated level and then lack a step.
    dropped = name in ("dpm++2m", "unipc") and steps > most
    if (
        dropped
        or float(scheduler.timesteps.max()) > most
        or not bool(torch.isfinite(torch.as_tensor(scheduler.timesteps)).all())
    ):
        raise RequestError(
            f"The sampler {name} cannot do {steps} steps: it would begin beyond the last noise level, {most}.",
            "Use fewer steps.",
        )
    return scheduler


def step_options(scheduler: Any, generators: list[Any], eta: float = 0.0) -> dict[str, Any]:
    """Return arguments of this scheduler's `step` for explicit random numbers, where it takes any.

    Args:
        scheduler: whose.
        generators: one for each picture.
        eta: noise to add in each step.

    Raises:
        RequestError: if it adds none and is asked to.
    """
    accepted = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in accepted:
        raise RequestError(f"Eta {eta:g} is for the sampler ddim alone.", "Use ddim, or eta 0.")
    options: dict[str, Any] = {"generator": generators} if "generator" in accepted else {}
    return options | ({"eta": eta} if eta else {})


def estimate(scheduler: Any, stepped: Any, prediction: Tensor, sample: Tensor) -> Tensor:
    """Return the finished latents (B, C, h, w) of one prediction: with x = alpha x0 + sigma noise, x0.

    Args:
        scheduler: after its step.
        stepped: output of the step; most schedulers give their estimate there.
        prediction: (B, C, h, w) of the UNet, guidance done.
        sample: (B, C, h, w) latents before the step.

    Raises:
        ValueError: if the base predicts something else than noise, velocity or the picture itself.
    """
    for name in ("pred_original_sample", "denoised"):
        if getattr(stepped, name, None) is not None:
            return getattr(stepped, name)
    ratio = scheduler.sigmas[scheduler.step_index - 1].to(sample)  # sigma / alpha; the multistep solvers keep it
    alpha = (ratio**2 + 1) ** -0.5
    sigma = ratio * alpha
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return alpha * sample - sigma * prediction
    if kind == "epsilon":
        return (sample - sigma * prediction) / alpha
    if kind == "sample":
        return prediction
    raise ValueError(f"prediction type {kind!r}")
