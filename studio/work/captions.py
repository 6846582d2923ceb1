"""The writers of captions: the reading of stickers, or a model from a folder. Loads torch."""

from __future__ import annotations

from pathlib import Path

from evaluation.captions import StickerCaptioner
from pipelines.captions.vision import Captioner, vision_captioner
from studio.settings import Machine
from studio.work.runner import judge, on_gpu


def captioner(by: str, machine: Machine) -> Captioner:
    """Return the captioner that is named: pocket, or the folder of a model.

    Raises:
        ModelError: if the folder holds none.
    """
    if by == "pocket":
        return StickerCaptioner(judge())
    device = machine.device if machine.device != "auto" else "cuda" if on_gpu(machine) else "cpu"
    return vision_captioner(Path(by), device)
