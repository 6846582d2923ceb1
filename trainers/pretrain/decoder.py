"""A better decoder for a finished model: the encoder, and with it every latent and every UNet, stays unchanged.

The autoencoder's decoder is trained once more, deeper and on two kinds of latents: those of real pictures, so that it
restores them well, and those of the same pictures noised half-way and drawn to the end by the UNet, which carry the
faults of generated ones. To both belongs the real picture, so the decoder learns to put right what the UNet smears.

The loss is L1 + (1 - SSIM) of the luminance (Zhao et al., "Loss functions for image restoration with neural networks",
IEEE TCI 2017, which takes MS-SSIM; pictures of 64 px have few scales).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.measures.drawn import luminance, ssim
from pipelines.models.components import Components
from pipelines.models.families.clip import caption_ids
from trainers.initial_weights import initial_weights
from trainers.pretrain.parts import autoencoder, scheduler
from trainers.pretrain.vae import as_bytes, as_images, schedule_of, train_averaged
from trainers.stickers.art import Style
from trainers.stickers.world import NAMES, Stickers, scenes

SEED = 61
NOISED = (150, 650)
"""Timesteps from which pictures are drawn anew; earlier ones do not stay where they were."""
GUIDANCE = 2.0
STRIDE = 70
"""Timesteps in one step of drawing anew."""
SLACK = 0.02
"""Standard deviation of the noise on latents of real pictures, in the encoder's units: it keeps the decoder smooth."""
REDRAWN = 0.5
"""Share of a batch that was drawn anew by the UNet."""
FLAT = 0.15
"""Share of the real pictures in the flat style, which the UNet does not know: the decoder is for any drawing."""


def real_pictures(count: int, seed: int, size: int, style: Style, device: torch.device) -> tuple[Tensor, list[str]]:
    """Return composed pictures (count, 3, size, size) uint8 of trained names, and their captions."""
    stickers = Stickers(size, device, style, NAMES)
    listed = scenes(count, seed, style=style)
    parts = [stickers.render(listed[i : i + 256]).images for i in range(0, count, 256)]
    return torch.cat([as_bytes(part) for part in parts]), [item.caption for item in listed]


@torch.no_grad()
def redrawn(components: Components, latents: Tensor, captions: list[str], generator: torch.Generator) -> Tensor:
    """Noise each latent to a timestep of its own and let the UNet draw it to the end by DDIM, with guidance.

    Args:
        components: the base.
        latents: (N, 4, h, w), scaled.
        captions: one each.
        generator: source of the noise, on the device of the latents.

    Returns:
        Latents (N, 4, h, w).
    """
    device = latents.device
    alphas = scheduler().alphas_cumprod.to(device)
    low, high = NOISED
    at = torch.randint(low, high, (len(latents),), generator=generator, device=device)
    noise = torch.randn(latents.shape, generator=generator, device=device)
    level = alphas[at][:, None, None, None]
    x = level.sqrt() * latents + (1 - level).sqrt() * noise
    states = [
        components.text_encoders[0](caption_ids(components, 0, text)).last_hidden_state for text in ([""], captions)
    ]
    context = torch.cat((states[0].expand(len(latents), -1, -1), states[1]))
    steps = torch.ceil(at / STRIDE).long()
    for index in range(int(steps.max())):
        left = 1 - index / steps
        following = (1 - (index + 1) / steps).clamp(min=0)
        active = (left > 0)[:, None, None, None]
        now, then = (at * left.clamp(min=0)).long(), (at * following).long()
        guess = components.unet(torch.cat((x, x)), torch.cat((now, now)), context).sample
        plain, told = guess.chunk(2)
        velocity = plain + GUIDANCE * (told - plain)
        a = alphas[now][:, None, None, None]
        clean, noise = a.sqrt() * x - (1 - a).sqrt() * velocity, a.sqrt() * velocity + (1 - a).sqrt() * x
        b = torch.where(then > 0, alphas[then], torch.ones((), device=device))[:, None, None, None]
        x = torch.where(active, b.sqrt() * clean + (1 - b).sqrt() * noise, x)
    return x


@dataclass(frozen=True)
class Pairs:
    """Latents with the pictures they are decoded to.

    Attributes:
        pictures: (N, 3, H, W) uint8.
        latents: (N, 4, h, w) of these pictures, in the encoder's units.
        redrawn: (M, 4, h, w), those of the first M pictures drawn anew by the UNet.
    """

    pictures: Tensor
    latents: Tensor
    redrawn: Tensor

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return latents (size, 4, h, w) in the encoder's units and pictures (size, 3, H, W)."""
        device, anew = self.latents.device, round(REDRAWN * size)
        which = torch.randint(len(self.redrawn), (anew,), generator=generator, device=device)
        real = torch.randint(len(self.pictures), (size - anew,), generator=generator, device=device)
        noise = torch.randn((size - anew, *self.latents.shape[1:]), generator=generator, device=device)
        latents = torch.cat((self.redrawn[which], self.latents[real] + SLACK * noise))
        return latents, as_images(self.pictures[torch.cat((which, real))])


@torch.no_grad()
def make_pairs(components: Components, count: int, size: int, on_event: OnEvent, at_once: int = 64) -> Pairs:
    """Compose pictures, encode them, and let the base draw `count` of them anew; as many more are only encoded."""
    vae, scale, device = components.vae, float(components.vae.config["scaling_factor"]), components.device
    generator = torch.Generator(device).manual_seed(SEED)
    shaded, captions = real_pictures(2 * count, SEED, size, "fluent", device)
    flat, _ = real_pictures(max(1, int(FLAT * count)), SEED + 1, size, "flat", device)
    pictures = torch.cat((shaded, flat))
    latents = torch.cat([vae.encoder(as_images(part)) for part in pictures.split(256)])
    drawn: list[Tensor] = []
    for start in range(0, count, at_once):
        part = latents[start : min(count, start + at_once)] * scale
        drawn.append(redrawn(components, part, captions[start : start + len(part)], generator) / scale)
        if start % 1024 == 0:
            on_event(Note(f"drawn anew: {start} of {count} pictures"))
    return Pairs(pictures, latents, torch.cat(drawn))


def deeper(vae: AutoencoderTiny) -> AutoencoderTiny:
    """Return an autoencoder with the encoder of `vae` and a new decoder, or with its decoder if that has the shape."""
    new = autoencoder()
    new.encoder.load_state_dict(vae.encoder.float().state_dict())
    new.register_to_config(scaling_factor=float(vae.config["scaling_factor"]))
    new.scaling_factor = float(vae.config["scaling_factor"])
    state, own = vae.decoder.float().state_dict(), new.decoder.state_dict()
    if {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}:
        new.decoder.load_state_dict(state)
    return new


def train_decoder(
    work: Path,
    components: Components,
    *,
    steps: int,
    size: int,
    on_event: OnEvent,
    count: int = 8192,
    batch: int = 16,
    rate: float = 1e-3,
    minutes: float | None = None,
) -> AutoencoderTiny:
    """Train a decoder for the base and return the autoencoder with it; encoded pairs are kept in `work`.

    Args:
        work: folder of states.
        components: the base; its encoder stays.
        steps: optimiser steps at most.
        size: side of the pictures in pixels.
        on_event: receives progress.
        count: pictures drawn anew by the UNet.
        batch: pictures a step.
        rate: learning rate of Muon for the convolutions and of AdamW for the rest.
        minutes: ends after so much time if that is sooner, what the pictures took left out.
    """
    with initial_weights(8):
        vae = deeper(components.vae)  # pyright: ignore[reportArgumentType]
    nn.Module.to(vae, components.device)
    vae.encoder.requires_grad_(False)
    pairs = _pairs(work / f"pairs-{size}-{count}.pt", components, count, size, on_event)

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        seed = int(torch.randint(1 << 62, (), generator=generator))
        latents, truth = pairs.batch(batch, torch.Generator(components.device).manual_seed(seed))
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
            made = vae.decoder(latents)
        made = made.float()
        return {
            "l1": F.l1_loss(made, truth),
            "ssim": 0.5 * (1 - ssim(luminance(made), luminance(truth)).mean()),
        }

    train_averaged(vae, losses, schedule_of(steps, minutes, rate, decay=0.7, seed=9), work / "decoder.state", on_event)
    return vae.eval()


def _pairs(path: Path, components: Components, count: int, size: int, on_event: OnEvent) -> Pairs:
    """Return the pairs that are kept at a path for this base, or new ones, kept there."""
    of = components.fingerprint()
    if path.exists():
        kept = torch.load(path, map_location=components.device, weights_only=True)
        if kept["base"] == of:
            return Pairs(kept["pictures"], kept["latents"], kept["redrawn"])
    at_once = 1024 if components.device.type == "cuda" else 64
    pairs = make_pairs(components, count, size, on_event, at_once)
    with whole_file(path) as temporary:
        torch.save(vars(pairs) | {"base": of}, temporary)
    return pairs
