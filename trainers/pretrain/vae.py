"""Stage 1: the autoencoder, on random crops of composed pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from pipelines.events import Note, OnEvent
from trainers.checkpoints import Checkpoint
from trainers.loop import Pace, optimise, warm_stable_decay
from trainers.pretrain.parts import autoencoder
from trainers.stickers import NAMES, Stickers, scenes

POOL = 4096  # pictures composed ahead; composing each step would halve the speed


def pictures(count: int, seed: int, size: int, device: str, names: tuple[str, ...] = NAMES) -> torch.Tensor:
    """Composed pictures (count, 3, size, size) in [-1, 1]."""
    stickers = Stickers(size, device, names=names)
    listed = scenes(count, seed, names=names)
    return torch.cat([stickers.render(listed[i : i + 256]).images for i in range(0, count, 256)])


def train_vae(
    work: Path, *, steps: int, size: int, device: str, on_event: OnEvent, crop: int = 32, batch: int = 16
) -> AutoencoderTiny:
    """Train, even out the latent channels, adapt the decoder to that, and return the autoencoder.

    The loss is L1 + L2 plus a small pull of the latents to 0; noise on the latents keeps the decoder smooth.
    """
    torch.manual_seed(1)  # initial weights
    vae = autoencoder()
    torch.nn.Module.to(vae, device)
    pool = pictures(POOL, 11, size, device)

    def losses(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        which = torch.randint(POOL, (batch,), generator=generator).tolist()
        corner = torch.randint(size - crop + 1, (batch, 2), generator=generator).tolist()
        x = torch.stack([pool[i, :, y : y + crop, x : x + crop] for i, (y, x) in zip(which, corner, strict=True)])
        z = vae.encoder(x)
        noise = torch.randn(z.shape, generator=generator).to(device)
        y = vae.decoder(z + 0.02 * noise)
        return {"l1": F.l1_loss(y, x), "l2": F.mse_loss(y, x), "pull": 1e-3 * z.square().mean()}

    optimizer = torch.optim.AdamW(vae.parameters(), 3e-3, weight_decay=1e-4, fused=True)
    optimise(
        losses,
        [optimizer],
        Pace(steps, seed=1, clip=1.0, report=100),
        rate=warm_stable_decay,
        checkpoint=_checkpoint(work / "vae.state", vae, optimizer),
        on_event=on_event,
    )
    _even_out(vae, pool[:512])
    polish = torch.optim.AdamW(vae.decoder.parameters(), 5e-4, weight_decay=0.0, fused=True)
    vae.encoder.requires_grad_(False)
    on_event(Note("latent channels evened out; adapting the decoder"))
    optimise(
        lambda step, generator: {k: v for k, v in losses(step + steps, generator).items() if k != "pull"},
        [polish],
        Pace(max(1, steps // 5), seed=2, clip=1.0, report=100),
        rate=lambda step, total: warm_stable_decay(step, total, warm=20, decay=0.9),
        on_event=on_event,
    )
    return vae.eval()


def _checkpoint(path: Path, vae: AutoencoderTiny, optimizer: torch.optim.Optimizer) -> Checkpoint:
    def restore(kept: dict[str, dict[str, torch.Tensor]]) -> None:
        vae.load_state_dict(kept["vae"])
        optimizer.load_state_dict(kept["optimizer"])

    return Checkpoint(path, 500, lambda: {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}, restore)


@torch.no_grad()
def _even_out(vae: AutoencoderTiny, images: torch.Tensor) -> None:
    """Fold the latents' mean and spread per channel into the last convolution, then set `scaling_factor`.

    Plain pipelines know one scalar factor; after this every channel has the same spread, so one is enough.
    """
    latents = vae.encoder(images)
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    common = spread.mean()
    last: Any = vae.encoder.layers[-1]
    last.weight.mul_((common / spread)[:, None, None, None])
    last.bias.sub_(mean).mul_(common / spread)
    vae.register_to_config(scaling_factor=float(1 / common))
    vae.scaling_factor = float(1 / common)


@torch.no_grad()
def psnr(vae: AutoencoderTiny, images: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of reconstructing pictures in [-1, 1]."""
    restored = torch.cat([vae.decoder(vae.encoder(part)).clamp(-1, 1) for part in images.split(64)])
    error = ((restored - images) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())
