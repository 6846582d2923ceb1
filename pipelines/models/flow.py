"""Rectified flow (Liu et al., arXiv:2209.03003): denoisers that predict noise - picture at levels from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pipelines.errors import ConfigError, RequestError
from pipelines.models.noise import spread_evenly
from pipelines.request.request import Scheduler, Spacing

Draw = Literal["logit-normal", "uniform"]
"""Distribution of the levels that a flow is taught."""

FINENESS = 1000
"""Levels that are told apart where a flow's are counted."""


class FlowEuler(FlowMatchEulerDiscreteScheduler):
    """Euler steps along a flow, with what the loop and its canvases ask of every sampler."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the sample: a flow's denoiser reads it as it is."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return (1 - sigma) clean + sigma noise at timesteps (B,)."""
        sigma = timesteps.to(original_samples) / self.config["num_train_timesteps"]
        return mixed(original_samples, noise, sigma)


def mixed(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return (1 - sigma) clean + sigma noise, (B, C, h, w), for levels (B,) (arXiv:2209.03003, eq. 1)."""
    level = sigma[:, None, None, None].to(clean)
    return (1 - level) * clean + level * noise


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Return levels moved towards noise: s sigma / (1 + (s - 1) sigma) (arXiv:2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def linear_mu(tokens: int, config: Mapping[str, Any], most: int, top: float = 1.15) -> float:
    """Return the logarithm of the shift, a line through the shifts of a small and a large picture.

    Args:
        tokens: of the picture.
        config: of the scheduler: base_shift at base_image_seq_len, max_shift at max_image_seq_len.
        most: max_image_seq_len if the configuration has none.
        top: max_shift if it has none.
    """
    low, high = config.get("base_shift", 0.5), config.get("max_shift", top)
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", most)
    slope = (high - low) / (last - first)
    return tokens * slope + low - slope * first


@dataclass(frozen=True)
class Flow:
    """Rectified flow; a time is a level sigma from 0, the picture, to 1, noise.

    Attributes:
        config: of the base's own scheduler.
        shift: by which drawn levels are moved towards noise in training.
        mu: steps and latents' shape -> logarithm of the sampling shift; without effect on schedules with a fixed one.
        linear: whether sampling begins with evenly spread levels 1 ... 1/steps; else they are the scheduler's own.
        sigmas: distribution that training draws from.
    """

    config: Mapping[str, Any]
    shift: float
    mu: Callable[[int, tuple[int, ...]], float] | None = None
    linear: bool = True
    sigmas: Draw = "logit-normal"

    @property
    def count(self) -> int:
        """Levels that are told apart."""
        return FINENESS

    @property
    def rests_at_zero(self) -> bool:
        """True: a flow without velocity moves nothing."""
        return True

    def as_clean(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 and -sigma."""
        return torch.ones_like(t), -t

    def draw(self, count: int, spread: bool, generator: torch.Generator) -> Tensor:
        """Return levels, logit-normal (arXiv:2403.03206, eq. 19) or uniform, then shifted."""
        if spread or self.sigmas == "uniform":
            even = spread_evenly(count, generator) if spread else torch.rand((count,), generator=generator)
            drawn = even if self.sigmas == "uniform" else torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6)).sigmoid()
        else:
            drawn = torch.randn(count, generator=generator).sigmoid()
        return shifted(drawn, self.shift)

    def at(self, index: Tensor) -> Tensor:
        """Return evenly spread levels, shifted."""
        return shifted((index + 0.5) / FINENESS, self.shift)

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return (1 - sigma) clean + sigma noise."""
        return mixed(clean, noise, t)

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return noise - clean, the velocity at every level."""
        return noise - clean

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """Return ones: `refuse` lets no min-SNR gamma through."""
        return torch.ones_like(t)

    def refuse(self, objective: Any, base: str) -> None:
        """Refuse min-SNR weights and offset noise."""
        if objective.snr_gamma is not None:
            raise ConfigError(
                f"--snr-gamma weights timesteps of a noise schedule; {base} learns a flow, which has none.",
                "Leave it out; --sigmas and --shift decide which noise levels are learned.",
            )
        if objective.offset_noise:
            raise ConfigError(
                f"--offset-noise mends schedules that never reach pure noise; {base} learns a flow, which does.",
                "Leave it out.",
            )

    def with_settings(self, objective: Any) -> Flow:
        """Return the process with the distribution and the shift of an objective."""
        shift = self.shift if objective.shift is None else objective.shift
        return Flow(self.config, shift, self.mu, self.linear, objective.sigmas or self.sigmas)

    def sampler(self, name: Scheduler, steps: int, device: Any, spacing: Spacing, shape: tuple[int, ...]) -> Any:
        """Return Euler's steps on the levels of the base's own pipeline."""
        if name != "euler" or spacing != "own":
            what = f"sampler {name}" if name != "euler" else f"spacing {spacing}"
            raise RequestError(
                f"The {what} is for noise schedules of DDPM; this base is a rectified flow.",
                "Use the sampler euler with the spacing own.",
            )
        known = {key: value for key, value in self.config.items() if not key.startswith("_")}
        sampler: Any = FlowEuler.from_config(known)
        told: dict[str, Any] = {}
        if self.mu is not None and sampler.config.use_dynamic_shifting:
            told["mu"] = self.mu(steps, shape)
        if self.linear:
            told["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        else:
            told["num_inference_steps"] = steps
        with np.errstate(divide="ignore", invalid="ignore"):
            sampler.set_timesteps(device=device, **told)
        if not bool(torch.isfinite(sampler.timesteps).all()):  # a last level that is set needs one before it
            raise RequestError(
                f"The sampler {name} cannot do {steps} step on this base, whose last noise level is set.",
                "Use 2 steps or more.",
            )
        return sampler

    def time(self, timestep: Tensor) -> Tensor:
        """Return the level of a sampler's timestep."""
        return timestep / self.config.get("num_train_timesteps", 1000)

    def estimate(self, sampler: Any, stepped: Any, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return x0 = x - sigma v."""
        return noisy - t * prediction
