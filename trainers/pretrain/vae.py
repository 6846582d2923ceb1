"""Stage 1: the autoencoder, on composed pictures in both styles.

The loss is L1 + L2 + (1 - SSIM) of the luminance, plus a small pull of the latents to 0; noise on the latents keeps
the decoder smooth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.events import Note, OnEvent
from pipelines.measures.drawn import luminance, ssim
from trainers.initial_weights import initial_weights
from trainers.loop.clock import Clock, until
from trainers.loop.ema import EMA, averaged_checkpoint
from trainers.loop.loop import Losses, optimise
from trainers.loop.muon import Muon
from trainers.loop.schedule import Schedule
from trainers.pretrain.parts import autoencoder
from trainers.stickers.art import Style
from trainers.stickers.world import NAMES, Stickers, scenes

FLAT = 0.25
"""Share of the pictures in the flat style, which the UNet does not know: the autoencoder is for any drawing."""
SLACK = 0.02
"""Standard deviation of the noise on latents, in units of their own before they are evened out."""
POLISH = 0.2
"""Share of the steps, after those of the whole, in which the decoder alone adapts to evened-out latents."""


def as_bytes(images: Tensor) -> Tensor:
    """Return pictures in [-1, 1] as uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def as_images(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as pictures in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def pictures(
    count: int, seed: int, size: int, device: str, names: tuple[str, ...] = NAMES, style: Style = "fluent"
) -> Tensor:
    """Return composed pictures (count, 3, size, size) in [-1, 1]."""
    return as_images(_composed(count, seed, size, device, names, style))


def _composed(count: int, seed: int, size: int, device: str, names: tuple[str, ...], style: Style) -> Tensor:
    """Return composed pictures (count, 3, size, size), uint8."""
    stickers = Stickers(size, device, style, names)
    listed = scenes(count, seed, names=names, style=style)
    return torch.cat([as_bytes(stickers.render(listed[i : i + 256]).images) for i in range(0, count, 256)])


@dataclass(frozen=True)
class VaePlan:
    """Duration of the training of an autoencoder.

    Attributes:
        steps: steps at most; a fifth as many follow for the decoder alone.
        minutes: ends after so much time if that is sooner.
        size: side of the pictures in pixels.
        crop: side of what is cut from them at random.
        batch: crops a step.
        count: pictures composed ahead.
        rate: learning rate of Muon for square convolutions and of AdamW for the rest.
    """

    steps: int
    minutes: float | None = None
    size: int = 64
    crop: int = 32
    batch: int = 16
    count: int = 4096
    rate: float = 2e-3


def train_vae(work: Path, plan: VaePlan, device: str, on_event: OnEvent) -> AutoencoderTiny:
    """Train, even out the latent channels, adapt the decoder to that, and return the autoencoder.

    Args:
        work: folder of the state.
        plan: duration.
        device: device to train on.
        on_event: receives progress.
    """
    with initial_weights(1):
        vae = autoencoder()
    nn.Module.to(vae, device)
    if device.startswith("cuda"):  # as its tensor cores read convolutions
        nn.Module.to(vae, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    flat = int(plan.count * FLAT)
    shaded = _composed(plan.count - flat, 11, plan.size, device, NAMES, "fluent")
    pool = torch.cat((shaded, _composed(flat, 12, plan.size, device, NAMES, "flat")))
    losses = _losses(vae, pool, plan)
    whole, rest = (None, None) if plan.minutes is None else (plan.minutes / (1 + POLISH), plan.minutes * POLISH)
    train_averaged(
        vae, losses, schedule_of(plan.steps, whole, plan.rate, decay=0.5, seed=1), work / "vae.state", on_event
    )
    _even_out(vae, as_images(pool[:2048]))
    vae.encoder.requires_grad_(False)
    on_event(Note("latent channels evened out; adapting the decoder"))
    steps = max(1, int(POLISH * plan.steps))
    train_averaged(
        vae, losses, schedule_of(steps, rest, plan.rate / 4, decay=1.0, seed=2), work / "polish.state", on_event
    )
    return vae.eval()


def _losses(vae: AutoencoderTiny, pool: Tensor, plan: VaePlan) -> Losses:
    """Return the losses of a batch of crops; random numbers are drawn on the device, seeded by the step's generator."""
    device, free = pool.device, plan.size - plan.crop
    axis, colours = torch.arange(plan.crop, device=device), torch.arange(3, device=device)[:, None, None]

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
        which = torch.randint(len(pool), (plan.batch,), generator=generator, device=device)
        down, across = torch.randint(free + 1, (2, plan.batch, 1), generator=generator, device=device)
        rows, columns = (down + axis)[:, None, :, None], (across + axis)[:, None, None, :]
        x = as_images(pool[which[:, None, None, None], colours, rows, columns])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            z = vae.encoder(x)
            made = vae.decoder(z + SLACK * torch.randn(z.shape, generator=generator, device=device))
        made, z = made.float(), z.float()
        return {
            "l1": F.l1_loss(made, x),
            "l2": 4 * F.mse_loss(made, x),
            "ssim": 0.2 * (1 - ssim(luminance(made), luminance(x)).mean()),
            "pull": 1e-3 * z.square().mean(),
        }

    return losses


def schedule_of(steps: int, minutes: float | None, rate: float, decay: float, seed: int) -> Schedule:
    """Return the schedule of an autoencoder's training."""
    return Schedule(steps, minutes, rate, decay=decay, seed=seed, clip=1.0, report=100)


def train_averaged(vae: AutoencoderTiny, losses: Losses, schedule: Schedule, state: Path, on_event: OnEvent) -> None:
    """Train the parameters of an autoencoder that are not frozen; leave their moving average in place.

    Args:
        vae: the autoencoder.
        losses: of a batch.
        schedule: duration and speed.
        state: folder of the state.
        on_event: receives progress.
    """
    trained = {name: value for name, value in vae.named_parameters() if value.requires_grad}
    optimizers = _optimizers(list(trained.values()), schedule.rate)
    average, clock = EMA(trained, 0.998), Clock(schedule.minutes)

    def after(done: int) -> None:
        clock.steps = done
        average.update()

    with until(clock):
        optimise(
            losses,
            optimizers,
            schedule,
            rate=schedule.factor(clock),
            after_step=after,
            checkpoint=averaged_checkpoint(state, 500, trained, average, optimizers, clock),
            on_event=on_event,
            should_stop=lambda: clock.over,
        )
    for name, value in average.values.items():
        trained[name].data.copy_(value)


def _optimizers(parameters: list[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the square convolutions and AdamW for the rest."""
    hidden = [one for one in parameters if one.ndim == 4 and one.shape[0] == one.shape[1]]
    rest = [one for one in parameters if one.ndim != 4 or one.shape[0] != one.shape[1]]
    return [Muon(hidden, rate), torch.optim.AdamW(rest, rate, weight_decay=0.0, fused=True)]


@torch.no_grad()
def _even_out(vae: AutoencoderTiny, images: Tensor) -> None:
    """Fold the latents' mean and spread per channel into the last convolution, then set `scaling_factor`.

    Plain pipelines know one scalar factor; after this every channel has the same spread, so one is enough.
    """
    latents = torch.cat([vae.encoder(part) for part in images.split(256)])
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    common = spread.mean()
    last: Any = vae.encoder.layers[-1]
    last.weight.mul_((common / spread)[:, None, None, None])
    last.bias.sub_(mean).mul_(common / spread)
    vae.register_to_config(scaling_factor=float(1 / common))
    vae.scaling_factor = float(1 / common)


@torch.no_grad()
def psnr(vae: AutoencoderTiny, images: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of reconstructing pictures in [-1, 1]."""
    restored = torch.cat([vae.decoder(vae.encoder(part)).clamp(-1, 1) for part in images.split(64)])
    error = ((restored - images) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())
