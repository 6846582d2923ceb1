"""Folders of PEFT: `adapter_config.json` with rank and alpha, `adapter_model.safetensors` with one network's tensors.

They name layers as the network itself does, behind `base_model.model.`; which network it is the names tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipelines.concepts.card import read_header
from pipelines.concepts.formats.delta_tensors import LORA_METADATA, lora_metadata, stored
from pipelines.concepts.lora_keys import in_unet
from pipelines.concepts.weight_deltas import PARTS, Change
from pipelines.errors import ConceptError

CONFIG, MODEL = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
CONFIG_LIMIT = 1 << 20  # bytes
_SAID = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
_TEXT = ("text_model.", "encoder.layers.", "text_projection")


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, or one for each network in folders of their names."""
    return folder.is_dir() and bool(_places(folder))


def _places(folder: Path) -> dict[str, Path]:
    """The folders with adapters; by the network's name, or by none where the names of layers have to tell."""
    if (folder / CONFIG).is_file():
        return {"": folder}
    return {part: folder / part for part in PARTS if (folder / part / CONFIG).is_file()}


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a folder named as diffusers names them, and what its files say of them.

    Raises:
        ConceptError: if it is damaged, or no LoRA of a UNet or text encoder.
    """
    tensors: dict[str, Tensor] = {}
    lora: dict[str, Any] = {}
    said: dict[str, str] = {}
    for part, place in _places(folder).items():
        config, (own, header) = _config(place), _tensors(place)
        part = part or _part_of(own)
        tensors |= {f"{part}.{name}": tensor for name, tensor in own.items()}
        lora |= {f"{part}.{key}": config[key] for key in _SAID if key in config}
        said |= header
    return tensors, {**said, LORA_METADATA: json.dumps(lora)}


def _part_of(names: Iterable[str]) -> str:
    """The network whose layers have these names."""
    listed = list(names)
    if all(name.startswith(_TEXT) for name in listed):
        return "text_encoder"
    return "unet" if any(in_unet(name) for name in listed) else "transformer"


def _config(place: Path) -> dict[str, Any]:
    """The configuration beside an adapter."""
    path = place / CONFIG
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise ValueError("too long")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConceptError(f"{path} cannot be read ({type(error).__name__}).", "Get the folder again.") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ConceptError(f"{path} tells of the kind {kind!r:.40}.", "Only adapters of the kind LORA are read.")
    if config.get("fan_in_fan_out") or config.get("modules_to_save"):
        raise ConceptError(f"{path} tells of more than low-rank layers.", "Only these are read.")
    return config


def _tensors(place: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors beside a configuration by the names of their layers, and what the header says."""
    path = place / MODEL
    if not path.is_file() and (place / "adapter_model.bin").is_file():
        raise ConceptError(f"{place} keeps its tensors as a pickle, which can run code.", f"Ask for {MODEL}.")
    said: dict[str, str] = read_header(path).get("__metadata__", {})
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConceptError(f"{path} cannot be read: {error}.", "Get it again.") from None
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, said


def adapters(
    changes: Mapping[str, Change], base: str, said: Mapping[str, str]
) -> dict[str, tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]]:
    """Return configuration, tensors and header for each network that low-rank changes change.

    Args:
        changes: all low-rank.
        base: name of the base model.
        said: for the header.
    """
    tensors, lora = stored(changes), lora_metadata(changes)
    written: dict[str, tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]] = {}
    for part in PARTS:
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
        if not own:
            continue
        named = {PREFIX + name.removeprefix(f"{part}."): tensor for name, tensor in own.items()}
        known = {key.removeprefix(f"{part}."): value for key, value in lora.items() if key.startswith(f"{part}.")}
        config = {"peft_type": "LORA", "bias": "none", "base_model_name_or_path": base, **known}
        written[part] = (config, named, dict(said))
    return written
