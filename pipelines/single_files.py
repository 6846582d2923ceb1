"""Bases in one file: checkpoints of Stable Diffusion 1.x, 2.x and XL in the layout of their first implementation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.components import Components, from_pipeline
from pipelines.errors import ModelError

_NEEDED = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler",
    "tokenizer",
)
_UNREACHABLE = ("offline", "HF_HUB", "Connection", "resolve", "connect", "huggingface", "outgoing traffic", "cached")


def from_single_file(path: Path, download: bool, config: Path | None = None) -> Components:
    """Read a checkpoint.

    Args:
        path: of the file.
        download: whether the configuration of its family may be fetched from the hub.
        config: a folder in the diffusers layout with that configuration and the tokenizer, instead.

    Raises:
        ModelError: if it cannot be read, or its configuration is not at hand.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path.name} is no .safetensors file; other checkpoints are pickles, which can run code.",
            "Convert it to safetensors, or get it in that form.",
        )
    if config is not None and (missing := [name for name in _NEEDED if not (config / name).exists()]):
        raise ModelError(
            f"The folder {config} lacks {', '.join(missing)}.",
            "Give --base-config a folder in the diffusers layout of the checkpoint's family; weights are not needed.",
        )
    told: dict[str, Any] = {} if config is None else {"config": str(config)}
    try:
        with safe_open(path, "pt") as stored:
            names = list(stored.keys())
        if not any(name.startswith("model.diffusion_model.") for name in names):
            raise ValueError(f"none of its {len(names)} tensors is of a UNet (model.diffusion_model.…).")
        xl = any(name.startswith("conditioner.embedders.1") for name in names)
        kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
        local = config is not None or not download
        pipeline = kind.from_single_file(str(path), torch_dtype=torch.float32, local_files_only=local, **told)
    except Exception as error:  # the converter raises whatever it meets
        said = str(error).strip().splitlines()
        first = said[0] if said else type(error).__name__
        if config is None and any(word in str(error) for word in _UNREACHABLE):
            raise ModelError(
                f"The configuration and tokenizer of the family of {path.name} are not on this machine.",
                "Repeat with --download, or give --base-config a folder in the diffusers layout of that family.",
            ) from None
        raise ModelError(
            f"{path.name} cannot be read as a Stable Diffusion checkpoint: {first}",
            "Get it again, or give a diffusers folder.",
        ) from None
    return replace(from_pipeline(pipeline, path.name), name=str(path))
