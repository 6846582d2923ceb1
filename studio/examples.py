"""Pairs of a folder: the example for a visual prompt is chosen from them, or a word learned for what they show."""

from __future__ import annotations

from pathlib import Path

from pipelines.clip import Clip
from pipelines.components import POCKET
from pipelines.concept import file_stem
from pipelines.errors import ConfigError
from pipelines.incontext import cells_of, judges_eye, nearest, open_opaque, pairs_in
from pipelines.inpainting_unet import inpainting_components
from pipelines.judge import Judge
from pipelines.request import LARGEST_GRID
from studio.progress import Progress
from studio.runner import open_base
from studio.settings import Machine
from trainers.task_words import learn_word


def nearest_pairs(folder: Path, query: Path, count: int, clip: Path | None) -> list[tuple[str, str]]:
    """Before and after of the pairs of a folder whose picture before is most like the query, the nearest last.

    Raises:
        ConfigError: if more are wanted than a grid takes.
        DataError: if the folder holds no pairs, or a picture cannot be read.
        ModelError: if there is no such CLIP.
    """
    if not 1 <= count <= LARGEST_GRID:
        raise ConfigError(f"--nearest {count} is out of range.", f"A grid takes 1 to {LARGEST_GRID} examples.")
    pairs = pairs_in(folder)
    embed = judges_eye(Judge.load(POCKET / "judge")) if clip is None else Clip.load(clip).pictures
    return [(pair.before, pair.after) for pair in nearest(open_opaque(query), pairs, embed, count)]


def learn_task(
    folder: Path, token: str, how: tuple[str, int, int, int], base: str, output: Path | None, machine: Machine
) -> Path:
    """Learn a word for what the pairs of a folder show; gives the path of the concept.

    Args:
        folder: of pairs.
        token: the new word.
        how: the word it starts from, steps, grids a step, seed.
        base: name of the base.
        output: the concept file.
        machine: where and how to compute.

    Raises:
        ConfigError: if the output is there already, or a number is out of range.
        DataError: if there are fewer than two pairs, or a picture cannot be read.
        ModelError: if the base has no inpainting UNet.
        ConceptError: if the word or its initializer will not do.
    """
    init, steps, batch, seed = how
    if min(steps, batch) < 1 or seed < 0:
        raise ConfigError(f"--steps {steps}, --batch {batch}, --seed {seed}: out of range.", "Use at least 1, 1 and 0.")
    path = output or Path("outputs/concepts") / f"{file_stem(token)}.safetensors"
    if path.exists():
        raise ConfigError(f"{path} is there already.", "Choose another --output, or delete it.")
    pairs = pairs_in(folder)
    components = inpainting_components(open_base(base, machine))
    cells = cells_of(pairs, components.defaults.size)
    concept = learn_word(
        components, cells, token, init=init, steps=steps, batch=batch, seed=seed, on_event=Progress("task-word")
    )
    return concept.save(path)
