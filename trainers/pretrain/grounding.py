"""Stage 5: the gated layers of the finished `pocket`, on composed pictures with their exact boxes."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.gligen.tokens import UNNAMED, load_adapter, phrase_embeddings
from pipelines.models.components import Components, encode, load
from pipelines.models.fingerprint import is_gated
from trainers.base_models.gligen import BoxedPictures, GroundingRun, gains, train_grounding
from trainers.losses import prompt_ids
from trainers.method_settings import GroundingConfig
from trainers.pretrain.card import TRAINING, device_name, note_training
from trainers.stickers.free_scenes import free_scenes
from trainers.stickers.world import NAMES, Scene, Stickers, article, scenes

ADAPTER = "grounding.safetensors"
POOL, HELD_OUT_POOL = 51, 52  # seeds of what is trained on, and of what losses are reported on


@torch.no_grad()
def composed(components: Components, listed: list[Scene], at_once: int = 512) -> BoxedPictures:
    """Scenes of trained names as pictures with boxes: composed, encoded, their captions read, on the base's device.

    A thing is told by its name, or by its name with an article; its box is what is seen of it.
    """
    device = components.device
    size = int(components.unet.config["sample_size"]) * components.factor
    stickers = Stickers(size, device, names=NAMES)
    latents: list[Tensor] = []
    boxes: list[Tensor] = []
    contexts: list[Tensor] = []
    for start in range(0, len(listed), at_once):
        part = listed[start : start + at_once]
        rendered = stickers.render(part)
        latents.append(encode(components, rendered.images).mean.half())
        boxes.append(rendered.boxes)
        ids = prompt_ids(components, 0, [item.caption for item in part])
        contexts.append(components.text_encoders[0](ids).last_hidden_state.half())
    context, box = torch.cat(contexts), torch.cat(boxes)
    numbers = {name: index for index, name in enumerate(NAMES)}
    things = torch.tensor([[*(numbers[one.name] for one in item.stickers), 0, 0][:3] for item in listed])
    empty = components.text_encoders[0](prompt_ids(components, 0, [""])).last_hidden_state
    return BoxedPictures(
        latents=torch.cat(latents),
        contexts=lambda which: context[which].float(),
        empty=empty,
        phrases=torch.stack(
            [phrase_embeddings(components, NAMES), phrase_embeddings(components, [article(name) for name in NAMES])]
        ),
        unnamed=phrase_embeddings(components, [UNNAMED["pocket"]])[0],
        things=things.to(device),
        boxes=box.float(),
        present=(box[..., 2] > box[..., 0]) & (box[..., 3] > box[..., 1]),
    )


def pool(count: int, seed: int) -> list[Scene]:
    """Scenes to learn places from: a third of all kinds, the rest thrown freely."""
    return [*scenes(count // 3, seed), *free_scenes(count - count // 3, seed + 1_000)]


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
