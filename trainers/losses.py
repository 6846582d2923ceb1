"""Loss terms and their inputs, as functions of plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.models.components import Components, Conditioning
from pipelines.models.noise import NoiseProcess
from trainers.data.batches import Batch
from trainers.settings import ObjectiveConfig


def conditioning(components: Components, captions: list[str], frames: Tensor, size: tuple[int, int]) -> Conditioning:
    """Return the conditioning of captions without guidance; gradients reach the text encoders and their input rows.

    Args:
        components: the base, with any new words attached.
        captions: one a picture.
        frames: (B, 4) as `Batch.frames`, for bases that read them; `uncropped` where pictures are whole.
        size: height and width of the training pictures in pixels, for the same.
    """
    return _framed(components, components.family.encode_text(components, captions, plain=True), frames, size)


def uncropped(count: int, size: tuple[int, int]) -> Tensor:
    """Return frames (count, 4) of whole pictures of a height and width in pixels."""
    return torch.tensor([[*size, 0, 0]]).expand(count, 4)


def _framed(components: Components, text: Conditioning, frames: Tensor, size: tuple[int, int]) -> Conditioning:
    """Return encoded text with sizes; what is learned is the prediction without guidance, at a scale of 1."""
    whole = torch.cat((frames, torch.tensor([size]).expand(len(frames), 2)), dim=1)
    unguided = components.family.told_scale(components, 1.0, len(frames))
    return {**components.family.framed(components, text, whole), **unguided}


class Captions:
    """The conditioning of captions, each caption encoded once where nothing of the text side is trained.

    Args:
        components: the base with any new words attached.
        frozen: whether no text encoder and no word is trained.
    """

    def __init__(self, components: Components, frozen: bool) -> None:
        self.components, self.frozen = components, frozen
        self._known: dict[str, Conditioning] = {}

    def __call__(self, captions: list[str], frames: Tensor, size: tuple[int, int]) -> Conditioning:
        """Return the `conditioning` of captions; gradients reach the text side unless it is frozen."""
        if not self.frozen:
            return conditioning(self.components, captions, frames, size)
        for caption in {caption for caption in captions if caption not in self._known}:
            with torch.no_grad():
                self._known[caption] = self.components.family.encode_text(self.components, [caption], plain=True)
        return _framed(self.components, joined([self._known[caption] for caption in captions]), frames, size)

    def anew(self, captions: list[str], frames: Tensor, size: tuple[int, int]) -> Conditioning:
        """Return the `conditioning` of captions by the text encoders as they are at this moment."""
        if self.frozen:
            return self(captions, frames, size)
        return conditioning(self.components, captions, frames, size)


def joined(rows: Sequence[Mapping[str, Any]]) -> Conditioning:
    """Join encoded texts along the batch; shorter ones are filled up with zeros, which their masks leave out."""
    told: Conditioning = {}
    for key, first in rows[0].items():
        parts: list[Any] = [row[key] for row in rows]
        if isinstance(first, Mapping):
            told[key] = joined(parts)
            continue
        longest = max(part.shape[1] for part in parts)
        told[key] = torch.cat([F.pad(one, (0, 0) * (one.ndim - 2) + (0, longest - one.shape[1])) for one in parts])
    return told


def pixels_of(components: Components, latents: Tensor) -> tuple[int, int]:
    """Return height and width in pixels of the pictures of latents (B, C, h, w)."""
    return latents.shape[-2] * components.factor, latents.shape[-1] * components.factor


def drawn(
    batch: Batch, objective: ObjectiveConfig, process: NoiseProcess, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return noise (B, C, h, w) and times (B,) of a batch, on its device.

    Args:
        batch: latents to noise.
        objective: decides offset noise and how times spread.
        process: of the base; draws the times.
        generator: on the CPU.
    """
    device, count, part = batch.latents.device, len(batch.latents), batch.part
    shape = batch.latents.shape[1:]
    noise = part.of(lambda n: torch.randn((n, *shape), generator=generator), count)
    chosen = part.of(lambda n: process.draw(n, objective.spread_timesteps, generator), count)
    if objective.offset_noise:
        offset = part.of(lambda n: torch.randn((n, shape[0], 1, 1), generator=generator), count)
        noise = noise + objective.offset_noise * offset
    return noise.to(device), chosen.to(device)


def predicted(
    components: Components, clean: Tensor, t: Tensor, noise: Tensor, process: NoiseProcess, told: Conditioning
) -> Tensor:
    """Return the base's prediction (B, C, h, w) float32 for latents noised to times (B,)."""
    noisy = process.noised(clean, noise, t).to(components.dtype)
    return components.family.predict(components, noisy, t, told).float()


def weighted_error(
    process: NoiseProcess,
    guess: Tensor,
    wanted: Tensor,
    t: Tensor,
    objective: ObjectiveConfig,
    masks: Tensor | None = None,
) -> Tensor:
    """Return squared errors (B,) in float32, each the mean over its picture, weighted by time and mask.

    Under a mask it is a weighted mean: a small thing counts as much as a large one.

    Args:
        process: of the base; says what is predicted.
        guess: (B, C, h, w).
        wanted: (B, C, h, w).
        t: (B,) times of these pictures, so that each half of a joined batch is weighted by its own.
        objective: gamma and the weight of the background.
        masks: (B, 1, h, w), 1 where the thing is, or None.
    """
    squared = (guess - wanted).square()
    if masks is None:
        errors = squared.flatten(1).mean(1)
    else:
        weight = (objective.background + (1 - objective.background) * masks).expand_as(squared)
        errors = (squared * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
    if objective.snr_gamma is not None:
        errors = errors * process.weight(t, objective.snr_gamma)
    return errors


def denoising_errors(
    components: Components,
    batch: Batch,
    draw: tuple[Tensor, Tensor],
    process: NoiseProcess,
    told: Conditioning,
    objective: ObjectiveConfig,
) -> Tensor:
    """Return weighted squared errors (B,) of the base's prediction (arXiv:2112.10752, eq. 2).

    Args:
        components: the base.
        batch: scaled latents and masks.
        draw: noise and times, of `drawn`.
        process: of the base.
        told: conditioning of the captions.
        objective: weighting.
    """
    noise, t = draw
    guess = predicted(components, batch.latents, t, noise, process, told)
    wanted = process.target(batch.latents, noise, t)
    return weighted_error(process, guess, wanted, t, objective, batch.masks)


def process_of(components: Components, objective: ObjectiveConfig) -> NoiseProcess:
    """Return the noise process of a base with what an objective says of its draws.

    Raises:
        ConfigError: if the objective has a setting that means nothing for it.
    """
    process = components.family.process(components)
    process.refuse(objective, components.name)
    return process.with_settings(objective)
