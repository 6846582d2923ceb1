"""Training a concept: a base, a method, examples in; a `Concept` out. One function for every method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.components import Components
from pipelines.concept import Concept
from pipelines.denoising import generate
from pipelines.errors import ConfigError
from pipelines.events import Note, OnEvent, Preview, ignore
from pipelines.request import ConceptUse, Request
from trainers.checkpoints import Checkpoint
from trainers.config import DataConfig, TrainConfig
from trainers.data import Example, LatentSet, digest
from trainers.loop import Pace, optimise
from trainers.method import Method, Trainable


@dataclass(frozen=True)
class Run:
    """Everything that decides what is learned, but for the pictures themselves.

    Attributes:
        method: how.
        config: the method's own settings.
        train: pace and optimiser.
        data: how pictures are read.
    """

    method: Method
    config: Any
    train: TrainConfig
    data: DataConfig

    def recipe(self) -> dict[str, Any]:
        """The resolved configuration, for the concept's card; without the person's folder names."""
        data = self.data.model_dump(mode="json", exclude={"images"})
        return {**self.config.model_dump(mode="json"), **self.train.model_dump(mode="json"), **data}


def with_preset(method: Method, family: str, config: Any) -> Any:
    """`config` with the method's recipe for a family wherever the person set nothing."""
    preset = method.presets.get(family, {})
    fields = type(config).model_fields
    return config.model_copy(
        update={key: value for key, value in preset.items() if key in fields and key not in config.model_fields_set}
    )


def train(
    components: Components,
    run: Run,
    examples: Sequence[Example],
    *,
    keep: Path | None = None,
    keep_every: int = 100,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Concept:
    """Learn a concept.

    Args:
        components: the base, its text encoders in float32; bit-identical afterwards, also after an error.
        run: method and settings.
        examples: the pictures.
        keep: file for the training state; if it is there, training goes on from it.
        keep_every: steps between writes of that file.
        on_event: receives steps with losses and figures, previews and notes.
        should_stop: asked once a step.

    Raises:
        Cancelled: if `should_stop` said so; what was kept can be resumed.
        ConfigError: if a loss stops being a number.
        ConceptError: if the word or its initializer do not suit the base.
    """
    begun_with = {**run.recipe(), "base": components.fingerprint(), "pictures": digest(examples)}
    with run.method.prepare(components, run.config) as trainable:
        parameters = list(trainable.parameters.values())
        optimizer = torch.optim.AdamW(parameters, run.train.rate, weight_decay=run.train.weight_decay)
        pictures = _encoded(components, run, examples)
        if left_out := pictures.unused_captions(run.config.token):
            names = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
            on_event(Note(f"{len(left_out)} captions have no {run.config.token} or {{}} and are not used ({names})"))
        on_event(Note(f"{len(examples)} pictures encoded; {run.train.steps} steps at rate {run.train.rate:g}"))

        def losses(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
            batch = pictures.draw(index, run.train.batch, run.config.token, trainable.wordings, generator)
            return run.method.losses(trainable, batch, generator)

        def after(done: int) -> dict[str, float]:
            if run.train.preview_every and done % run.train.preview_every == 0:
                on_event(_preview(components, trainable, run, done))
            return trainable.figures() if done % REPORT == 0 or done == run.train.steps else {}

        optimise(
            losses,
            [optimizer],
            Pace(run.train.steps, run.train.seed, run.train.accumulate, report=REPORT),
            rate=lambda step, steps: min(1.0, (step + 1) / max(1, run.train.warmup)),
            after_step=after,
            checkpoint=_checkpoint(keep, keep_every, trainable, optimizer, begun_with) if keep else None,
            on_event=on_event,
            should_stop=should_stop,
        )
        concept = run.method.export(trainable)
    card = concept.card.model_copy(update={"recipe": run.recipe(), "base_fingerprint": components.fingerprint()})
    return replace(concept, card=card)


REPORT = 10  # steps between reports


def _encoded(components: Components, run: Run, examples: Sequence[Example]) -> LatentSet:
    size = int(components.unet.config["sample_size"]) * components.factor
    return LatentSet(
        components,
        examples,
        resolution=run.data.resolution or size,
        center_crop=run.data.center_crop,
        flip=run.data.flip,
        seed=run.train.seed,
    )


def _preview(components: Components, trainable: Trainable, run: Run, step: int) -> Preview:
    """A picture of the concept as it is now, on the base as any user would load it."""
    concept = run.method.export(trainable)
    # The word is attached already; the export is shown under a name of its own beside it.
    shown = replace(concept, card=concept.card.model_copy(update={"token": f"{concept.token}~preview"}))
    prompt = trainable.wordings[0].replace("{}", shown.token)
    request = Request(prompt=prompt, concepts=(ConceptUse(source="preview"),), steps=15, seed=run.train.seed)
    made = generate(trainable.components, request, concepts={"preview": shown})
    return Preview(step, made.pictures[0], prompt.replace("~preview", ""))


MAY_CHANGE = ("steps", "preview_every")  # what a resumed run may change


def _checkpoint(
    path: Path, every: int, trainable: Trainable, optimizer: torch.optim.Optimizer, begun_with: dict[str, Any]
) -> Checkpoint:
    def state() -> dict[str, Any]:
        tensors = {name: parameter.detach() for name, parameter in trainable.parameters.items()}
        return {"parameters": tensors, "optimizer": optimizer.state_dict(), "begun_with": json.dumps(begun_with)}

    def restore(kept: dict[str, Any]) -> None:
        before = json.loads(kept["begun_with"])
        changed = [key for key in begun_with if key not in MAY_CHANGE and begun_with[key] != before.get(key)]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"The run kept in {path} was begun with {key} {before.get(key)!r}, now it is {begun_with[key]!r}.",
                f"Go on with the old value, or delete {path} to begin anew.",
            )
        with torch.no_grad():
            for name, parameter in trainable.parameters.items():
                parameter.copy_(kept["parameters"][name])
        optimizer.load_state_dict(kept["optimizer"])

    return Checkpoint(path, every, state, restore)
