"""Trainings of parts of a base: gated layers (`studio train grounding`) and 9-channel UNets."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import Cancelled
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base
from trainers.base_models.gligen_data import learn_grounding
from trainers.base_models.inpainting_data import (
    digest_of_pairs,
    model_folder,
    pair_source,
    picture_source,
    read_tasks,
    teach_unet,
)
from trainers.base_models.settings import InContextConfig, InpaintingConfig, ModelDestination
from trainers.data.batches import digest
from trainers.data.folders import read_examples
from trainers.loop.launch import pausing
from trainers.method_settings import GroundingConfig, GroundingDestination


def train_inpainting(config: InpaintingConfig | InContextConfig, where: ModelDestination, machine: Machine) -> Path:
    """Read the pictures or pairs, train, and write the new model; return its folder.

    Raises:
        DataError: if there is nothing to learn from, or a pair is of two sizes.
        Cancelled: on Ctrl-C or a termination; the same command goes on where it stopped.
    """
    model_folder(where)  # refused before anything takes time
    if isinstance(config, InpaintingConfig):
        examples, tasks = read_examples(config.images, config.skip_doubtful), {}
    else:
        examples, tasks = [], read_tasks(config.pairs, skip=config.skip_doubtful)
    components = open_base(where.base, machine.model_copy(update={"dtype": "float32"}))
    if isinstance(config, InpaintingConfig):
        source, data = picture_source(components, examples, config), digest(examples)
    else:
        source, data = pair_source(components, tasks, config), digest_of_pairs(tasks)
    try:
        with pausing() as asked:
            title = "inpainting" if isinstance(config, InpaintingConfig) else "incontext"
            return teach_unet(components, source, config, where, data, on_event=Progress(title), should_stop=asked)
    except KeyboardInterrupt:
        raise Cancelled(
            "Training was stopped.", "Run the same command again to go on from the last state kept."
        ) from None


def train_layers(where: GroundingDestination, config: GroundingConfig, machine: Machine) -> Path:
    """Train and write the layers; return their file.

    Raises:
        Cancelled: on Ctrl-C or a termination; the same command goes on where it stopped.
    """
    components = open_base(where.base, machine.model_copy(update={"dtype": "float32"}))
    try:
        with pausing() as asked:
            return learn_grounding(components, where, config, on_event=Progress("grounding"), should_stop=asked)
    except KeyboardInterrupt:
        raise Cancelled(
            "Training was stopped.", "Run the same command again to go on from the last state kept."
        ) from None
