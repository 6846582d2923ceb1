"""Training of GLIGEN's gated layers on a frozen base (Li et al., arXiv:2301.07093), from pictures with boxes.

Only the gated self-attention layers and what reads boxes for them learn. Their gates start at 0, where the base is
what it was, and learn at a rate of their own: at that of the other layers they would open over tens of thousands of
steps (at step 0 nothing else has a gradient at all). Captions, whole groundings and single boxes are left out now and
then, so that each can be used without the others and the null vectors mean "nothing is said of this place".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.errors import ModelError
from pipelines.gligen.tokens import gated_parameters, grounding_input, has_grounding
from pipelines.models.components import Components
from pipelines.models.noise import DDPM, spread_evenly
from trainers.base_models.grounding import GroundingConfig
from trainers.initial_weights import initial_weights

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


@contextmanager
def opened(unet: UNet2DConditionModel) -> Iterator[dict[str, nn.Parameter]]:
    """Give the gated layers of a frozen UNet to be trained inside the `with`; afterwards they are as before.

    Raises:
        ModelError: if it has none.
    """
    if not has_grounding(unet):
        raise ModelError(
            "This base has no gated layers.", "Give it some first: trainers.base_models.gligen.with_gates."
        )
    trained = dict(gated_parameters(unet))
    before = {name: value.detach().clone() for name, value in trained.items()}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    try:
        yield trained
    finally:
        for name, parameter in trained.items():
            parameter.requires_grad_(False)
            parameter.data.copy_(before[name])
            parameter.grad = None


def require_clip(components: Components) -> None:
    """Refuse a base whose text the layers cannot read.

    Raises:
        ModelError: if its UNet does not attend to the states of one CLIP, or it has no UNet.
    """
    if components.text_encoders[0].config.hidden_size != components.unet.config["cross_attention_dim"]:
        raise ModelError(
            f"The layers read phrases as {components.name} does not encode them.", "Use Stable Diffusion 1.x or 2.x."
        )


def with_gates(unet: UNet2DConditionModel, seed: int = 0) -> UNet2DConditionModel:
    """Return the UNet with gated layers, closed, so that outputs stay equal to the bit; itself if it has some."""
    if has_grounding(unet):
        return unet
    with initial_weights(seed):
        gated: Any = UNet2DConditionModel.from_config({**dict(unet.config), "attention_type": "gated"})
    missing, unexpected = gated.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected and all(".fuser." in name or name.startswith("position_net.") for name in missing)
    return gated.to(unet.device, unet.dtype).train(unet.training).requires_grad_(False)


def begin_open(trained: Mapping[str, nn.Parameter], gate: float, generator: torch.Generator) -> None:
    """Give the layers new weights (Xavier), their attention open by `gate` and their feed-forward part closed."""
    with torch.no_grad():
        for name, parameter in trained.items():
            if name.endswith(GATES):
                parameter.fill_(float(torch.atanh(torch.tensor(gate))) if name.endswith(GATES[0]) else 0.0)
            elif parameter.ndim >= 2:
                parameter.copy_(nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator))
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


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


@dataclass(frozen=True)
class GroundingObjective:
    """The base's own objective on pictures with boxes. All chance is drawn on the device: nothing waits for it.

    Attributes:
        unet: gated.
        scheduler_config: the base's noise schedule and what its UNet predicts.
        pictures: training data.
        config: settings.
        over: gives the share of the training that is over, for `config.places_first`.
    """

    unet: UNet2DConditionModel
    scheduler_config: Mapping[str, Any]
    pictures: BoxedPictures
    config: GroundingConfig
    over: Callable[[], float] = lambda: 1.0

    @cached_property
    def process(self) -> DDPM:
        """The noise process of the base, on the device."""
        return DDPM.of(self.scheduler_config, self.pictures.latents.device)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the numbers (count,) of pictures for a batch."""
        device = self.pictures.latents.device
        return torch.randint(len(self.pictures.latents), (count,), generator=generator, device=device)

    def loss(self, which: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error on pictures (B,), at timesteps spread evenly over the batch."""
        pictures, config, device, process = self.pictures, self.config, which.device, self.process
        count = len(which)
        even, places = spread_evenly(count, generator), self.over() < config.places_first
        timesteps = process.timesteps(PLACES_FROM + (1 - PLACES_FROM) * even if places else even)
        clean = pictures.latents[which].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        silent = torch.rand((count, 1, 1), generator=generator, device=device) < (
            PLACES_DROP if places else config.caption_drop
        )
        context = torch.where(silent, pictures.empty, pictures.contexts(which)).to(self.unet.dtype)
        guess = self.unet(
            process.noised(clean, noise, timesteps).to(self.unet.dtype),
            timesteps,
            context,
            cross_attention_kwargs=grounding_of(pictures, which, config, generator),
        ).sample
        return (guess.float() - process.target(clean, noise, timesteps)).square().mean()


@torch.no_grad()
def gains(
    unet: UNet2DConditionModel, scheduler_config: Mapping[str, Any], pictures: BoxedPictures, count: int = 256
) -> dict[str, float]:
    """Return losses on equal noise with boxes, with the null form and by the base alone, and the openness of the gates.

    Lower with boxes than without: the layers know where things are.
    """
    device = pictures.latents.device
    process = DDPM.of(scheduler_config, device)
    generator = torch.Generator(device).manual_seed(1)
    which = torch.arange(min(count, len(pictures.latents)), device=device)
    clean = pictures.latents[which].float()
    noise = torch.randn(clean.shape, generator=generator, device=device)
    timesteps = (torch.arange(len(which), device=device) * process.count // len(which)).flip(0)
    context = pictures.contexts(which).to(unet.dtype)
    present, boxes = pictures.present[which], pictures.boxes[which]
    embeddings = pictures.phrases[0][pictures.things[which]]
    given = {
        "boxes": grounding_input(embeddings, boxes, present),
        "null": grounding_input(embeddings, boxes, torch.zeros_like(present)),
        "base": None,
    }
    figures: dict[str, float] = {}
    for name, kwargs in given.items():
        sample = process.noised(clean, noise, timesteps).to(unet.dtype)
        guess = unet(sample, timesteps, context, cross_attention_kwargs=kwargs).sample
        figures[name] = float((guess.float() - process.target(clean, noise, timesteps)).square().mean())
    gates = [value.detach().tanh().abs() for name, value in gated_parameters(unet) if name.endswith(GATES)]
    return figures | {"gates": float(torch.stack(gates).mean())}
