"""A run from beginning to end, shared by the command lines: pictures and a base in, the file of what is learned out."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.concepts.concept import Concept
from pipelines.errors import ConfigError, NoSpace, StudioError
from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.generation import generate
from pipelines.models.components import Components
from pipelines.models.memory.quantised import quantise
from pipelines.request.request import ConceptUse, Request
from trainers.data.batches import prompt_templates
from trainers.data.folders import Example, Reading, read_folder
from trainers.distributed import ALONE, Processes
from trainers.loop.candidates import candidate, candidates_folder
from trainers.loop.checkpoints import LOG, states
from trainers.loop.previews import on_plain_ground
from trainers.loop.train import train
from trainers.method import Artifact
from trainers.run import Run, losses_of, over_of, state_of
from trainers.settings import TrainConfig, require_folder

PREVIEW_STEPS = 12
CANDIDATES = "candidates"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def readings(run: Run) -> Reading:
    """Read the pictures of a run; with several subjects those of all, each with its word; none if the base draws them.

    Settings of a method that learns from more than pictures have a function `read` for a folder of it.
    """
    if run.data.images is None and run.config.drawn_prompts:
        return Reading(())
    folders = run.config.folders(run.data.images)
    if any(word for _, word in folders):
        return joined([(read_folder(require_folder(folder)), word) for folder, word in folders])
    own = getattr(run.config, "read", None)
    return own(run.data.images) if own else read_folder(require_folder(folders[0][0]))


def joined(readings: Sequence[tuple[Reading, str]]) -> Reading:
    """Join several folders, each example with the word of its folder.

    Args:
        readings: contents of each folder, with the word for its thing in captions.
    """
    examples = tuple(
        replace(one, name=f"{word} {one.name}", word=word) for reading, word in readings for one in reading.examples
    )
    ignored = {f"{word} {path}": why for reading, word in readings for path, why in reading.ignored.items()}
    doubtful = {f"{word} {path}": why for reading, word in readings for path, why in reading.doubtful.items()}
    transparent = tuple(f"{word} {name}" for reading, word in readings for name in reading.transparent)
    conventions = dict.fromkeys(reading.convention for reading, _ in readings)
    return Reading(examples, ignored, f"{len(readings)} folders: {', '.join(conventions)}", doubtful, transparent)


def narrowed(components: Components, run: Run) -> Components:
    """Cast the frozen parts of the base to the precision of the run, and quantise them if it says so, in place.

    Networks whose weights themselves are trained stay float32, and are computed in that precision where it is safe
    (autocast); a text encoder that is trained, or trained through to a new word, stays float32 altogether, and so does
    all of a base that is written with the result. The autoencoder is never quantised.

    Returns:
        The base.

    Raises:
        ConfigError: if weights are to be trained themselves and quantised.
    """
    dtype, form = DTYPES.get(run.train.precision), run.train.quantise
    if form and run.config.trains_weights:
        raise ConfigError(
            f"Weights that are trained themselves cannot be kept in {form}.",
            "Train low-rank changes (dreambooth --form lora) or a word, or leave --quantise out.",
        )
    networks: list[torch.nn.Module] = [components.denoiser] if not run.config.trains_weights else []
    if not run.config.trains_text:
        networks += components.text_encoders
    for network in (components.vae, *networks) if dtype and not run.config.gives_folder else ():
        torch.nn.Module.to(network, dtype=dtype)
    if form:
        for network in networks:
            quantise(network, form)
    return components


def train_and_save(
    components: Components,
    run: Run,
    examples: Sequence[Example],
    *,
    on_event: OnEvent,
    should_stop: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
) -> list[Path]:
    """Train, write what is learned and the loss log, and remove the training state; return the paths of the result.

    What was interrupted goes on where it stopped. A picture of each concept is drawn beside it if the run says so.
    """
    outputs = run.outputs
    output = outputs[0]
    state, over = state_of(output), over_of(output)
    # They belong to the state until the run is over.
    kept = [state / (f"{CANDIDATES}-{number}" if number else CANDIDATES) for number in range(len(outputs))]

    def offer(step: int, one: Artifact) -> None:
        for folder, part in zip(kept, (one, *one.partners), strict=True):
            part.save(candidate(folder, step))

    if processes.main:
        shutil.rmtree(over, ignore_errors=True)
    learned = train(
        components,
        run,
        examples,
        keep=state,
        keep_every=run.where.keep_every,
        offer=offer,
        on_event=on_event,
        should_stop=should_stop,
        processes=processes,
    )
    if processes.main:
        # The run's own result last: once it is there, nothing is missing, wherever this process is killed.
        try:
            with whole_file(losses_of(output)) as log:
                shutil.copyfile(states(state)[0] / LOG, log)
        except NoSpace as error:  # the result is worth more than its log
            on_event(Note(f"Warning: {error}"))
        previews = run.where.preview and "preview" not in run.config.unused
        for path, one in zip(outputs, (learned, *learned.partners), strict=True):
            if previews and isinstance(one, Concept):
                _draw(components, one, path, on_event)
        for path, partner in zip(outputs[1:], learned.partners, strict=True):
            partner.save(path)
        for folder, path in zip(kept, outputs, strict=True):
            _bring_in(folder, path, run.train)
        learned.save(output)
        state.rename(over)
        shutil.rmtree(over, ignore_errors=True)
    processes.broadcast(None)  # nobody leaves before the file is there
    return outputs


def _bring_in(kept: Path, output: Path, pace: TrainConfig) -> None:
    """Move the candidates of a finished run beside its concept, replacing those of an earlier run."""
    place = candidates_folder(output)
    if kept.is_dir() or not pace.candidates:
        shutil.rmtree(place, ignore_errors=True)
    if not kept.is_dir():  # brought in already, before the process was killed; or none
        return
    for file in kept.glob("*.safetensors"):
        if int(file.stem) > pace.steps:  # of a longer run that this one cut short
            file.unlink()
    kept.rename(place)


def _draw(components: Components, concept: Concept, path: Path, on_event: OnEvent) -> None:
    """Draw a preview of the concept with a fixed seed and few steps; skip it if drawing fails."""
    card = concept.card
    templates = "pocket" if components.family.world == "pocket" else "style" if card.kind == "style" else "object"
    prompt = on_plain_ground(
        card.example or prompt_templates(templates)[0].replace("{}", concept.token), components.family.world
    )
    request = Request(prompt=prompt, steps=PREVIEW_STEPS, seed=0, concepts=(ConceptUse(source=concept.token),))
    try:
        made = generate(components, request, concepts={concept.token: concept})
        with whole_file(path.with_name(f"{path.stem}.preview.png")) as temporary:
            made.pictures[0].save(temporary, format="PNG")
    except (StudioError, RuntimeError, OSError) as error:
        first, _, _ = str(error).partition("\n")
        on_event(Note(f"no preview of {concept.token}: {first}"))


@contextmanager
def pausing() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C or a termination pause the training inside the `with`: it saves its state and stops; twice ends it.

    Gives the question whether it was asked. Outside the main thread there are no signals, and the answer is no.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
