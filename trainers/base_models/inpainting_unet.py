"""Inpainting UNets: a base of 4 channels becomes one of 9, with mask and surroundings as inputs.

The first convolution gets five more inputs with weights of zero, so that training starts from what the base paints;
then the whole UNet is trained on masked pictures. Latents, mask and latents of the masked picture follow each other
as in Stable Diffusion's inpainting models (Rombach et al., arXiv:2112.10752), mask 1 = repaint. Visual prompts are
trained by the same code: a grid is a picture whose mask is a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from pipelines.errors import Cancelled, ModelError
from pipelines.events import OnEvent, ignore
from pipelines.models.components import Components, encode
from pipelines.models.fingerprint import is_gated
from pipelines.models.inpainting_unet import has_inpainting_unet, inpainting_components, widened_shape
from pipelines.models.noise import noise_levels, noised, target
from trainers.loop.clock import Clock
from trainers.loop.cuda_graphs import CudaGraphUNet
from trainers.loop.ema import EMA, averaged_checkpoint
from trainers.loop.loop import Losses, Pace, optimise, warm_stable_decay
from trainers.loop.muon import Muon

OUTSIDE = 0.1
"""Weight of what lies outside the mask in the loss: it can be copied, so it teaches little."""


class MaskedBatch(NamedTuple):
    """Pictures with masks to inpaint.

    Attributes:
        pictures: (B, 3, H, W) in [-1, 1].
        masks: (B, 1, H, W) or (1, 1, H, W), 1 = repaint.
        conditioning: UNet arguments made from the captions: `encoder_hidden_states` and, for SDXL, more.
    """

    pictures: Tensor
    masks: Tensor
    conditioning: Mapping[str, Any]


Source = Callable[[int, torch.Generator], MaskedBatch]
"""Gives the batch of a step by its index; the generator is that of the device."""


def widened(base: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of a UNet with 9 channels whose output equals the base's, whatever the mask is.

    Layers for boxes are left out: they stay those of the base.
    """
    unet = widened_shape(base)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items() if not is_gated(name)}
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = F.pad(first, (0, 0, 0, 0, 0, unet.conv_in.in_channels - first.shape[1]))
    unet.load_state_dict(weights)
    torch.nn.Module.to(unet, base.device, torch.float32)
    if base.device.type == "cuda":  # as its tensor cores read convolutions
        torch.nn.Module.to(unet, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return unet


def start_from(components: Components, start: Path | None) -> UNet2DConditionModel:
    """Return the UNet that training starts from: one given, the one beside the base, or the base widened; float32.

    Raises:
        ModelError: if what is given is none for this base, or the base has 9 channels itself.
    """
    if has_inpainting_unet(components):
        raise ModelError(
            f"{components.name} is an inpainting model already.", "Give the 4-channel base, and this one with --start."
        )
    unet = widened(components.unet)
    try:
        found = inpainting_components(components, start).unet
    except ModelError:
        if start is not None:
            raise
        return unet
    unet.load_state_dict({name: tensor for name, tensor in found.state_dict().items() if not is_gated(name)})
    return unet


def inputs_beside(components: Components, pictures: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents of the pictures, mask (B, 1, h, w) on their grid, and latents of the masked pictures.

    As in `StableDiffusionInpaintPipeline`: masked pixels are mid-grey, the mask on the latents takes the nearest pixel.
    """
    seen = pictures * (masks < 0.5)
    both = encode(components, torch.cat((pictures, seen))).mean.float()
    latents, around = both.chunk(2)
    mask = F.interpolate(masks, size=latents.shape[-2:]).expand(len(latents), -1, -1, -1)
    return latents, mask, around


Loss = Callable[[MaskedBatch, torch.Generator], Tensor]
"""The loss of a batch; the generator is that of the device."""


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a generator of the device, seeded by one number of the step's, so that nothing waits for the device."""
    return torch.Generator(device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))


def masked_loss(unet: UNet2DConditionModel, components: Components, on_event: OnEvent = ignore) -> Loss:
    """Return the loss of a batch: squared error inside the mask, and a little outside it.

    Timesteps are spread evenly over each batch, which calms the gradient.
    """
    device = unet.device
    alphas_cumprod, call = noise_levels(components.scheduler_config, device), CudaGraphUNet(unet, on_event=on_event)
    kind = str(components.scheduler_config.get("prediction_type", "epsilon"))
    total = len(alphas_cumprod)

    def loss(batch: MaskedBatch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            # Large autoencoders overflow in float16; a tiny one is quicker and as exact.
            with _half(device, torch.float16) if isinstance(components.vae, AutoencoderTiny) else nullcontext():
                clean, mask, around = inputs_beside(components, batch.pictures, batch.masks)
            count = len(clean)
            start = torch.rand((), generator=generator, device=device)
            even = (start + torch.arange(count, device=device) / count) % 1
            timesteps = (even * total).long().clamp(max=total - 1)
            noise = torch.randn(clean.shape, generator=generator, device=device)
            at = alphas_cumprod[timesteps]
            noisy, wanted = noised(clean, noise, at), target(kind, clean, noise, at)
            weight = mask + OUTSIDE * (1 - mask)
        inputs = torch.cat((noisy, mask, around), 1)
        if set(batch.conditioning) == {"encoder_hidden_states"}:
            guess = call(inputs, timesteps, batch.conditioning["encoder_hidden_states"])
        else:
            with _half(device, torch.bfloat16):
                guess = unet(inputs, timesteps, **batch.conditioning).sample
        error = (guess.float() - wanted).square().mean(1, keepdim=True)
        return (error * weight).sum() / weight.sum()

    return loss


def losses_of(
    unet: UNet2DConditionModel, components: Components, sources: Mapping[str, Source], on_event: OnEvent = ignore
) -> Losses:
    """Return the losses of a step, the `masked_loss` of a batch of each source."""
    loss = masked_loss(unet, components, on_event)

    def losses(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        generator = on_device(generator, unet.device)
        terms: dict[str, Tensor] = {}
        for name, source in sources.items():
            with torch.no_grad():
                batch = source(index, generator)
            terms[name] = loss(batch, generator)
        return terms

    return losses


def _half(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", dtype) if device.type == "cuda" else nullcontext()


def learning_rate(clock: Clock, step: int, steps: int) -> float:
    """Return the factor on the learning rate: warm-up by steps, a plateau, a linear fall over the last two fifths."""
    done = clock.share(step, steps)
    return min((step + 1) / min(100, max(1, steps // 5)), warm_stable_decay(round(done * 1e6), 10**6, 1, 0.4))


def optimizers_of(unet: UNet2DConditionModel, rate: float, muon: bool = True) -> list[torch.optim.Optimizer]:
    """Return Muon for hidden matrices and AdamW for the rest, or AdamW for all."""
    if not muon:
        return [torch.optim.AdamW(unet.parameters(), rate, fused=True)]
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in unet.named_parameters():
        inner = parameter.ndim >= 2 and not name.startswith(("conv_in", "conv_out"))
        (hidden if inner else rest).append(parameter)
    return [Muon(hidden, rate), torch.optim.AdamW(rest, rate, fused=True)]


@dataclass(frozen=True)
class Plan:
    """Duration and speed of the training of a UNet.

    Attributes:
        steps: optimiser steps in all.
        minutes: limit by the wall clock; the learning rate falls towards it.
        rate: learning rate, for Muon and AdamW alike.
        muon: whether the hidden matrices are Muon's.
        ema: decay of the moving average; 0 for none.
        seed: source of chance.
        keep_every: steps between writes of the state.
        report: steps between reports.
        about: settings a training goes on only with.
    """

    steps: int
    minutes: float | None = None
    rate: float = 1e-3
    muon: bool = True
    ema: float = 0.999
    seed: int = 0
    keep_every: int = 500
    report: int = 20
    about: Mapping[str, Any] = field(default_factory=dict)


def train_unet(
    components: Components,
    unet: UNet2DConditionModel,
    sources: Mapping[str, Source],
    state: Path,
    plan: Plan,
    *,
    after: Callable[[int, EMA], dict[str, float] | None] = lambda done, average: None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> EMA:
    """Train a widened UNet in place; return the moving average of its weights, which is the result.

    Args:
        components: the base: its autoencoder encodes, its schedule noises.
        unet: from `widened`, or one trained before.
        sources: named batches with masks; the loss of each is a term.
        state: folder of the training state; what is there is gone on from.
        plan: duration and speed.
        after: called with the steps done, for previews.
        on_event: receives reports.
        should_stop: asked once a step.

    Raises:
        Cancelled: if `should_stop` said so; the state is kept.
        ConfigError: if a loss is not finite, or the state is of other settings.
    """
    unet.train().requires_grad_(True)
    clock, average = Clock(plan.minutes), EMA(dict(unet.named_parameters()), plan.ema)
    optimizers = optimizers_of(unet, plan.rate, plan.muon)

    def after_step(done: int) -> dict[str, float] | None:
        average.update()
        return after(done, average)

    try:
        optimise(
            losses_of(unet, components, sources, on_event),
            optimizers,
            Pace(plan.steps, seed=plan.seed, clip=1.0, report=plan.report),
            rate=lambda step, of: learning_rate(clock, step, of),
            after_step=after_step,
            checkpoint=averaged_checkpoint(
                state, plan.keep_every, unet.state_dict(), average, optimizers, clock, plan.about
            ),
            on_event=on_event,
            should_stop=lambda: should_stop() or clock.over,
        )
    except Cancelled:
        if not clock.over or should_stop():
            raise
    return average


def save_unet(unet: UNet2DConditionModel, average: EMA, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the average in the diffusers layout; `pipelines.models.inpainting_unet` reads it."""
    with average.shown():
        copy = widened_shape(unet)
        copy.load_state_dict({name: tensor.detach().cpu() for name, tensor in unet.state_dict().items()})
    torch.nn.Module.to(copy, dtype=dtype).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    return folder


@torch.no_grad()
def painted(
    unet: UNet2DConditionModel, components: Components, batch: MaskedBatch, generator: torch.Generator, steps: int = 20
) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1] inpainted, without guidance; for previews."""
    from pipelines.models.components import decode

    schedule: Any = DDIMScheduler.from_config(dict(components.scheduler_config))
    schedule.set_timesteps(steps)
    clean, mask, around = inputs_beside(components, batch.pictures, batch.masks)
    latents = torch.randn(clean.shape, generator=generator, device=clean.device)
    for timestep in schedule.timesteps:
        guess = unet(torch.cat((latents, mask, around), 1), timestep.to(clean.device), **batch.conditioning).sample
        latents = schedule.step(guess.float(), timestep, latents).prev_sample
    return torch.where(batch.masks > 0.5, decode(components, latents), batch.pictures)
