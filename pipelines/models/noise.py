"""Noise processes: how pictures become noise, what a denoiser learns of it, and how sampling goes back.

Two are known: DDPM (Ho et al., arXiv:2006.11239), whose denoisers predict the noise, a velocity or the picture at
whole timesteps, and rectified flow (Liu et al., arXiv:2209.03003), whose denoisers predict noise - picture at levels
from 0 to 1. Training, conditions and the denoising loop ask the process of their base, and know neither by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pipelines.errors import ConfigError, ModelError, RequestError
from pipelines.models import schedulers
from pipelines.request.request import Scheduler, Spacing

Draw = Literal["logit-normal", "uniform"]
"""Distribution of the levels that a flow is taught."""

FINENESS = 1000
"""Levels that are told apart where a flow's are counted."""


class NoiseProcess(Protocol):
    """The process of a base. A time t is a tensor (B,) in the process' own unit."""

    @property
    def count(self) -> int:
        """Number of levels that are told apart, for draws by an index."""
        ...

    def draw(self, count: int, spread: bool, generator: torch.Generator) -> Tensor:
        """Return times (count,) to learn at, on the CPU.

        Args:
            count: how many.
            spread: spread them evenly over what they are drawn from, instead of drawing each by itself.
            generator: on the CPU.
        """
        ...

    def at(self, index: Tensor) -> Tensor:
        """Return the times of indices (B,) in [0, count), the noisiest last."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return latents (B, C, h, w) with noise as at t (B,)."""
        ...

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the denoiser should predict, (B, C, h, w)."""
        ...

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """Return min-SNR weights (B,) of the errors at t (arXiv:2303.09556)."""
        ...

    def refuse(self, objective: Any, base: str) -> None:
        """Refuse settings of a training objective that mean nothing for this process.

        Raises:
            ConfigError: naming the setting, and what to use instead.
        """
        ...

    def with_settings(self, objective: Any) -> NoiseProcess:
        """Return the process with what an objective says of the draw of its times."""
        ...

    def sampler(self, name: Scheduler, steps: int, device: Any, spacing: Spacing, shape: tuple[int, ...]) -> Any:
        """Return a sampler of diffusers with its timesteps set.

        Args:
            name: of the sampler.
            steps: denoising steps.
            device: of the timesteps.
            spacing: of the noise levels.
            shape: (B, C, h, w) of the latents, which some schedules depend on.

        Raises:
            RequestError: if the process has no such sampler, or it cannot do so many steps.
        """
        ...

    def time(self, timestep: Tensor) -> Tensor:
        """Return the time of a sampler's timestep."""
        ...

    def estimate(self, sampler: Any, stepped: Any, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the finished latents (B, C, h, w) as one prediction has them.

        Args:
            sampler: after its step.
            stepped: result of the step.
            prediction: of the denoiser, guidance done.
            noisy: latents before the step.
            t: their time.
        """
        ...


# -- DDPM -------------------------------------------------------------------------------------------------------


def noise_levels(config: Any, device: torch.device) -> Tensor:
    """Return cumulative products of 1 - beta (T,) float32 of a base's noise schedule."""
    from diffusers import DDPMScheduler

    known = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return DDPMScheduler.from_config(known).alphas_cumprod.to(device, torch.float32)  # pyright: ignore


def noised(clean: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return latents noised to alphas_cumprod (B,): sqrt(a) clean + sqrt(1 - a) noise (arXiv:2006.11239, eq. 4)."""
    a = alphas_cumprod[:, None, None, None]
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def target(kind: str, clean: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return the target of the UNet's prediction.

    Args:
        kind: "epsilon", "v_prediction" (arXiv:2202.00512, appendix D) or "sample".
        clean: (B, C, h, w) scaled latents.
        noise: the noise in them.
        alphas_cumprod: (B,) cumulative products at their timesteps.

    Raises:
        ModelError: for another kind.
    """
    a = alphas_cumprod[:, None, None, None]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return a.sqrt() * noise - (1 - a).sqrt() * clean
    if kind == "sample":
        return clean
    raise ModelError(f"The base predicts {kind!r}.", "Known are epsilon, v_prediction and sample.")


def min_snr_weights(kind: str, alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Return weights (B,) of timesteps with which the clean picture counts min(SNR, gamma) (arXiv:2303.09556).

    For epsilon min(SNR, gamma) / SNR, for v-prediction min(SNR, gamma) / (SNR + 1), for sample min(SNR, gamma). Where
    the SNR is 0 the first is 1, its limit.

    Args:
        kind: prediction type of the UNet.
        alphas_cumprod: (B,) cumulative products at the timesteps.
        gamma: the cap.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    capped = snr.clamp(max=gamma)
    if kind == "epsilon":
        return torch.where(snr > 0, capped / snr.clamp(min=1e-30), torch.ones_like(snr))
    return capped / (snr + 1) if kind == "v_prediction" else capped


@dataclass(frozen=True)
class DDPM:
    """Diffusion in steps; a time is a whole timestep, 0 the least noisy.

    Attributes:
        levels: (T,) of `noise_levels`.
        kind: what is predicted: epsilon, v_prediction or sample.
        config: of the base's own scheduler.
    """

    levels: Tensor
    kind: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any], device: torch.device) -> DDPM:
        """Return the process that a scheduler's configuration describes."""
        return cls(noise_levels(config, device), str(config.get("prediction_type", "epsilon")), config)

    @property
    def count(self) -> int:
        """Length of the schedule, T."""
        return len(self.levels)

    def draw(self, count: int, spread: bool, generator: torch.Generator) -> Tensor:
        """Return timesteps, all alike likely."""
        if spread:
            return ((torch.rand((), generator=generator) + torch.arange(count) / count) % 1 * self.count).long()
        return torch.randint(self.count, (count,), generator=generator)

    def at(self, index: Tensor) -> Tensor:
        """Return the indices: they are the timesteps."""
        return index

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return sqrt(a) clean + sqrt(1 - a) noise."""
        return noised(clean, noise, self.levels[t])

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return noise, velocity or picture, by the base's kind."""
        return target(self.kind, clean, noise, self.levels[t])

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """Return min-SNR weights of the kind."""
        return min_snr_weights(self.kind, self.levels[t], gamma)

    def refuse(self, objective: Any, base: str) -> None:
        """Refuse how a flow's levels are drawn."""
        for name in ("sigmas", "shift"):
            if getattr(objective, name) is not None:
                raise ConfigError(
                    f"--{name} is for bases of rectified flow; {base} learns at whole timesteps, all alike likely.",
                    f"Leave --{name} out, or weight timesteps with --snr-gamma.",
                )

    def with_settings(self, objective: Any) -> DDPM:
        """Return the process: its timesteps are all alike likely."""
        return self

    def sampler(self, name: Scheduler, steps: int, device: Any, spacing: Spacing, shape: tuple[int, ...]) -> Any:
        """Return the sampler, built from the base's own configuration."""
        return schedulers.build(name, self.config, steps, device, spacing)

    def time(self, timestep: Tensor) -> Tensor:
        """Return the timestep."""
        return timestep

    def estimate(self, sampler: Any, stepped: Any, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return x0 as `schedulers.estimate` has it."""
        return schedulers.estimate(sampler, stepped, prediction, noisy)


# -- rectified flow ---------------------------------------------------------------------------------------------


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
        levels: distribution that training draws from.
    """

    config: Mapping[str, Any]
    shift: float
    mu: Callable[[int, tuple[int, ...]], float] | None = None
    linear: bool = True
    levels: Draw = "logit-normal"

    @property
    def count(self) -> int:
        """Levels that are told apart."""
        return FINENESS

    def draw(self, count: int, spread: bool, generator: torch.Generator) -> Tensor:
        """Return levels, logit-normal (arXiv:2403.03206, eq. 19) or uniform, then shifted."""
        if spread or self.levels == "uniform":
            even = torch.rand(() if spread else (count,), generator=generator)
            even = (even + torch.arange(count) / count) % 1 if spread else even
            drawn = even if self.levels == "uniform" else torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6)).sigmoid()
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
        return Flow(self.config, shift, self.mu, self.linear, objective.sigmas or self.levels)

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
