"""The denoising loop: conditions and noise in, latents out. Everything asked of a picture plugs in as a condition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.condition import Canvas, Condition, Correction, Step
from pipelines.conditions.text import Text
from pipelines.enlarging.tiles import Predictor, Tiles
from pipelines.errors import Cancelled
from pipelines.events import OnEvent, StepDone
from pipelines.models.components import Components
from pipelines.models.schedulers import step_options
from pipelines.predictions.guided import Guided
from pipelines.predictions.regional import View, composed
from pipelines.predictions.weights import Weights
from pipelines.request.request import Request


def initial_noise(components: Components, request: Request) -> tuple[Tensor, list[torch.Generator]]:
    """Return unit noise (count, C, h, w), picture i from seed + i, and the generators that go on from there.

    Drawn on the CPU, so that a seed means the same picture on every device; the draw equals that of a diffusers
    pipeline given one CPU generator a picture.
    """
    generators = [torch.Generator().manual_seed(request.seed + i) for i in range(request.count)]
    height, width = int(request.height or 0), int(request.width or 0)
    shape = (1, components.channels, height // components.factor, width // components.factor)
    noise = torch.cat([torch.randn(shape, generator=generator, dtype=components.dtype) for generator in generators])
    return noise.to(components.device), generators


def denoise(
    components: Components,
    request: Request,
    conditions: list[Condition],
    start: tuple[Tensor, list[torch.Generator]],
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    views: Sequence[View] = (),
    also: Sequence[Text] = (),
    weaker: Weights | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """Run the loop: predict, guide, step, constrain; with views once for each of them.

    Args:
        components: the base.
        request: with nothing left open.
        conditions: attached ones.
        start: unit noise and the generators that go on from it.
        on_event: told each step.
        should_stop: asked before each step.
        views: parts of the picture with weights of their own.
        also: the request's further prompts, attached.
        weaker: weights of the base without its concepts, for autoguidance.
        tiles: of which predictions are put together, in the second pass.

    Raises:
        Cancelled: if it should stop.
    """
    (noise, generators), process, began = start, components.family.process(components), time.monotonic()
    name, steps = request.scheduler or "ddim", int(request.steps or 1)
    shape = (*noise.shape[:2], *(tiles.side if tiles else noise.shape[2:]))
    scheduler = process.sampler(name, steps, components.device, request.spacing, shape)
    latents, timesteps = noise * scheduler.init_noise_sigma, scheduler.timesteps
    for canvas in conditions:
        if isinstance(canvas, Canvas):
            latents, timesteps = canvas.begin(noise, scheduler)
    whole = Guided(components, request, conditions, also, weaker)
    everywhere: Predictor = tiles.over(whole) if tiles else whole
    within = [(view, Guided(components, request, view.conditions(conditions), also, weaker)) for view in views]
    for index, timestep in enumerate(timesteps):
        if should_stop():
            raise Cancelled(f"stopped after step {index} of {len(timesteps)}.")
        following = timesteps[index + 1] if index + 1 < len(timesteps) else None
        step = Step(index, len(timesteps), timestep, following, before=len(scheduler.timesteps) - len(timesteps))
        time_now = process.time(timestep)
        latents = _corrected(conditions, latents, step, partial(_seen, scheduler, whole, time_now, step))
        sample = scheduler.scale_model_input(latents, timestep)
        parts: list[tuple[View, Tensor]] = []
        for view, guided in within:
            own = scheduler.scale_model_input(view.seen(latents, noise, scheduler, step), timestep)
            parts.append((view, view.predicted(guided, own, time_now, step)))
        prediction = composed(everywhere(sample, time_now, step), parts)
        stepped = scheduler.step(prediction, timestep, latents, **step_options(scheduler, generators, request.eta))
        step = replace(step, estimate=partial(process.estimate, scheduler, stepped, prediction, latents, time_now))
        latents = stepped.prev_sample
        for condition in conditions:
            latents = condition.constrain(latents, step)
        on_event(StepDone(index + 1, len(timesteps), {}, time.monotonic() - began))
    return latents


def _corrected(
    conditions: Sequence[Condition], latents: Tensor, step: Step, predict: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the latents as those conditions want them that correct them before a prediction."""
    for condition in conditions:
        if isinstance(condition, Correction):
            latents = condition.corrected(latents, step, predict)
    return latents


def _seen(scheduler: Any, guided: Guided, time_now: Tensor, step: Step, latents: Tensor) -> Tensor:
    """Return the prediction under the prompt for latents as they are in the run."""
    return guided.under_prompt(scheduler.scale_model_input(latents, step.timestep), time_now, step)
