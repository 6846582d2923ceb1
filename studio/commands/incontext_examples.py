"""Pairs of a folder, as examples of a visual prompt or for learning a word."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import ConfigError, DataError
from pipelines.events import Note, OnEvent
from pipelines.incontext import ExamplePair, cells_of, judges_eye, nearest, open_opaque, pairs_in
from pipelines.locks import sole_training
from pipelines.measures.clip import Clip
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.inpainting_unet import inpainting_components
from pipelines.pictures.files import open_picture
from pipelines.request.request import LARGEST_GRID
from pipelines.words import file_stem
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base
from trainers.loop.launch import pausing
from trainers.method_settings import TaskWordConfig
from trainers.methods.task_word import learn_word
from trainers.run import forget_state, state_of


def nearest_pairs(folder: Path, query: Path, count: int, clip: Path | None) -> list[tuple[str, str]]:
    """Return before and after of the pairs of a folder whose picture before is most like the query, nearest last.

    Raises:
        ConfigError: if more are wanted than a grid takes.
        DataError: if the folder holds no pairs that can be read.
        ModelError: if there is no such CLIP.
    """
    if not 1 <= count <= LARGEST_GRID:
        raise ConfigError(f"--nearest {count} is out of range.", f"A grid takes 1 to {LARGEST_GRID} examples.")
    pairs = _readable(folder, Progress("incontext"))
    embed = judges_eye(Judge.load(POCKET / "judge")) if clip is None else Clip.load(clip).pictures
    return [(pair.before, pair.after) for pair in nearest(open_opaque(query), pairs, embed, count)]


def learn_task(folder: Path, config: TaskWordConfig, base: str, output: Path | None, machine: Machine) -> Path:
    """Learn a word for what the pairs of a folder show; return the path of the concept.

    Raises:
        ConfigError: if the output is there already, or a state beside it is of another training.
        Cancelled: on Ctrl-C or a termination; the same command goes on where it stopped.
        DataError: if there are fewer than two pairs that can be read.
        ModelError: if the base has no inpainting UNet.
        ConceptError: if the word or its initializer will not do.
    """
    path = output or Path("outputs/concepts") / f"{file_stem(config.token)}.safetensors"
    if path.exists():
        raise ConfigError(f"{path} is there already.", "Choose another --output, or delete it.")
    pairs = _readable(folder, Progress("task-word"))
    components = inpainting_components(open_base(base, machine))
    cells = cells_of(pairs, components.defaults.size)
    with sole_training(path), pausing() as asked:
        concept = learn_word(
            components, cells, config, keep=state_of(path), on_event=Progress("task-word"), should_stop=asked
        )
        concept.save(path)
    forget_state(path)
    return path


def _readable(folder: Path, on_event: OnEvent) -> list[ExamplePair]:
    """Return the pairs of a folder of which both pictures can be read; the others are noted.

    Raises:
        DataError: as `pairs_in`, or if there is none.
    """
    kept: list[ExamplePair] = []
    why = ""
    for pair in pairs_in(folder):
        try:
            for path in (pair.before, pair.after):
                open_picture(Path(path))
        except DataError as error:
            why = str(error)
            on_event(Note(f"The pair {Path(pair.before).stem} is left out: {why}"))
        else:
            kept.append(pair)
    if not kept:
        raise DataError(f"No pair in {folder} can be read. {why}", "Put that right, or give another folder.")
    return kept
