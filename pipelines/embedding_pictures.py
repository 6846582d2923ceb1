"""Embeddings that AUTOMATIC1111 keeps in the text of a PNG: JSON with the numbers in it, in base64."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipelines.errors import ConceptError

KEY = "sd-ti-embedding"
LIMIT = 16 << 20  # letters


def read_picture(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensor of the embedding in a picture, named as in a safetensors file, and what is said of it.

    Raises:
        ConceptError: if it is no picture, holds none, or what it holds is damaged.
    """
    try:
        with Image.open(path) as picture:
            text = picture.info.get(KEY)
    except Exception as error:  # a damaged picture raises anything at all
        raise ConceptError(f"{path.name} is no picture ({type(error).__name__}).", "Check the file.") from None
    if not isinstance(text, str) or len(text) > LIMIT:
        raise ConceptError(
            f"{path.name} is a picture without an embedding in its text.",
            "Give the file as it was written; sites that shrink pictures remove it.",
        )
    try:
        held: dict[str, Any] = json.loads(base64.b64decode(text, validate=True))
        ((own, entry),) = held["string_to_param"].items()
        rows = torch.tensor(entry["TORCHTENSOR"], dtype=torch.float32)
        named = held.get("name")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, RuntimeError) as error:
        what = type(error).__name__
        raise ConceptError(f"The embedding in {path.name} is damaged ({what}).", "Get it again.") from None
    word = named if isinstance(named, str) and named else own
    return {"emb_params": rows}, {} if word == "*" else {"modelspec.trigger_phrase": word}
