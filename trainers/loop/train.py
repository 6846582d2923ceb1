"""Training of a concept: a base, a method, examples in; a `Concept` out. One function for every method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.concepts.concept import Concept
from pipelines.errors import ConfigError, DataError
from pipelines.events import Note, OnEvent, ignore
from pipelines.files import require_room
from pipelines.models.components import Components
from trainers.data.batches import Batch, Example, LatentSet, digest
from trainers.data.class_images import CLASS_FOLDER, class_examples
from trainers.data.cut_mix import cut_mixed
from trainers.data.smaller_copies import with_smaller_copies
from trainers.distributed import ALONE, WHOLE, Part, Processes
from trainers.loop.checkpoints import KEPT, Checkpoint, require_same
from trainers.loop.ema import EMA
from trainers.loop.loop import Pace, optimise, warm_stable_decay
from trainers.loop.previews import REPORT, Offer, after_step
from trainers.method import Method, Trainable
from trainers.settings import DataConfig, SubjectConfig, TrainConfig


@dataclass(frozen=True)
class Run:
    """All settings of a training except the pictures themselves.

    Attributes:
        method: the method.
        config: the method's own settings.
        train: pace and optimiser.
        data: settings of reading pictures.
    """

    method: Method
    config: Any
    train: TrainConfig
    data: DataConfig

    def recipe(self) -> dict[str, Any]:
        """Return the resolved configuration for the concept's card, without the person's folder names."""
        data = self.data.model_dump(mode="json", exclude={"images", "cache"})
        own = self.config.model_dump(mode="json", exclude={"class_images", "also"})
        if isinstance(self.config, SubjectConfig) and self.config.also:
            own["also"] = [f"DIR:{subject.token}:{subject.class_word}" for subject in self.config.subjects[1:]]
        return {**own, **self.train.model_dump(mode="json"), **data}


def with_recipe(method: Method, family: str, run: Run) -> Run:
    """Return `run` with the method's recipe for a family wherever the person set nothing."""
    values = method.recipe(family, run.config)

    def filled(config: Any) -> Any:
        fields = type(config).model_fields
        unset = {key: value for key, value in values.items() if key in fields and key not in config.model_fields_set}
        return config.model_copy(update=unset)

    return replace(run, config=filled(run.config), train=filled(run.train), data=filled(run.data))


def train(
    components: Components,
    run: Run,
    examples: Sequence[Example],
    *,
    keep: Path | None = None,
    keep_every: int = 100,
    class_folder: Path = CLASS_FOLDER,
    processes: Processes = ALONE,
    offer: Offer | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Concept:
    """Learn a concept; other subjects learned with it are its `partners`.

    Args:
        components: the base, its text encoders in float32; bit-identical afterwards, also after an error.
        run: method and settings.
        examples: the pictures; with several subjects each has the word of its own.
        keep: folder for the training state; if there is one in it, training goes on from it.
        keep_every: steps between writes, more for a state that takes long to write.
        class_folder: folder of class pictures, for methods that use some.
        processes: those that train together, each with a batch of its own; they give the same concept.
        offer: receives the candidates that the run asks for, each with its steps; the last equals the result.
        on_event: receives steps with losses and figures, previews and notes.
        should_stop: asked once a step.

    Raises:
        Cancelled: if `should_stop` said so; what was kept can be resumed.
        ConfigError: if a loss stops being a number.
        ConceptError: if the word or its initializer do not suit the base.
    """
    # Parts put together in memory have no fingerprint yet, and with what is trained in them it would be another.
    components = replace(components, identity=components.fingerprint())
    told, offered = _telling(components, run, offer if processes.main else None)
    with ExitStack() as stack:
        trainable = stack.enter_context(run.method.prepare(components, run.config, _chance(run)))
        stack.enter_context(_checkpointed(components) if run.train.gradient_checkpointing else nullcontext())
        with processes.main_first():
            class_pictures = _class_pictures(components, run, trainable, class_folder, on_event, should_stop)
        examples = _of_subjects(components, run, examples, trainable)
        begun_with = _begun_with(components, run, [*examples, *class_pictures], processes)
        optimizer = _optimizer(run.train, trainable, processes)
        average = EMA(trainable.parameters, run.train.ema)
        draw = _batches(components, run, examples, class_pictures, trainable, on_event, processes.part)
        optimise(
            _losses(components, run, trainable, draw),
            [optimizer],
            Pace(run.train.steps, run.train.seed, run.train.accumulate, run.train.max_grad_norm, REPORT),
            rate=lambda step, of: warm_stable_decay(step, of, run.train.warmup, run.train.decay),
            after_step=after_step(run, trainable, examples, average, on_event if processes.main else None, offered),
            checkpoint=_checkpoint(keep, keep_every, run, trainable, optimizer, average, begun_with),
            processes=processes,
            scaler=_scaler(run, components),
            on_event=on_event if processes.main else ignore,
            should_stop=should_stop,
        )
        with average.shown():
            concept = run.method.export(trainable)
    return replace(told(concept), partners=tuple(map(told, concept.partners)))


def _chance(run: Run) -> torch.Generator:
    """Return the generator of initial values; steps have generators of their own."""
    return torch.Generator().manual_seed(run.train.seed * 7_907 + 13)


def _telling(
    components: Components, run: Run, offer: Offer | None
) -> tuple[Callable[[Concept], Concept], Offer | None]:
    """Return a function that adds the training settings to a concept's card, and an `offer` that uses it."""
    about = {"recipe": run.recipe(), "base_fingerprint": components.fingerprint()}

    def told(concept: Concept) -> Concept:
        return replace(concept, card=concept.card.model_copy(update=about))

    return told, None if offer is None else lambda step, concept: offer(step, told(concept))


def _losses(
    components: Components, run: Run, trainable: Trainable, draw: Callable[[int, torch.Generator], Batch]
) -> Callable[[int, torch.Generator], dict[str, torch.Tensor]]:
    """Return the loss terms of the batch of an index, in the precision of the run."""

    def losses(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        with _autocast(run, components):
            return run.method.losses(trainable, draw(index, generator), generator)

    return losses


def probe(components: Components, run: Run, examples: Sequence[Example]) -> tuple[int, float]:
    """Return the number of trained values of a run and the seconds of a step on this machine, by trying two.

    Args:
        components: the base; bit-identical afterwards.
        run: method and settings. A prior from pictures is timed as one from the model, which costs the same.
        examples: the pictures; no more than a batch of them is encoded.
    """
    if isinstance(run.config, SubjectConfig) and run.config.prior == "pictures":
        run = replace(run, config=run.config.model_copy(update={"prior": "model"}))
    components = replace(components, identity=components.fingerprint())
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        trainable = stack.enter_context(run.method.prepare(components, run.config, generator))
        stack.enter_context(_checkpointed(components) if run.train.gradient_checkpointing else nullcontext())
        draw = _batches(components, run, examples[: run.train.batch], (), trainable, ignore)
        began = 0.0
        for _ in range(2):  # the first also pays for what is set up once
            began = _now(components)
            torch.stack(list(run.method.losses(trainable, draw(0, generator), generator).values())).sum().backward()
        seconds = (_now(components) - began) * run.train.accumulate
        return sum(parameter.numel() for parameter in trainable.parameters.values()), seconds


def _now(components: Components) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if components.device.type == "cuda":
        torch.cuda.synchronize(components.device)
    return time.monotonic()


def _class_pictures(
    components: Components,
    run: Run,
    trainable: Trainable,
    folder: Path,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> list[Example]:
    """Return pictures of the class for a run that asks for some; generated by the base before training."""
    if not isinstance(run.config, SubjectConfig) or run.config.prior != "pictures":
        return []
    if run.data.buckets:
        raise ConfigError(
            "Class pictures are squares, pictures in buckets are not.", "Use --prior model, or leave --buckets out."
        )
    on_event(Note(f"{run.config.num_class_images} pictures of the class, for the prior"))
    made: dict[str, list[Example]] = {}
    classes = [subject.class_word for subject in run.config.subjects]
    for word in dict.fromkeys(classes):
        one = run.config.model_copy(update={"class_word": word})
        listed = class_examples(
            components, one, trainable.wordings, folder=folder, on_event=on_event, should_stop=should_stop
        )
        made[word] = [replace(example, word=word) for example in listed]
    # A class of two subjects is seen twice as often.
    return [replace(e, repeats=e.repeats * classes.count(word)) for word, listed in made.items() for e in listed]


def _of_subjects(
    components: Components, run: Run, examples: Sequence[Example], trainable: Trainable
) -> Sequence[Example]:
    """Return the examples of a run with several subjects, with composed ones among them if it asks for some.

    Raises:
        DataError: if a subject has no picture.
        ConfigError: if composed pictures would be mirrored.
    """
    if not isinstance(run.config, SubjectConfig) or not run.config.also:
        return examples
    examples = [replace(example, word=example.word or run.config.trigger) for example in examples]
    shown = {example.word for example in examples}
    if missing := [subject.trigger for subject in run.config.subjects if subject.trigger not in shown]:
        raise DataError(f"There is no picture of {missing[0]}.", "Give each subject some of its own.")
    if not run.config.cut_mix:
        return examples
    if run.data.flip:
        raise ConfigError(
            "Mirrored pictures would contradict captions that say left and right.", "Use --flip 0 with --cut-mix."
        )
    side = run.data.resolution or components.defaults.size
    generator = torch.Generator().manual_seed(run.train.seed * 6_151 + 29)
    return cut_mixed(
        examples, run.config, trainable.wordings, side=side, crop=run.data.center_crop, generator=generator
    )


def _batches(
    components: Components,
    run: Run,
    examples: Sequence[Example],
    class_pictures: Sequence[Example],
    trainable: Trainable,
    on_event: OnEvent,
    part: Part = WHOLE,
) -> Callable[[int, torch.Generator], Batch]:
    """Encode the pictures; return a function for the batch of an index, with as many class pictures if any."""
    size = components.defaults.size
    data, pace, trigger = run.data, run.train, run.config.trigger

    def encoded(pictures: Sequence[Example], flip: float) -> LatentSet:
        return LatentSet(
            components,
            pictures,
            resolution=data.resolution or size,
            center_crop=data.center_crop,
            flip=flip,
            seed=pace.seed,
            buckets=data.buckets,
            cache=data.cache,
        )

    trainable.examine(examples)
    if better := components.family.better_base(components):
        on_event(Note(f"Warning: {components.name} was distilled, which learning undoes; learn on {better}."))
    generator = torch.Generator().manual_seed(pace.seed * 7_457 + 31)
    own = encoded(with_smaller_copies(examples, data.smaller_copies, generator), data.flip)
    if left_out := own.unused_captions(trigger):
        names = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        on_event(Note(f"{len(left_out)} captions have no {trigger} or {{}} and are not used ({names})"))
    on_event(Note(f"{len(examples)} pictures encoded; {pace.steps} steps at rate {pace.rate:g}"))
    if not class_pictures:
        return lambda index, generator: own.draw(index, pace.batch, trigger, trainable.wordings, generator, part)
    prior, word = encoded(class_pictures, 0.0), run.config.class_word

    def both(index: int, generator: torch.Generator) -> Batch:
        batch = own.draw(index, pace.batch, trigger, trainable.wordings, generator, part)
        return replace(batch, prior=prior.draw(index, pace.batch, word, trainable.wordings, generator, part))

    return both


def _optimizer(pace: TrainConfig, trainable: Trainable, processes: Processes) -> torch.optim.Optimizer:
    """Return AdamW over the trained parameters, each group at its own rate."""
    rate = pace.rate * (processes.count if pace.scale_lr else 1)
    by_rate: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in trainable.parameters.items():
        by_rate.setdefault(trainable.rates.get(name, 1.0), []).append(parameter)
    groups = [{"params": parameters, "lr": rate * factor} for factor, parameters in by_rate.items()]
    if pace.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigError(
                "bitsandbytes is not installed, which keeps the optimizer in 8 bits.",
                "Install it (pip install bitsandbytes) on a machine with a GPU, or use --optimizer adamw.",
            ) from None
        return AdamW8bit(groups, rate, weight_decay=pace.weight_decay)
    fused = next(iter(trainable.parameters.values())).is_cuda
    return torch.optim.AdamW(groups, rate, weight_decay=pace.weight_decay, fused=fused or None)


def _autocast(run: Run, components: Components) -> AbstractContextManager[Any]:
    """Compute with float32 weights in the lower precision of the run where that is safe."""
    if run.train.precision == "no" or components.dtype != torch.float32:
        return nullcontext()
    return torch.autocast(components.device.type, torch.bfloat16 if run.train.precision == "bf16" else torch.float16)


def _scaler(run: Run, components: Components) -> torch.amp.GradScaler | None:
    """Return the gradient scaler of float16; None for other precisions."""
    return torch.amp.GradScaler(components.device.type) if run.train.precision == "fp16" else None


@contextmanager
def _checkpointed(components: Components) -> Iterator[None]:
    """Recompute activations of the denoiser in the backward pass inside the `with`."""
    components.denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        components.denoiser.disable_gradient_checkpointing()


def _begun_with(components: Components, run: Run, pictures: Sequence[Example], processes: Processes) -> dict[str, Any]:
    """Return the settings that a resumed run must share with the run it resumes."""
    about = {**run.recipe(), "base": components.fingerprint(), "pictures": digest(pictures)}
    return about if processes.count == 1 else {**about, "processes": processes.count}


MAY_CHANGE = ("steps", "preview_every", "candidates")  # what a resumed run may change


def _checkpoint(
    path: Path | None,
    every: int,
    run: Run,
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    average: EMA,
    begun_with: dict[str, Any],
) -> Checkpoint | None:
    """Return the checkpoint of a run, if it keeps one."""
    if path is None:
        return None
    # Numbers, two moments and perhaps an average, in the states kept and the one being written, and the concepts.
    concepts = len(run.config.subjects) if isinstance(run.config, SubjectConfig) else 1
    each = (KEPT + 1) * 4 * (4 if average.decay else 3) + 2 * concepts + 4 * run.train.candidates
    require_room(path.parent, each * sum(parameter.numel() for parameter in trainable.parameters.values()))

    def state() -> dict[str, Any]:
        tensors = {name: parameter.detach() for name, parameter in trainable.parameters.items()}
        return {
            "parameters": tensors,
            "optimizer": optimizer.state_dict(),
            "average": average.state(),
            "begun_with": json.dumps(begun_with),
        }

    def restore(kept: dict[str, Any]) -> None:
        require_same(json.loads(kept["begun_with"]), begun_with, path, MAY_CHANGE)
        with torch.no_grad():
            for name, parameter in trainable.parameters.items():
                parameter.copy_(kept["parameters"][name])
        optimizer.load_state_dict(kept["optimizer"])
        average.restore(kept["average"])

    return Checkpoint(path, every, state, restore)
