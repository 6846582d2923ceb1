"""Stage 5: the gated layers of the finished `pocket`, on composed pictures with their exact boxes."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.gligen.tokens import load_adapter
from pipelines.models.fingerprint import is_gated
from pipelines.models.loading import load
from trainers.base_models.gligen import GroundingRun, gains, train_grounding
from trainers.base_models.gligen_scenes import composed, pool
from trainers.method_settings import GroundingConfig
from trainers.pretrain.card import TRAINING, device_name, note_training

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
    run = GroundingRun(
        steps=arguments.grounding_steps,
        adapter=work / ADAPTER,
        keep=work / "grounding.state",
        about={
            "base": "pocket",
            "fingerprint": components.fingerprint(),
            "pictures": str(arguments.pictures),
            "device": device_name(device),
            "batch": str(arguments.batch),
        },
        minutes=None if arguments.minutes is None else max(0.0, arguments.minutes - spent),
        keep_every=arguments.keep_every,
    )
    anew: dict[str, Any] = {"muon": True, "rate": 2e-3, "gate": 0.46, "places_first": 0.6, "ema": 0.995}
    further: dict[str, Any] = {"muon": True, "rate": 1e-3, "ema": 0.995}
    config = GroundingConfig(batch=arguments.batch, **(further if arguments.grounding_goes_on else anew))
    done = train_grounding(
        components.unet, components.scheduler_config, pictures, config, run, held_out=held_out, on_event=on_event
    )
    figures = gains(components.unet, components.scheduler_config, held_out)
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    on_event(Note(f"{done} steps; losses on unseen pictures: {told}; layers in {work / ADAPTER}"))


def pack_grounding(adapter: Path, out: Path) -> None:
    """Put trained gated layers into the UNet of a model in the diffusers layout; all else stays bit for bit.

    Args:
        adapter: as `train_grounding` writes it.
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
