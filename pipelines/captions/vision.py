"""Captions by models of transformers that look at a picture and write: BLIP and Florence-2, from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from pipelines.errors import ModelError

LONGEST = 80
"""Tokens of a caption at most."""
TASK = "<MORE_DETAILED_CAPTION>"
"""Florence-2's word for captions that name everything; its shorter ones leave out backgrounds."""


class Captioner(Protocol):
    """Anything that writes a caption of a picture."""

    def __call__(self, picture: Image.Image) -> str:
        """Return one line.

        Raises:
            StudioError: if it can say nothing of this picture.
        """
        ...


def vision_captioner(folder: Path, device: str = "cpu") -> Captioner:
    """Return the captioner in a folder of the transformers layout.

    Args:
        folder: of a BLIP or a Florence-2 with its processor; nothing is downloaded and no code in it is run.
        device: where it works.

    Raises:
        ModelError: if there is none, or it is of another kind.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"There is no captioner in {folder}.", f"Give a folder of {_known()}.") from None
    if kind not in KINDS:
        raise ModelError(f"The model in {folder} is a {kind!s:.40}.", f"Give a folder of {_known()}.")
    try:
        return KINDS[kind](folder, device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"The captioner in {folder} cannot be read: {first}", "Get the folder anew.") from None


def _known() -> str:
    return "BLIP (model_type blip) or Florence-2 (florence2), with its processor"


def _blip(folder: Path, device: str) -> Captioner:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    processor: Any = BlipProcessor.from_pretrained(folder, local_files_only=True)
    model: Any = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = model.to(device).eval()

    @torch.no_grad()
    def caption(picture: Image.Image) -> str:
        inputs = processor(images=picture.convert("RGB"), return_tensors="pt").to(device)
        made = model.generate(**inputs, max_new_tokens=LONGEST, num_beams=3, do_sample=False)
        return _line(processor.decode(made[0], skip_special_tokens=True))

    return caption


def _florence2(folder: Path, device: str) -> Captioner:
    from transformers import Florence2ForConditionalGeneration, Florence2Processor

    processor: Any = Florence2Processor.from_pretrained(folder, local_files_only=True)
    model: Any = Florence2ForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    model = model.to(device).eval()

    @torch.no_grad()
    def caption(picture: Image.Image) -> str:
        inputs = processor(text=TASK, images=picture.convert("RGB"), return_tensors="pt").to(device)
        made = model.generate(**inputs, max_new_tokens=LONGEST, num_beams=3, do_sample=False)
        return _line(processor.batch_decode(made, skip_special_tokens=True)[0])

    return caption


def _line(text: str) -> str:
    """Return text on one line, without a full stop at its end."""
    return " ".join(text.split()).rstrip(". ")


KINDS: dict[str, Callable[[Path, str], Captioner]] = {"blip": _blip, "florence2": _florence2}
"""`model_type` of a folder's `config.json` -> what reads it."""
