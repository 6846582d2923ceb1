"""Stage 4: the UNet and its text encoder, on latents encoded beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.models.fingerprint import is_gated
from pipelines.models.noise import DDPM
from trainers.initial_weights import initial_weights
from trainers.loop.clock import Clock, until
from trainers.loop.cuda_graphs import CudaGraphUNet
from trainers.loop.ema import EMA, averaged_checkpoint
from trainers.loop.loop import Losses, optimise
from trainers.loop.muon import Muon
from trainers.loop.schedule import Schedule
from trainers.pretrain.layout import TEXT
from trainers.pretrain.parts import scheduler, text_config, unet
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import Scene, Stickers, scenes

EMPTY = 0.1  # share of captions left empty, for classifier-free guidance
AVERAGED = 0.998
"""Share of the moving average that stays at each step."""


class Generator(nn.Module):
    """The parts that are trained together: the UNet and its text encoder."""

    def __init__(self, size: int, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = unet(size)
        self.text = CLIPTextModel(text_config(tokenizer))

    def go_on_from(self, folder: Path) -> None:
        """Return UNet and text encoder of a finished model in the diffusers layout, to train them further."""
        self.text.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict())
        self.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict())

    def optimizers(self, rate: float, text: bool = True) -> list[torch.optim.Optimizer]:
        """Return Muon for the UNet's hidden matrices and AdamW for the rest.

        Args:
            rate: learning rate of both; the text encoder learns at a quarter of it.
            text: train the text encoder. If not it is frozen, and other UNets that read it stay valid.
        """
        hidden: list[Tensor] = []
        rest: list[Tensor] = []
        for name, parameter in self.unet.named_parameters():
            if is_gated(name):  # trained later, on a frozen base
                parameter.requires_grad_(False)
            elif parameter.ndim >= 2 and not name.startswith(("conv_in", "conv_out")):
                hidden.append(parameter)
            else:
                rest.append(parameter)
        groups: list[dict[str, Any]] = [{"params": rest}]
        if text:
            groups.append({"params": list(self.text.parameters()), "lr": rate / 4})
        else:
            self.text.requires_grad_(False)
        return [Muon(hidden, rate), torch.optim.AdamW(groups, rate, fused=True)]


def training_stream(count: int, seed: int) -> list[Scene]:
    """Return the scenes the generator is trained on: trained names and trained relations alone."""
    return scenes(count, seed)


@torch.no_grad()
def encoded(
    work: Path, vae: AutoencoderTiny, count: int, seed: int, size: int, device: str, on_event: OnEvent
) -> tuple[Tensor, list[str]]:
    """Return latents (count, 4, size/4, size/4) fp16 of the training stream, and its captions; kept on disk."""
    listed = training_stream(count, seed)
    # Latents belong to the encoder they come from.
    last: Any = vae.encoder.layers[-1]
    mark = hashlib.sha256(last.weight.detach().cpu().numpy().tobytes()).hexdigest()[:8]
    path = work / f"latents-{size}-{count}-{seed}-{mark}.pt"
    if not path.exists():
        on_event(Note(f"encoding {count} pictures"))
        stickers = Stickers(size, device)
        parts = [
            (vae.encoder(stickers.render(listed[i : i + 1024]).images) * vae.config["scaling_factor"]).half().cpu()
            for i in range(0, count, 1024)
        ]
        with whole_file(path) as temporary:
            torch.save(torch.cat(parts), temporary)
    return torch.load(path, weights_only=True), [item.caption for item in listed]


def train_unet(
    work: Path,
    vae: AutoencoderTiny,
    *,
    steps: int,
    size: int,
    device: str,
    on_event: OnEvent,
    batch: int = 64,
    pictures: int = 65536,
    rate: float = 1.2e-3,
    decay: float = 0.3,
    minutes: float | None = None,
    text: bool = True,
    seed: int = 31,
    show: Callable[[Generator, int], None] = lambda model, step: None,
    show_every: int = 500,
    keep_every: int = 250,
    go_on_from: Path | None = None,
) -> Generator:
    """Train and return the moving average of the generator: v-prediction on zero-terminal-SNR noise.

    Args:
        work: folder of states and encoded pictures.
        vae: the autoencoder.
        steps: optimiser steps at most.
        size: side of the pictures in pixels.
        device: device to train on.
        on_event: receives progress.
        batch: pictures a step.
        pictures: composed pictures to learn from.
        rate: learning rate.
        decay: share of the run over which it falls to 0.
        minutes: wall-clock time it may take, pauses between runs left out; the rate falls towards its end.
        text: train the text encoder as well.
        seed: of the composed pictures.
        show: draws a preview of the averaged model.
        show_every: steps between previews.
        keep_every: steps between states.
        go_on_from: a finished model to start from.
    """
    latents, captions = encoded(work, vae, pictures, seed, size, device, on_event)
    model = _begun(work, size, device, go_on_from)

    def shown(average: EMA, done: int) -> None:
        if done % show_every == 0 or done == steps:
            with average.shown():
                show(model, done)

    return _trained(
        model,
        _denoising(model, latents.to(device), captions, batch, text, on_event),
        model.optimizers(rate, text),
        Schedule(steps, minutes, rate, warmup=200, decay=decay, seed=5, clip=1.0, report=50),
        (work / "unet.state", keep_every),
        shown,
        on_event,
    )


def _begun(work: Path, size: int, device: str, go_on_from: Path | None) -> Generator:
    """Return the initial generator: a finished model, or new weights under the text encoder in `work`."""
    with initial_weights(4):
        model = Generator(size, build_tokenizer()).to(device)
    if device.startswith("cuda"):  # as its tensor cores read convolutions
        nn.Module.to(model.unet, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if go_on_from is not None:
        model.go_on_from(go_on_from)
    else:
        model.text.load_state_dict(torch.load(work / TEXT, map_location=device, weights_only=True))
    return model


def _trained(
    model: Generator,
    losses: Losses,
    optimizers: list[torch.optim.Optimizer],
    schedule: Schedule,
    state: tuple[Path, int],
    after_step: Callable[[EMA, int], None],
    on_event: OnEvent,
) -> Generator:
    """Run the loop and return the model with its moving average.

    `state` is a path and the steps between states; `after_step` sees the average.
    """
    clock, (path, keep_every) = Clock(schedule.minutes), state
    average = EMA(dict(model.named_parameters()), AVERAGED)

    def after(done: int) -> None:
        clock.steps = done
        average.update()
        after_step(average, done)

    with until(clock):
        optimise(
            losses,
            optimizers,
            schedule,
            rate=schedule.factor(clock),
            after_step=after,
            checkpoint=averaged_checkpoint(path, keep_every, model.state_dict(), average, optimizers, clock),
            on_event=on_event,
            should_stop=lambda: clock.over,
        )
    for name, parameter in model.named_parameters():
        parameter.data.copy_(average.values[name])
    return model.eval()


def _denoising(
    model: Generator, latents: Tensor, captions: list[str], batch: int, text: bool, on_event: OnEvent
) -> Losses:
    """Return the loss of a batch: velocity at timesteps spread evenly over it, a tenth of the captions left empty.

    All chance is drawn on the device, from one number of the step's generator: nothing waits for the device. On a GPU
    the UNet is computed in bfloat16 and as CUDA graphs.
    """
    device, noising, tokenizer = latents.device, scheduler(), build_tokenizer()
    call = CudaGraphUNet(model.unet, on_event=on_event)
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0].to(device)
    process = DDPM.of(noising.config, device)
    context = nullcontext if text else torch.no_grad

    def losses(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
        which = torch.randint(len(latents), (batch,), generator=generator, device=device)
        timesteps = process.draw(batch, True, generator)
        clean = latents[which].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        dropped = torch.rand((batch, 1), generator=generator, device=device) < EMPTY
        with context():
            states = model.text(torch.where(dropped, empty, ids[which])).last_hidden_state
        guess = call(process.noised(clean, noise, timesteps), timesteps, states)
        return {"denoise": (guess.float() - process.target(clean, noise, timesteps)).square().mean()}

    return losses
