"""Training of GLIGEN's gated layers on a frozen base (Li et al., arXiv:2301.07093), from pictures with boxes.

Only the gated self-attention layers and what reads boxes for them learn. Their gates start at 0, where the base is
what it was, and learn at a rate of their own: at that of the other layers they would open over tens of thousands of
steps (at step 0 nothing else has a gradient at all). Captions, whole groundings and single boxes are left out now and
then, so that each can be used without the others and the null vectors mean "nothing is said of this place".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.errors import ConfigError, ModelError
from pipelines.events import OnEvent, ignore
from pipelines.gligen.tokens import gated_parameters, grounding_input, has_grounding, save_adapter
from pipelines.models.noise import noise_levels, noised, target
from trainers.initial_weights import initial_weights
from trainers.loop.checkpoints import Checkpoint, states
from trainers.loop.clock import Clock, until
from trainers.loop.ema import EMA
from trainers.loop.loop import Losses, Pace, optimise
from trainers.loop.muon import Muon
from trainers.method_settings import GroundingConfig

GATES = ("alpha_attn", "alpha_dense")
PLACES_FROM, PLACES_DROP = 0.4, 0.8
"""While places come first: the share of the noise schedule that is left out, and of the captions."""


@dataclass(frozen=True)
class BoxedPictures:
    """Pictures with boxes, encoded beforehand; all on the device of the training.

    Attributes:
        latents: (N, C, h, w) scaled, in any precision.
        contexts: gives the text states (B, L, dim) of the captions of picture numbers (B,).
        empty: (1, L, dim), those of the empty caption.
        phrases: (V, P, dim) float32, each of P phrases in V wordings.
        unnamed: (dim,) float32, a phrase that names nothing.
        things: (N, n) int64, the phrase of each thing.
        boxes: (N, n, 4) float32, x0 y0 x1 y1 in fractions.
        present: (N, n) bool; False where a picture has fewer than n things.
    """

    latents: Tensor
    contexts: Callable[[Tensor], Tensor]
    empty: Tensor
    phrases: Tensor
    unnamed: Tensor
    things: Tensor
    boxes: Tensor
    present: Tensor


def check_data(pictures: BoxedPictures) -> None:
    """Refuse data from which positions cannot be learned.

    Raises:
        ConfigError: if there is no picture, or none has a box.
    """
    if not len(pictures.latents) or not bool(pictures.present.any()):
        raise ConfigError("There is no picture with a box in it.", "Give pictures with boxes.")


def opened(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """Freeze a UNet except its gated layers; return these.

    Raises:
        ModelError: if it has none.
    """
    if not has_grounding(unet):
        raise ModelError(
            "This base has no gated layers.", "Give it some first: trainers.base_models.gligen.with_gates."
        )
    unet.requires_grad_(False)
    trained = dict(gated_parameters(unet))
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return trained


def with_gates(unet: UNet2DConditionModel, seed: int = 0) -> UNet2DConditionModel:
    """Return the UNet with gated layers, closed, so that outputs stay equal to the bit; itself if it has some."""
    if has_grounding(unet):
        return unet
    with initial_weights(seed):
        gated: Any = UNet2DConditionModel.from_config({**dict(unet.config), "attention_type": "gated"})
    missing, unexpected = gated.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected and all(".fuser." in name or name.startswith("position_net.") for name in missing)
    return gated.to(unet.device, unet.dtype).train(unet.training)


def begin_open(trained: Mapping[str, nn.Parameter], gate: float, seed: int) -> None:
    """Give the layers new weights (Xavier), their attention open by `gate` and their feed-forward part closed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained.items():
            if name.endswith(GATES):
                parameter.fill_(float(torch.atanh(torch.tensor(gate))) if name.endswith(GATES[0]) else 0.0)
            elif parameter.ndim >= 2:
                parameter.copy_(nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator))
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


def optimizers_of(trained: Mapping[str, nn.Parameter], config: GroundingConfig) -> list[torch.optim.Optimizer]:
    """Return AdamW for the layers and their gates, or Muon for the matrices and AdamW for the rest."""
    if not config.muon:
        return [torch.optim.AdamW(groups(trained, config), config.rate, fused=True)]
    matrices = {name: one for name, one in trained.items() if one.ndim >= 2}
    rest = {name: one for name, one in trained.items() if name not in matrices}
    muon = Muon(list(matrices.values()), config.rate, weight_decay=0.0)
    return [muon, torch.optim.AdamW(groups(rest, config), config.rate, fused=True)]


def groups(trained: Mapping[str, nn.Parameter], config: GroundingConfig) -> list[dict[str, Any]]:
    """Return parameter groups for AdamW: the layers, and the gates, which must not decay."""
    gates = [value for name, value in trained.items() if name.endswith(GATES)]
    rest = [value for name, value in trained.items() if not name.endswith(GATES)]
    return [
        {"params": rest, "lr": config.rate, "weight_decay": 0.01},
        {"params": gates, "lr": config.rate * config.gate_rate, "weight_decay": 0.0},
    ]


def grounding_of(pictures: BoxedPictures, which: Tensor, config: GroundingConfig, generator: torch.Generator) -> Any:
    """Return the grounding of picture numbers `which` (B,), some of it dropped at random; for a UNet call."""
    device = which.device
    things, boxes, present = pictures.things[which], pictures.boxes[which], pictures.present[which]
    size, places = things.shape

    def coin(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    wording = torch.randint(len(pictures.phrases), things.shape, generator=generator, device=device)
    embeddings = pictures.phrases[wording, things]
    spread = pictures.phrases.flatten(0, 1).std(0, correction=0)  # of a single phrase there is none
    noise = torch.randn(embeddings.shape, generator=generator, device=device) * spread * config.blur
    embeddings = embeddings + noise * (coin(size, 1, 1) < 0.2)
    embeddings = torch.where((coin(size, places) < config.unnamed)[..., None], pictures.unnamed, embeddings)
    present = present & (coin(size, 1) >= config.grounding_drop)
    present = present & ((coin(size, places) >= config.box_drop) | (coin(size, 1) < 0.5))
    return grounding_input(embeddings, boxes, present)


def denoising(
    unet: UNet2DConditionModel,
    scheduler_config: Mapping[str, Any],
    pictures: BoxedPictures,
    config: GroundingConfig,
    done: Callable[[], float] = lambda: 1.0,
) -> Losses:
    """Return the loss of a batch: the base's own objective, at timesteps spread evenly over the batch.

    All chance is drawn on the device, from one number of the step's generator: nothing waits for the device.

    Args:
        unet: gated.
        scheduler_config: the base's noise schedule and what its UNet predicts.
        pictures: training data.
        config: settings.
        done: gives the share of the training that is over, for `config.places_first`.
    """
    device = pictures.latents.device
    alphas_cumprod, kind = (
        noise_levels(scheduler_config, device),
        str(scheduler_config.get("prediction_type", "epsilon")),
    )

    def losses(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        generator = torch.Generator(device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
        which = torch.randint(len(pictures.latents), (config.batch,), generator=generator, device=device)
        start = torch.rand((), generator=generator, device=device)
        even = (start + torch.arange(config.batch, device=device) / config.batch) % 1
        places = done() < config.places_first
        even = PLACES_FROM + (1 - PLACES_FROM) * even if places else even
        timesteps = (even * len(alphas_cumprod)).long().clamp(max=len(alphas_cumprod) - 1)
        clean = pictures.latents[which].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        silent = torch.rand((config.batch, 1, 1), generator=generator, device=device) < (
            PLACES_DROP if places else config.caption_drop
        )
        context = torch.where(silent, pictures.empty, pictures.contexts(which)).to(unet.dtype)
        at = alphas_cumprod[timesteps]
        guess = unet(
            noised(clean, noise, at).to(unet.dtype),
            timesteps,
            context,
            cross_attention_kwargs=grounding_of(pictures, which, config, generator),
        ).sample
        return {"denoise": (guess.float() - target(kind, clean, noise, at)).square().mean()}

    return losses


@torch.no_grad()
def gains(
    unet: UNet2DConditionModel, scheduler_config: Mapping[str, Any], pictures: BoxedPictures, count: int = 256
) -> dict[str, float]:
    """Return losses on equal noise with boxes, with the null form and by the base alone, and the openness of the gates.

    Lower with boxes than without: the layers know where things are.
    """
    device = pictures.latents.device
    alphas_cumprod, kind = (
        noise_levels(scheduler_config, device),
        str(scheduler_config.get("prediction_type", "epsilon")),
    )
    generator = torch.Generator(device).manual_seed(1)
    which = torch.arange(min(count, len(pictures.latents)), device=device)
    clean = pictures.latents[which].float()
    noise = torch.randn(clean.shape, generator=generator, device=device)
    timesteps = (torch.arange(len(which), device=device) * len(alphas_cumprod) // len(which)).flip(0)
    at, context = alphas_cumprod[timesteps], pictures.contexts(which).to(unet.dtype)
    present, boxes = pictures.present[which], pictures.boxes[which]
    embeddings = pictures.phrases[0][pictures.things[which]]
    given = {
        "boxes": grounding_input(embeddings, boxes, present),
        "null": grounding_input(embeddings, boxes, torch.zeros_like(present)),
        "base": None,
    }
    figures: dict[str, float] = {}
    for name, kwargs in given.items():
        sample = noised(clean, noise, at).to(unet.dtype)
        guess = unet(sample, timesteps, context, cross_attention_kwargs=kwargs).sample
        figures[name] = float((guess.float() - target(kind, clean, noise, at)).square().mean())
    gates = [value.detach().tanh().abs() for name, value in gated_parameters(unet) if name.endswith(GATES)]
    return figures | {"gates": float(torch.stack(gates).mean())}


@dataclass(frozen=True)
class GroundingRun:
    """Duration of a training, and where its state is kept.

    Attributes:
        steps: at most so many.
        adapter: `.safetensors` file of the gated layers, written at every checkpoint and at the end.
        keep: folder of the training state; a run that was interrupted goes on from it.
        about: entries for the header of the adapter; a state with other entries is refused.
        minutes: ends after so much time if that is sooner; the decay of the rates is then planned on time.
        keep_every: steps between checkpoints.
        report: steps between reports.
    """

    steps: int
    adapter: Path
    keep: Path
    about: Mapping[str, str]
    minutes: float | None = None
    keep_every: int = 250
    report: int = 50


def train_grounding(
    unet: UNet2DConditionModel,
    scheduler_config: Mapping[str, Any],
    pictures: BoxedPictures,
    config: GroundingConfig,
    run: GroundingRun,
    *,
    held_out: BoxedPictures | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train the gated layers of a UNet and write them; return the steps done.

    Args:
        unet: gated; its other layers are never written. It ends with the average of what was learned.
        scheduler_config: the base's noise schedule and what its UNet predicts.
        pictures: training data.
        config: settings.
        run: duration, and folder of the state.
        held_out: pictures that losses with and without boxes are reported on, at every checkpoint.
        on_event: receives steps and notes.
        should_stop: asked once a step.

    Raises:
        Cancelled: if `should_stop` said so; what was kept can be resumed.
        ConfigError: if the state kept is of other settings, or a loss stops being a number.
    """
    check_data(pictures)
    trained = opened(unet)
    if config.gate and not states(run.keep):
        begin_open(trained, config.gate, config.seed)
    average, clock = EMA(trained, config.ema), Clock(run.minutes)
    optimizers = optimizers_of(trained, config)

    def after(done: int) -> dict[str, float]:
        clock.steps = done
        if config.ema:
            average.update()
        if done % run.keep_every and done != run.steps:
            return {}
        with average.shown():
            _write(trained, run, clock)
            return {} if held_out is None else gains(unet, scheduler_config, held_out)

    with until(clock):
        optimise(
            denoising(unet, scheduler_config, pictures, config, lambda: clock.share(clock.steps, run.steps)),
            optimizers,
            Pace(run.steps, seed=config.seed, clip=1.0, report=run.report),
            rate=lambda step, of: min(1.0, (step + 1) / config.warmup, decay(clock.share(step, of))),
            after_step=after,
            checkpoint=_checkpoint(run, trained, average, optimizers, clock, config),
            on_event=on_event,
            should_stop=lambda: clock.over or should_stop(),
        )
    for name, value in average.values.items():
        trained[name].data.copy_(value)
    _write(trained, run, clock)
    return clock.steps


def _write(trained: Mapping[str, nn.Parameter], run: GroundingRun, clock: Clock) -> None:
    told = {"steps": str(clock.steps), "minutes": f"{clock.seconds / 60:.1f}"}
    save_adapter(trained, run.adapter, {**run.about, **told})


def decay(share: float, over: float = 0.4) -> float:
    """Return the factor on the learning rate at a share of the training: 1, then linear to 0 over the last `over`."""
    return min(1.0, max(0.0, (1 - share) / over))


def _checkpoint(
    run: GroundingRun,
    trained: Mapping[str, nn.Parameter],
    average: EMA,
    optimizers: list[torch.optim.Optimizer],
    clock: Clock,
    config: GroundingConfig,
) -> Checkpoint:
    told = {key: str(value) for key, value in {**config.model_dump(), **run.about}.items()}

    def state() -> dict[str, Any]:
        return {
            "layers": {name: value.detach() for name, value in trained.items()},
            "average": average.state(),
            "optimizers": [one.state_dict() for one in optimizers],
            "seconds": clock.seconds,
            "done": clock.steps,
            "settings": told,
        }

    def restore(kept: dict[str, Any]) -> None:
        changed = [key for key in {**told, **kept["settings"]} if told.get(key) != kept["settings"].get(key)]
        if changed:
            raise ConfigError(
                f"The training state in {run.keep} was begun with another {', '.join(changed)}.",
                "Use the same settings to go on, or delete that folder to begin anew.",
            )
        with torch.no_grad():
            for name, value in kept["layers"].items():
                trained[name].copy_(value)
        average.restore(kept["average"])
        for one, state_of in zip(optimizers, kept["optimizers"], strict=True):
            one.load_state_dict(state_of)
        clock.resume(float(kept["seconds"]))
        clock.steps = int(kept["done"])

    return Checkpoint(run.keep, run.keep_every, state, restore)
