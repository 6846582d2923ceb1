"""Training: a base, a method, examples in; what is learned out. One function for every method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines.errors import ConfigError
from pipelines.events import Note, OnEvent, ignore
from pipelines.files import require_room
from pipelines.models.components import Components
from pipelines.models.memory.offloading import leaving
from pipelines.words import file_stem
from trainers.data.batches import Batch, Example, LatentSet, digest
from trainers.data.class_images import CLASS_FOLDER, drawn_examples
from trainers.data.smaller_copies import copied
from trainers.distributed import ALONE, WHOLE, BatchShare, Processes
from trainers.loop.checkpoints import KEPT, Checkpoint, require_same
from trainers.loop.clock import Clock, until
from trainers.loop.ema import EMA
from trainers.loop.loop import optimise
from trainers.loop.memory import Kept, Saved
from trainers.loop.optimizers import at_the_result, optimizers_of
from trainers.loop.previews import REPORT, Offer, after_step
from trainers.loop.schedule import Schedule
from trainers.method import Artifact, Draw, Trainable
from trainers.run import Run
from trainers.settings import TrainConfig


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
) -> Artifact:
    """Learn from pictures; subjects learned together are `partners` of the first.

    Args:
        components: the base, its text encoders in float32; bit-identical afterwards, also after an error.
        run: method and settings.
        examples: the pictures; with several subjects each has the word of its own. Of none, the base draws them.
        keep: folder for the training state; if there is one in it, it goes on from it.
        keep_every: steps between writes.
        class_folder: folder of class pictures and of those the base draws to learn on, for methods that use some.
        processes: those that train together, each with a batch of its own; they give the same result.
        offer: receives the candidates that the run asks for, each with its steps; the last equals the result.
        on_event: receives steps with losses and figures, previews and notes.
        should_stop: asked once a step.

    Raises:
        Cancelled: if `should_stop` said so; what was kept can be resumed.
        ConfigError: if a loss stops being a number, or several processes are to learn several words.
    """
    components = replace(components, identity=components.fingerprint())  # with what is trained it would be another
    examples = examples or _drawn(components, run, class_folder, processes, on_event, should_stop)
    (told, given), schedule = _telling(components, run, offer if processes.main else None), _schedule(run.train)
    clock = Clock(schedule.minutes)
    with _prepared(components, run, processes) as trainable:
        with processes.main_first():
            class_pictures = _class_pictures(run, trainable, class_folder, on_event, should_stop)
        trainable.examine(examples := trainable.completed(examples, run.data, run.train.seed))
        begun_with = _begun_with(components, run, [*examples, *class_pictures], processes)
        optimizers = optimizers_of(run.train, trainable, processes)
        average, tell = EMA(trainable.parameters, run.train.ema), on_event if processes.main else ignore
        draw = _batches(components, run, examples, class_pictures, trainable, on_event, clock, processes.part)
        shown = partial(_shown, optimizers, average)
        after = after_step(run, trainable, examples, average, tell, given, shown)
        with until(clock):
            optimise(
                _losses(components, run, trainable, draw),
                optimizers,
                schedule,
                rate=schedule.factor(clock),
                after_step=lambda done: clock.count(done) or after(done),
                checkpoint=_checkpoint(keep, keep_every, run, trainable, optimizers, average, clock, begun_with),
                processes=processes,
                scaler=_scaler(run, components),
                on_event=tell,
                should_stop=lambda: (clock.over and clock.steps > 0) or should_stop(),  # something is always learned
            )
        with shown():
            return told(run.method.export(trainable))


def _require_one_process(run: Run, processes: Processes) -> None:
    """Refuse several processes where each word has batches of its own, which all of them would draw alike."""
    if processes.count > 1 and run.config.batches_apart:
        raise ConfigError(
            f"{processes.count} processes would each learn the same batches of several words.",
            "Use one process with --many, or learn the words one after another.",
        )


def _schedule(train: TrainConfig) -> Schedule:
    """Return the schedule that the settings ask for."""
    return Schedule(
        train.steps,
        train.minutes,
        train.rate,
        train.warmup,
        train.decay,
        train.seed,
        train.accumulate,
        train.max_grad_norm,
        REPORT,
    )


@contextmanager
def _prepared(components: Components, run: Run, processes: Processes) -> Iterator[Trainable]:
    """Make the base ready for a run inside the `with`.

    Raises:
        ConfigError: if several processes are to learn several words.
    """
    _require_one_process(run, processes)
    with run.method.prepare(components, run.config, _generator(run)) as trainable, _sparing(components, run, trainable):
        yield trainable


@contextmanager
def _sparing(components: Components, run: Run, trainable: Trainable) -> Iterator[None]:
    """Keep from the device's memory, inside the `with`, what has done its work, and activations if the run says so.

    Where pictures and captions are encoded before the first steps, networks that no gradient goes through have done it.
    """
    done = [components.vae, *(() if run.config.trains_text else components.text_encoders)]
    with ExitStack() as stack:
        if run.train.gradient_checkpointing:
            stack.enter_context(_checkpointed(trainable))
        if run.config.encodes_once and components.device.type != "cpu":
            stack.enter_context(leaving(components, done))
        yield


@contextmanager
def _shown(optimizers: Sequence[torch.optim.Optimizer], average: EMA) -> Iterator[None]:
    """Put the result into the parameters inside the `with`: where the optimisers have it, or the average."""
    with ExitStack() as stack:
        for one in optimizers:
            stack.enter_context(at_the_result(one))
        stack.enter_context(average.shown())
        yield


def require_learnable(components: Components, run: Run) -> None:
    """Refuse words and settings that do not suit a base, before its pictures are told of or encoded.

    Raises:
        ConceptError: if the word or its initializer do not suit it.
    """
    with run.method.prepare(replace(components, identity=components.fingerprint()), run.config, _generator(run)):
        pass


def _generator(run: Run) -> torch.Generator:
    """Return the generator of initial values; steps have generators of their own."""
    return torch.Generator().manual_seed(run.train.seed * 7_907 + 13)


def _telling(
    components: Components, run: Run, offer: Offer | None
) -> tuple[Callable[[Artifact], Artifact], Offer | None]:
    """Return a function that adds the training settings to what is learned, and an `offer` that uses it."""
    recipe, fingerprint = run.recipe(), components.fingerprint()

    def told(learned: Artifact) -> Artifact:
        return learned.described(recipe, fingerprint)

    return told, None if offer is None else lambda step, learned: offer(step, told(learned))


def _losses(
    components: Components, run: Run, trainable: Trainable, draw: Draw
) -> Callable[[int, torch.Generator], dict[str, torch.Tensor]]:
    """Return the loss terms of the batch of an index, in the precision of the run."""

    def losses(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        with _autocast(run, components):
            return run.method.losses(trainable, draw(index, generator), generator)

    return losses


@dataclass(frozen=True)
class Probe:
    """The size and pace of a run, found by trying.

    Attributes:
        trained: number of trained values.
        seconds: of a step on this machine.
        notes: lines of the method on what is to be known before it starts.
        kept: bytes of activations.
    """

    trained: int
    seconds: float
    notes: tuple[str, ...]
    kept: Kept


def probe(components: Components, run: Run, examples: Sequence[Example]) -> Probe:
    """Try some steps of a run, for its time and its memory.

    Args:
        components: the base; bit-identical afterwards.
        run: method and settings. Class pictures are not made; the pictures themselves are timed in their place.
        examples: the pictures; no more than a batch of them is encoded. Of none, grey ones are timed.
    """
    components = replace(components, identity=components.fingerprint())
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        trainable = stack.enter_context(run.method.prepare(components, run.config, generator))
        side = components.defaults.size
        grey = [Example("grey", Image.new("RGB", (side, side), "gray"))] if run.config.drawn_prompts else []
        trainable.examine(examples or grey)
        shown = trainable.sample(examples, run.train.batch) if examples else grey
        draw = _batches(
            components, run, shown, shown if trainable.class_pictures else (), trainable, ignore, Clock(None)
        )
        weights = [one for module in components.modules() for one in module.parameters()]

        def step(checkpointing: bool) -> tuple[float, int]:
            began = _now(components)
            with _checkpointed(trainable) if checkpointing else nullcontext():
                with Saved([*weights, *trainable.parameters.values()]) as saved, _autocast(run, components):
                    terms = run.method.losses(trainable, draw(0, generator), generator)
                torch.stack(list(terms.values())).sum().backward()
            return _now(components) - began, saved.bytes

        asked = run.train.gradient_checkpointing
        # The first also pays for what is set up once, and is the other kind.
        (_, other), (seconds, own) = step(not asked), step(asked)
        trained = sum(parameter.numel() for parameter in trainable.parameters.values())
        kept = Kept(*((other, own) if asked else (own, other)), precision=run.train.precision)
        return Probe(trained, seconds * run.train.accumulate, tuple(trainable.notes), kept)


def _now(components: Components) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if components.device.type == "cuda":
        torch.cuda.synchronize(components.device)
    return time.monotonic()


def _drawn(
    components: Components, run: Run, folder: Path, processes: Processes, on_event: OnEvent, stop: Callable[[], bool]
) -> list[Example]:
    """Return pictures that the base draws for a method that can learn without given ones; none for others."""
    prompts, place = run.config.drawn_prompts, folder / file_stem(run.config.trigger)
    if not prompts:
        return []
    on_event(Note(f"{run.config.pictures} pictures that the base draws to learn on"))
    with processes.main_first():
        return drawn_examples(components, prompts, run.config.pictures, place, on_event=on_event, should_stop=stop)


def _class_pictures(
    run: Run, trainable: Trainable, folder: Path, on_event: OnEvent, should_stop: Callable[[], bool]
) -> list[Example]:
    """Return pictures of the class for a method that asks for some; generated by the base before training."""
    if trainable.class_pictures is None:
        return []
    if run.data.buckets:
        raise ConfigError(
            "Class pictures and those of a slider's other end are squares, pictures in buckets are not.",
            "Leave --buckets out; in the place of class pictures --prior model does as well.",
        )
    return trainable.class_pictures(folder, on_event, should_stop)


def _batches(
    components: Components,
    run: Run,
    examples: Sequence[Example],
    class_pictures: Sequence[Example],
    trainable: Trainable,
    on_event: OnEvent,
    clock: Clock,
    part: BatchShare = WHOLE,
) -> Draw:
    """Encode pictures that were examined; return a function for the batch of an index, with class pictures if any."""
    data, pace, trigger = run.data, run.train, run.config.spoken
    for note in trainable.notes:
        on_event(Note(note))
    if better := components.family.better_base(components):
        on_event(Note(f"Warning: {components.name} was distilled, which learning undoes; learn on {better}."))
    if trainable.batches is not None:
        on_event(Note(f"{len(examples)} pictures; {pace.steps} steps at rate {pace.rate:g}"))
        return trainable.batches(examples, pace, data, lambda: clock.share(clock.steps, pace.steps))
    own = LatentSet.of(components, copied(examples, data, pace.seed), data, pace.seed)
    if left_out := own.unused_captions(trigger):
        names = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        on_event(Note(f"{len(left_out)} captions have no {trigger} or {{}} and are not used ({names})"))
    on_event(Note(f"{len(examples)} pictures encoded; {pace.steps} steps at rate {pace.rate:g}"))
    if not class_pictures:
        return lambda index, generator: own.draw(index, pace.batch, trigger, trainable.templates, generator, part)
    # Each class picture has the word of its class.
    prior = LatentSet.of(components, class_pictures, data, pace.seed, flip=0.0)
    word = class_pictures[0].word or trigger

    def both(index: int, generator: torch.Generator) -> Batch:
        batch = own.draw(index, pace.batch, trigger, trainable.templates, generator, part)
        return replace(batch, prior=prior.draw(index, pace.batch, word, trainable.templates, generator, part))

    return both


def _autocast(run: Run, components: Components) -> AbstractContextManager[Any]:
    """Compute with float32 weights in the lower precision of the run where that is safe."""
    if run.train.precision == "no" or components.dtype != torch.float32:
        return nullcontext()
    return torch.autocast(components.device.type, torch.bfloat16 if run.train.precision == "bf16" else torch.float16)


def _scaler(run: Run, components: Components) -> torch.amp.GradScaler | None:
    """Return the gradient scaler of float16; None for other precisions."""
    return torch.amp.GradScaler(components.device.type) if run.train.precision == "fp16" else None


@contextmanager
def _checkpointed(trainable: Trainable) -> Iterator[None]:
    """Recompute activations of the denoiser in the backward pass inside the `with`."""
    denoiser = trainable.components.denoiser
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


def _begun_with(components: Components, run: Run, pictures: Sequence[Example], processes: Processes) -> dict[str, Any]:
    """Return the settings that a resumed run must share with the run it resumes."""
    about = {**run.recipe(), "base": components.fingerprint(), "pictures": digest(pictures)}
    return about if processes.count == 1 else {**about, "processes": processes.count}


MAY_CHANGE = ("steps", "minutes", "preview_every", "candidates")  # what a resumed run may change


def _checkpoint(
    path: Path | None,
    every: int,
    run: Run,
    trainable: Trainable,
    optimizers: list[torch.optim.Optimizer],
    average: EMA,
    clock: Clock,
    begun_with: dict[str, Any],
) -> Checkpoint | None:
    """Return the checkpoint of a run, if it keeps one."""
    if path is None:
        return None
    # Numbers, two moments and perhaps an average, in the states kept and the one being written, and the concepts.
    copies = len(run.config.triggers) * (2 + 4 * run.train.candidates)
    each = (KEPT + 1) * 4 * (4 if average.decay else 3) + copies
    require_room(path.parent, each * sum(parameter.numel() for parameter in trainable.parameters.values()))

    def state() -> dict[str, Any]:
        tensors = {name: parameter.detach() for name, parameter in trainable.parameters.items()}
        return {
            "parameters": tensors,
            "stopped": [name for name, parameter in trainable.parameters.items() if not parameter.requires_grad],
            "optimizers": [one.state_dict() for one in optimizers],
            "seconds": clock.seconds,
            "done": clock.steps,
            "average": average.state(),
            "begun_with": json.dumps(begun_with),
        }

    def restore(kept: dict[str, Any]) -> None:
        require_same(json.loads(kept["begun_with"]), begun_with, path, MAY_CHANGE)
        with torch.no_grad():
            for name, parameter in trainable.parameters.items():
                parameter.copy_(kept["parameters"][name])
                parameter.requires_grad_(name not in kept.get("stopped", ()))
        for one, old in zip(optimizers, kept["optimizers"], strict=True):
            one.load_state_dict(old)
        average.restore(kept["average"])
        clock.resume(float(kept["seconds"]))
        clock.count(int(kept["done"]))

    return Checkpoint(path, every, state, restore)
