"""Noise processes: how pictures become noise, what a denoiser learns of it, and how sampling goes back.

Two are known: DDPM (Ho et al., arXiv:2006.11239), whose denoisers predict the noise, a velocity or the picture at
whole timesteps, and rectified flow (`pipelines.models.flow`). Training, conditions and the denoising loop ask the
process of their base, and know neither by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipelines.errors import ConfigError, ModelError
from pipelines.models import schedulers
from pipelines.request.request import Scheduler, Spacing


class NoiseProcess(Protocol):
    """The process of a base. A time t is a tensor (B,) in the process' own unit."""

    @property
    def count(self) -> int:
        """Number of levels that are told apart, for draws by an index."""
        ...

    @property
    def rests_at_zero(self) -> bool:
        """True if latents stay as they are where zeros are predicted."""
        ...

    def as_clean(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return factors (a, b) with clean = a noisy + b prediction at a time.

        Args:
            t: one time.
        """
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


def spread_evenly(count: int, generator: torch.Generator) -> Tensor:
    """Return numbers (count,) in [0, 1), evenly apart from a start that is drawn, on the generator's device."""
    start = torch.rand((), generator=generator, device=generator.device)
    return (start + torch.arange(count, device=generator.device) / count) % 1


def alphas_cumprod_of(config: Any, device: torch.device) -> Tensor:
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
        alphas_cumprod: (T,) of `alphas_cumprod_of`.
        kind: what is predicted: epsilon, v_prediction or sample.
        config: of the base's own scheduler.
    """

    alphas_cumprod: Tensor
    kind: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any], device: torch.device) -> DDPM:
        """Return the process that a scheduler's configuration describes."""
        return cls(alphas_cumprod_of(config, device), str(config.get("prediction_type", "epsilon")), config)

    @property
    def count(self) -> int:
        """Length of the schedule, T."""
        return len(self.alphas_cumprod)

    @property
    def rests_at_zero(self) -> bool:
        """False: noise, velocity and picture are all something else than nothing."""
        return False

    def as_clean(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the kind; a time between two timesteps counts as the nearer one."""
        level = self.alphas_cumprod[t.round().long()]
        if self.kind == "sample":
            return torch.zeros_like(level), torch.ones_like(level)
        kept, noise = level.sqrt(), (1 - level).sqrt()
        return (kept, -noise) if self.kind == "v_prediction" else (1 / kept, -noise / kept)

    def draw(self, count: int, spread: bool, generator: torch.Generator) -> Tensor:
        """Return timesteps, all alike likely."""
        if spread:
            return self.timesteps(spread_evenly(count, generator))
        return torch.randint(self.count, (count,), generator=generator)

    def timesteps(self, share: Tensor) -> Tensor:
        """Return the timesteps at shares of the schedule, from 0 to 1."""
        return (share * self.count).long().clamp(max=self.count - 1)

    def at(self, index: Tensor) -> Tensor:
        """Return the indices: they are the timesteps."""
        return index

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return sqrt(a) clean + sqrt(1 - a) noise."""
        return noised(clean, noise, self.alphas_cumprod[t])

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return noise, velocity or picture, by the base's kind."""
        return target(self.kind, clean, noise, self.alphas_cumprod[t])

    def weight(self, t: Tensor, gamma: float) -> Tensor:
        """Return min-SNR weights of the kind."""
        return min_snr_weights(self.kind, self.alphas_cumprod[t], gamma)

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
