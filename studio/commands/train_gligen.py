"""Training of gated layers, `studio train grounding`."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import Cancelled
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base
from trainers.base_models.gligen_data import learn_grounding
from trainers.loop.launch import pausing
from trainers.method_settings import GroundingConfig, GroundingDestination


def train_layers(where: GroundingDestination, config: GroundingConfig, machine: Machine) -> Path:
    """Train and write the layers; return their file.

    Raises:
        Cancelled: on Ctrl-C or a termination; the same command goes on where it stopped.
    """
    components = open_base(where.base, machine.to_learn())
    try:
        with pausing() as asked:
            return learn_grounding(components, where, config, on_event=Progress("grounding"), should_stop=asked)
    except KeyboardInterrupt:
        raise Cancelled(
            "Training was stopped.", "Run the same command again to go on from the last state kept."
        ) from None
