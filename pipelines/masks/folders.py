"""Folders of models in the transformers layout: what is in one, and its weights, or a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from pipelines.errors import ModelError


def kind_of(folder: Path, what: str, known: str) -> str:
    """Return the `model_type` of a folder.

    Args:
        folder: of a model.
        what: is looked for, for errors.
        known: what may be given.

    Raises:
        ModelError: if the folder says none.
    """
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"There is no {what} in {folder}.", f"Give a folder of {known}.") from None


def model_in(folder: Path, name: str) -> Any:
    """Return a model in evaluation mode, in float32, without gradients.

    Args:
        folder: of its weights; nothing is downloaded and no code in it is run.
        name: of its class in transformers.

    Raises:
        ModelError: if weights are missing or cannot be read.
    """
    try:
        model, told = getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, dtype="float32", output_loading_info=True
        )
    except Exception as error:  # transformers raises whatever it meets
        raise unreadable(folder, error) from None
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"The weights in {folder} lack {len(missing)} of those of a {name}, {missing[0]} first.",
            "Get the folder anew, whole.",
        )
    return model.eval().requires_grad_(False)


def processor_in(folder: Path, name: str) -> Any:
    """Return a processor or tokenizer by its class in transformers; raises `ModelError` if it cannot be read."""
    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise unreadable(folder, error) from None


def unreadable(folder: Path, error: Exception) -> ModelError:
    """Return a sentence about a folder whose model cannot be read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return ModelError(f"The model in {folder} cannot be read: {first[:200]}", "Get the folder anew, or what it lacks.")
