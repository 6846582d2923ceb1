"""Loss terms and their inputs, as functions of plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.guidance import distilled_conditioning
from pipelines.models.components import Components
from pipelines.models.text import encode_ids
from trainers.data.batches import Batch
from trainers.settings import ObjectiveConfig


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


def caption_ids(components: Components, which: int, captions: list[str]) -> Tensor:
    """Return token ids (B, window) of captions, concepts of several vectors written out, cut at the window."""
    tokenizer = components.tokenizers[which]
    room, window = tokenizer.model_max_length - 2, tokenizer.model_max_length
    rows: list[list[int]] = []
    for caption in captions:
        ids: list[int] = []
        for token in tokenizer(caption, add_special_tokens=False, verbose=False).input_ids:
            ids += components.expansions.get(token, (token,))
        row = [tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (window - len(row)))
    return torch.tensor(rows, device=components.text_encoders[which].device)


def conditioning(components: Components, captions: list[str], frames: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Return UNet arguments for captions; gradients reach the text encoders and their input rows.

    Args:
        components: the base, with any new words attached.
        captions: one a picture.
        frames: (B, 4) as `Batch.frames`, for SDXL; `uncropped` where pictures are whole.
        size: height and width of the training pictures in pixels, for SDXL.
    """
    encoded = [
        encode_ids(components, which, caption_ids(components, which, captions))
        for which in range(len(components.text_encoders))
    ]
    return _arguments(components, encoded, frames, size)


def uncropped(count: int, size: tuple[int, int]) -> Tensor:
    """Return frames (count, 4) of whole pictures of a height and width in pixels."""
    return torch.tensor([[*size, 0, 0]]).expand(count, 4)


def _arguments(components: Components, encoded: Sequence[Any], frames: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """Return UNet arguments from the states and the pooled text of each text encoder."""
    context = torch.cat([part for part, _ in encoded], dim=-1).to(components.dtype)
    unguided = distilled_conditioning(
        components, 1.0, len(context)
    )  # what is learned is the prediction without guidance
    if components.family != "sdxl":
        return {"encoder_hidden_states": context, **unguided}
    ids = torch.cat((frames, torch.tensor([size]).expand(len(frames), 2)), dim=1).to(
        components.device, components.dtype
    )
    pooled = encoded[-1][1].to(components.dtype)
    added = {"text_embeds": pooled, "time_ids": ids}
    return {"encoder_hidden_states": context, "added_cond_kwargs": added, **unguided}


class Conditioning:
    """UNet arguments for captions, each caption encoded once where nothing of the text side is trained.

    Args:
        components: the base with any new words attached.
        frozen: whether no text encoder and no word is trained.
    """

    def __init__(self, components: Components, frozen: bool) -> None:
        self.components, self.frozen = components, frozen
        self._known: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, captions: list[str], frames: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Return the `conditioning` of captions; gradients reach the text side unless it is frozen."""
        if not self.frozen:
            return conditioning(self.components, captions, frames, size)
        encoders = range(len(self.components.text_encoders))
        for caption in {caption for caption in captions if caption not in self._known}:
            with torch.no_grad():
                self._known[caption] = [
                    encode_ids(self.components, which, caption_ids(self.components, which, [caption]))
                    for which in encoders
                ]
        encoded = [
            tuple(torch.cat([self._known[caption][which][k] for caption in captions]) for k in range(2))
            for which in encoders
        ]
        return _arguments(self.components, encoded, frames, size)

    def anew(self, captions: list[str], frames: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Return the `conditioning` of captions by the text encoders as they are at this moment."""
        if self.frozen:
            return self(captions, frames, size)
        return conditioning(self.components, captions, frames, size)


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


def pixels_of(components: Components, latents: Tensor) -> tuple[int, int]:
    """Return height and width in pixels of the pictures of latents (B, C, h, w)."""
    return latents.shape[-2] * components.factor, latents.shape[-1] * components.factor


def drawn(
    batch: Batch, objective: ObjectiveConfig, timesteps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return noise (B, C, h, w) and timesteps (B,) of a batch, on its device.

    Args:
        batch: latents to noise.
        objective: decides offset noise and how timesteps spread.
        timesteps: length of the noise schedule.
        generator: on the CPU.
    """
    device, count, part = batch.latents.device, len(batch.latents), batch.part
    shape = batch.latents.shape[1:]
    noise = part.of(lambda n: torch.randn((n, *shape), generator=generator), count)
    if objective.spread_timesteps:
        chosen = part.of(
            lambda n: ((torch.rand((), generator=generator) + torch.arange(n) / n) % 1 * timesteps).long(), count
        )
    else:
        chosen = part.of(lambda n: torch.randint(timesteps, (n,), generator=generator), count)
    if objective.offset_noise:
        offset = part.of(lambda n: torch.randn((n, shape[0], 1, 1), generator=generator), count)
        noise = noise + objective.offset_noise * offset
    return noise.to(device), chosen.to(device)


def predicted(
    components: Components,
    clean: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    alphas_cumprod: Tensor,
    arguments: dict[str, Any],
) -> Tensor:
    """Return the UNet's prediction (B, C, h, w) float32 for latents noised to timesteps (B,)."""
    noisy = noised(clean, noise, alphas_cumprod[timesteps]).to(components.dtype)
    return components.unet(noisy, timesteps, **arguments).sample.float()


def weighted_error(
    components: Components,
    guess: Tensor,
    wanted: Tensor,
    alphas_cumprod: Tensor,
    objective: ObjectiveConfig,
    masks: Tensor | None = None,
) -> Tensor:
    """Return squared errors (B,) in float32, each the mean over its picture, weighted by timestep and mask.

    Under a mask it is a weighted mean: a small thing counts as much as a large one.

    Args:
        components: the base; says what is predicted.
        guess: (B, C, h, w).
        wanted: (B, C, h, w).
        alphas_cumprod: (B,) at the timesteps of these pictures, so that each half of a joined batch is weighted by its
            own.
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
        kind = str(components.scheduler_config.get("prediction_type", "epsilon"))
        errors = errors * min_snr_weights(kind, alphas_cumprod, objective.snr_gamma)
    return errors


def denoising_errors(
    components: Components,
    batch: Batch,
    draw: tuple[Tensor, Tensor],
    alphas_cumprod: Tensor,
    arguments: dict[str, Any],
    objective: ObjectiveConfig,
) -> Tensor:
    """Return weighted squared errors (B,) of the UNet's prediction (arXiv:2112.10752, eq. 2).

    Args:
        components: the base.
        batch: scaled latents and masks.
        draw: noise and timesteps, of `drawn`.
        alphas_cumprod: (T,) of `noise_levels`.
        arguments: conditioning of the UNet.
        objective: weighting.
    """
    noise, timesteps = draw
    level = alphas_cumprod[timesteps]
    guess = predicted(components, batch.latents, timesteps, noise, alphas_cumprod, arguments)
    kind = str(components.scheduler_config.get("prediction_type", "epsilon"))
    wanted = target(kind, batch.latents, noise, level)
    return weighted_error(components, guess, wanted, level, objective, batch.masks)
