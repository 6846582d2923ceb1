"""Stage 5: the gated layers of the finished `pocket`, on composed pictures with their exact boxes."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.gligen.layers import GatedLayers
from pipelines.gligen.tokens import load_adapter
from pipelines.models.components import Components
from pipelines.models.fingerprint import is_gated
from pipelines.models.loading import load
from trainers.base_models.gligen import BoxedPictures, gains
from trainers.base_models.gligen_scenes import composed, pool
from trainers.base_models.grounding import GroundingConfig, GroundingTraining
from trainers.data.folders import Example
from trainers.loop.checkpoints import read, states
from trainers.loop.previews import REPORT
from trainers.loop.train import train
from trainers.method import Trainable
from trainers.pretrain.card import TRAINING, device_name, note_training
from trainers.run import run_of
from trainers.settings import DataConfig

ADAPTER = "grounding.safetensors"
POOL, HELD_OUT_POOL = 51, 52  # seeds of what is trained on, and of what losses are reported on


def grounding_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Train the gated layers of the model in `out` into `work/grounding.safetensors`, or put those into the model."""
    if arguments.pack:
        pack_grounding(Path(arguments.work) / ADAPTER, Path(arguments.out))
        on_event(Note(f"{arguments.out} has the layers of {Path(arguments.work) / ADAPTER}"))
        return
    began = time.monotonic()
    device, work = str(arguments.device), Path(arguments.work)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    components = load(arguments.out, device=device)
    on_event(Note(f"composing and encoding {arguments.pictures} pictures"))
    pictures = composed(components, pool(arguments.pictures, POOL))
    held_out = composed(components, pool(256, HELD_OUT_POOL))
    spent = (time.monotonic() - began) / 60
    on_event(Note(f"{arguments.pictures} pictures in {60 * spent:.0f} s"))
    left = {} if arguments.minutes is None else {"minutes": max(0.01, arguments.minutes - spent)}
    anew: dict[str, Any] = {"learning_rate": 2e-3, "gate": 0.46, "places_first": 0.6}
    shared = {"optimizer": "muon", "weight_decay": 0.0, "ema": 0.995, "learning_rate": 1e-3}
    pace = {"steps": arguments.grounding_steps, "batch": arguments.batch, **left}
    given = shared | pace | ({} if arguments.grounding_goes_on else anew)
    run = run_of(ComposedGrounding(pictures, held_out, arguments.keep_every), given).with_recipe("pocket")
    state = work / "grounding.state"
    layers = train(components, run, (), keep=state, keep_every=arguments.keep_every, on_event=on_event)
    done = int(read(states(state)[0])[0]["step"])
    facts = {"device": device_name(device), "steps": done, "batch": arguments.batch, "pictures": arguments.pictures}
    minutes = f"{(time.monotonic() - began) / 60:.1f}"
    assert isinstance(layers, GatedLayers)
    told_of = {**{name: str(value) for name, value in facts.items()}, "minutes": minutes}
    dataclasses.replace(layers, about={**layers.about, **told_of}).save(work / ADAPTER)
    with layers.attach(components) as gated:
        figures = gains(gated.unet, gated.scheduler_config, held_out)
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    on_event(Note(f"{done} steps; losses on unseen pictures: {told}; layers in {work / ADAPTER}"))


class ComposedGrounding(GroundingTraining):
    """Gated layers for boxes, from pictures that are encoded already.

    Args:
        pictures: training data.
        held_out: pictures that losses with and without boxes are reported on; None for no report.
        every: steps between these reports.
    """

    def __init__(self, pictures: BoxedPictures, held_out: BoxedPictures | None = None, every: int = 1) -> None:
        self.pictures, self.held_out, self.every = pictures, held_out, every

    @contextmanager
    def prepare(
        self, components: Components, config: GroundingConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Open the gated layers inside the `with`, on these pictures."""
        reports = itertools.count(1)

        with super().prepare(components, config, generator) as trainable:

            def figures() -> dict[str, float]:
                if self.held_out is None or next(reports) * REPORT % max(REPORT, self.every):
                    return {}
                return gains(trainable.components.unet, components.scheduler_config, self.held_out)

            yield dataclasses.replace(trainable, figures=figures)

    def examine(self, examples: Sequence[Example]) -> None:
        """Take the pictures that are there."""

    def encoded(self, components: Components, examples: Sequence[Example], data: DataConfig) -> BoxedPictures:
        """Return these pictures."""
        return self.pictures


def pack_grounding(adapter: Path, out: Path) -> None:
    """Put trained gated layers into the UNet of a model in the diffusers layout; all else stays bit for bit.

    Args:
        adapter: as `grounding_stage` writes it.
        out: the model's folder.

    Raises:
        ModelError: if the layers were trained on other weights, or are not those of this UNet.
    """
    layers, about = load_adapter(adapter)
    if about.get("fingerprint") != load(out).fingerprint():
        raise ModelError(f"{adapter} was trained on another base than {out}.", "Train it again on this one.")
    path = out / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    if {name for name in tensors if is_gated(name)} != set(layers):
        raise ModelError(f"{adapter} holds other layers than {path}.", "Train it again on this base.")
    with whole_file(path) as temporary:
        save_file({**tensors, **layers}, temporary, metadata={"format": "pt"})
    facts = json.loads((out / TRAINING).read_text(encoding="utf-8"))
    told = {key: about[key] for key in ("device", "steps", "batch", "minutes", "pictures")}
    earlier = facts.get("grounding") or facts.get("earlier", {}).get("grounding")
    note_training(out, {**facts, "grounding": told | ({"earlier": earlier} if earlier else {})})
