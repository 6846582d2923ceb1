"""The one place in `studio` that loads torch: carries out commands and jobs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from evaluation import concepts as scoring
from evaluation.truth import truth_from, truth_of
from pipelines import generation
from pipelines.concepts.concept import Concept
from pipelines.concepts.model_export import export_model
from pipelines.concepts.networks import networks
from pipelines.conditions.preview import Watch
from pipelines.errors import Cancelled, ConceptError, ConfigError, DataError, ModelError
from pipelines.events import Note, OnEvent
from pipelines.files import require_room
from pipelines.locks import sole_training
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.components import Components
from pipelines.models.loading import known_bases, load
from pipelines.models.memory.quantised import form_of
from pipelines.pictures.metadata import Dtype, Made, save_png
from pipelines.request.request import ConceptUse, Request
from pipelines.sampling import Result
from pipelines.words import file_stem
from studio.settings import DrawingMachine, Machine
from studio.work.progress import Progress
from trainers.data.batches import ordinary, prompt_templates
from trainers.data.folders import Reading
from trainers.data.preflight import duration, examine
from trainers.data.sound_pictures import sound_examples
from trainers.loop import memory
from trainers.loop.launch import narrowed, pausing, readings, train_and_save
from trainers.loop.train import probe, require_learnable
from trainers.methods.parts.identifiers import rare_identifiers
from trainers.methods.parts.merging import merged
from trainers.run import Run
from trainers.stickers.world import CLASS_WORDS, HELD_OUT


def _device(machine: Machine) -> tuple[str, torch.dtype]:
    name = machine.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"The device {machine.device!r} cannot be used: {str(error).splitlines()[0]}.", "Use --device auto or cpu."
        ) from None
    wanted = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    return name, wanted.get(machine.dtype, torch.float32 if kind == "cpu" else torch.bfloat16)


_DTYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def open_base(base: str, machine: Machine) -> Components:
    """Load a base model as the machine's settings say."""
    device, dtype = _device(machine)
    return load(
        base,
        device=device,
        dtype=dtype,
        attention=machine.attention,
        download=machine.download,
        base_config=machine.base_config,
        quantise=machine.quantise if isinstance(machine, DrawingMachine) else None,
        offload=machine.offload if isinstance(machine, DrawingMachine) else "none",
    )


def on_gpu(machine: Machine) -> bool:
    """Return whether the machine's settings mean a GPU."""
    return not _device(machine)[0].startswith("cpu")


# -- generating -------------------------------------------------------------------------------------------------


def write_pictures(
    request: Request,
    base: str,
    output: Path,
    machine: Machine,
    only: int | None = None,
    *,
    components: Components | None = None,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    watch: bool = True,
) -> list[Path]:
    """Generate and write the pictures; return their paths. `only` writes that one of them alone.

    `components` is the base if it is in memory already; events go to a progress line unless `on_event` is given, which
    then also receives previews, unless nobody is to `watch`.
    """
    for use in request.concepts:
        if not Path(use.source).exists():
            raise ConceptError(f"There is no concept file {use.source}.", "Check the path given with --concept.")
    require_room(output, 1 << 20)
    components = components or open_base(base, machine)
    fingerprint = components.fingerprint()
    result = generation.generate(
        components,
        request,
        conditions=(Watch(on_event),) if on_event is not None and watch else (),
        on_event=on_event or Progress("generate"),
        should_stop=should_stop,
    )
    return save_pictures(result, (base, fingerprint), components, output, machine, only)


def save_pictures(
    result: Result,
    base: tuple[str, str],
    components: Components,
    output: Path,
    machine: Machine,
    only: int | None = None,
) -> list[Path]:
    """Write the pictures of a result, or `only` that one, with all that they were made with; return their paths.

    `base` is its name and what its fingerprint was before.
    """
    cards = tuple(concept.card for concept in result.concepts)
    digests = tuple(concept.digest() for concept in result.concepts)
    files = networks(result.request.concepts, result.concepts)
    paths: list[Path] = []
    for index, picture in enumerate(result.pictures):
        if only in (None, index):
            made = Made(
                result.request,
                index,
                *base,
                cards,
                digests,
                machine.attention,
                _DTYPE_NAMES[components.dtype],
                files,
                quantise=form_of(components.denoiser),
            )
            paths.append(save_png(picture, free_path(output, f"{result.request.seed + index}"), made))
    return paths


def free_path(folder: Path, stem: str) -> Path:
    """Return a path in `folder` that no file has yet."""
    number = 0
    while (path := folder / f"{stem}{f'-{number}' if number else ''}.png").exists():
        number += 1
    return path


# -- training ---------------------------------------------------------------------------------------------------


def write_concepts(
    run: Run,
    machine: Machine,
    *,
    on_event: OnEvent | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Learn a concept, several in one run, or a part of a base, and write each; return their paths.

    Events go to a progress line unless `on_event` is given.

    Raises:
        ConfigError: if an output is there already.
        Cancelled: on Ctrl-C, a termination, or if `should_stop` says so, which is asked once a step; the same command
            goes on where it stopped.
    """
    outputs = run.require_free()
    run, reading, components = _ready(run, machine, strict=True)
    progress = on_event or Progress(run.method.name, previews=outputs[0])
    require_learnable(components, run)
    for line in _report(run, reading, components):
        progress(Note(line))
    try:
        with sole_training(outputs[0]), pausing() as asked:
            return train_and_save(
                components,
                run,
                reading.examples,
                on_event=progress,
                should_stop=lambda: asked() or should_stop(),
            )
    except KeyboardInterrupt:
        raise Cancelled(
            "Training was stopped.", "Run the same command again to go on from the last state kept."
        ) from None


def preflight(run: Run, machine: Machine) -> Iterator[str]:
    """Return the checks before training: pictures, their problems, memory and time."""
    yield from _preflight(*_ready(run, machine))


def _ready(run: Run, machine: Machine, strict: bool = False) -> tuple[Run, Reading, Components]:
    """Return the run with the base's recipe, the pictures, and the base; `strict` stops at doubtful pictures."""
    reading = readings(run)
    reading = reading.sound(run.data.skip_doubtful) if strict or not reading.examples else reading
    # The text encoder is trained through and stays float32; the frozen rest may be narrower, and is made so before
    # anything is moved to the device.
    device, _ = _device(machine)
    components = open_base(run.where.base, machine.to_learn().model_copy(update={"device": "cpu"}))
    run = run.with_recipe(components.family.name)
    return run, reading, narrowed(components, run).to(device)


def _preflight(run: Run, reading: Reading, components: Components) -> Iterator[str]:
    tried = probe(components, run, reading.examples)
    takes = memory.needed(
        components, run, tried.trained, memory.latents(components, run, len(reading.examples)), tried.kept
    )
    said = memory.sentences(takes, memory.room(components.device))
    yield from _report(run, reading, components, said, tried.seconds)
    yield from tried.notes


def _report(
    run: Run, reading: Reading, components: Components, said: Sequence[str] = (), seconds: float | None = None
) -> list[str]:
    """Return lines on the pictures, memory and time of a run; where the base will draw its pictures, on those."""
    if run.config.drawn_prompts and not reading.examples:
        long = [] if seconds is None else [f"About {duration(seconds * run.train.steps)} of training."]
        return [f"{run.config.pictures} pictures that the base draws.", *said, *long]
    return examine(
        reading,
        token=run.config.spoken,
        config=run.train,
        data=run.data.model_copy(update={"flip": 0.0}) if "flip" in run.config.unused else run.data,
        components=components,
        memory=said,
        seconds_per_step=seconds,
        new_word=run.config.new_word is not None,
        apart=run.config.batches_apart,
    ).lines()


def export(uses: Sequence[ConceptUse], output: Path, base: str, half: bool, machine: Machine) -> Path:
    """Write the base with concepts in it as a model folder; return the folder."""
    # Copies are made; a GPU would have to hold the model twice for a job that needs none.
    components = open_base(base, machine.to_learn().model_copy(update={"device": "cpu"}))
    return export_model(components, [(Concept.load(Path(use.source)), use.strength) for use in uses], output, half=half)


def merge(concepts: tuple[Path, ...], output: Path, base: str, machine: Machine) -> list[Path]:
    """Make Custom Diffusion concepts fit one base together; return the new files, to be used together."""
    components = open_base(base, machine.to_learn())
    learned = [Concept.load(path) for path in concepts]
    paths = [output / f"{file_stem(one.token)}.safetensors" for one in learned]
    if len(set(paths)) < len(paths):
        raise ConfigError("Two of the concepts have one word.", "Give one another: studio concepts rename NAME WORD.")
    if there := [path for path in paths if path.exists()]:
        raise ConfigError(f"{there[0]} is there already.", "Choose another --output.")
    joined = merged(
        components,
        learned,
        ordinary(components.family.world),
        prompt_templates("pocket" if components.family.world == "pocket" else "object"),
    )
    return [one.save(path) for one, path in zip(joined, paths, strict=True)]


def identifiers(class_word: str, count: int, base: str, machine: Machine) -> Iterator[str]:
    """Return lines with rare words to bind a subject to."""
    components = open_base(base, machine)
    for found in rare_identifiers(components, class_word, count):
        yield f"{found.word:<6} moves {class_word!r} by {found.pull:.4f}"


# -- scoring ----------------------------------------------------------------------------------------------------


def judge() -> Judge:
    """Return the judge of pocket."""
    return Judge.load(POCKET / "judge")


def score(concept: Path | None, thing: str | None, real: Path | None, base: str, form: str, machine: Machine) -> str:
    """Score one concept; return the text to show."""
    if concept is None:
        raise ConfigError("There is no concept to score.", "Give a concept file, or --all-held-out.")
    learned = Concept.load(concept)
    if real is not None:
        truth = truth_from([example.picture for example in sound_examples(real, Progress("score"))])
        truth = replace(truth, thing=thing if thing in CLASS_WORDS else None)
    elif thing in CLASS_WORDS:
        truth = truth_of(thing)
    else:
        why = f" ({thing!r} is no held-out sticker)" if thing else ""
        raise DataError(
            f"It is not said what {learned.token} should look like{why}.",
            f"Give --real FOLDER with pictures of it, or --thing with one of {', '.join(CLASS_WORDS)}.",
        )
    row = scoring.score_concept(open_base(base, machine), judge(), learned, truth)
    return json.dumps(row, indent=1) if form == "json" else scoring.table({learned.token: row})


def score_held_out(
    ways: tuple[str, ...], only: tuple[str, ...], form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Teach and score held-out stickers in one way; says each row as it comes, then the whole.

    By name also things drawn by other hands.
    """
    _require_held_out(only, tuple(CLASS_WORDS))
    _require_ways(ways, tuple(scoring.WAYS))
    if len(ways) > 1:
        raise ConfigError(f"{len(ways)} ways were given.", "Give one, or compare them with --all-ways.")
    way = ways[0] if ways else "textual-inversion"
    components, measured_by = open_base("pocket", machine), judge()
    rows: dict[str, dict[str, float]] = {}
    for name in only or HELD_OUT:
        _, rows[name] = scoring.teach_and_score(components, measured_by, name, way, on_event=Progress(name))
        if form == "table":
            say(scoring.table({name: rows[name]}))
    say(json.dumps({**rows, "mean": scoring.mean(rows)}, indent=1) if form == "json" else scoring.table(rows))


def score_ways(
    ways: tuple[str, ...], only: tuple[str, ...], form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Compare ways of teaching, all by default, on held-out stickers; says each row as it comes, then the whole."""
    _require_held_out(only)
    _require_ways(ways, (*scoring.WAYS, *scoring.TOGETHER))
    if len(only) == 1 and any(way in scoring.TOGETHER for way in ways):
        raise ConfigError("One sticker cannot be taught together.", "Give several with --only, or none for all.")
    components = open_base("pocket", machine)
    rows = scoring.compare(
        components,
        judge(),
        only or tuple(HELD_OUT),
        ways,
        on_event=Progress("teach"),
        say=say if form == "table" else lambda line: None,
    )
    say(json.dumps(rows, indent=1) if form == "json" else scoring.table(rows, with_mean=False))


def _require_ways(ways: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [way for way in ways if way not in known]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no way of teaching.", f"They are {', '.join(known)}.")


def _require_held_out(names: tuple[str, ...], known: tuple[str, ...] = tuple(HELD_OUT)) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no held-out sticker.", f"They are {', '.join(known)}.")


# -- doctor -----------------------------------------------------------------------------------------------------


def doctor(machine: Machine) -> Iterator[str]:
    """Return lines about versions, device, attention, memory and the embedded model."""
    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    for package in ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "gradio", "xformers"):
        try:
            # torch's own word says which build it is, +cpu or +cu130; its package metadata does not.
            yield f"{package} {torch.__version__ if package == 'torch' else importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} not installed"
    device, dtype = _device(machine)
    yield f"device {device}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info()
        yield f"{torch.cuda.get_device_name()}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    else:
        yield f"{psutil.virtual_memory().available / 2**30:.1f} GiB of memory free"
    yield f"base models of {known_bases()}"
    backends = ["sdpa", "eager"] + (["xformers"] if importlib.util.find_spec("xformers") else [])
    yield f"attention {', '.join(backends)} (in use: {machine.attention})"
    start = time.monotonic()
    try:
        components = open_base("pocket", machine)
        generation.generate(components, Request(prompt="a fox", steps=1))
        yield f"pocket loads and generates ({components.fingerprint()}, {time.monotonic() - start:.1f} s)"
    except ModelError as error:
        yield f"pocket does not load: {error}"
