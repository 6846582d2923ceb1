"""The writers of captions: the reading of stickers, or a model from a folder. Loads torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from evaluation.captions.stickers import StickerCaptioner
from pipelines.captions.vision import Captioner, vision_captioner
from pipelines.captions.wording import Wording
from pipelines.errors import Cancelled, DataError, Unknown
from pipelines.events import Note, OnEvent, StepDone
from studio.library.datasets import Datasets
from studio.settings import Machine
from studio.work.runner import judge, on_gpu
from trainers.data.caption_files import caption_line


def captioner(by: str, machine: Machine) -> Captioner:
    """Return the captioner that is named: pocket, or the folder of a model.

    Raises:
        ModelError: if the folder holds none.
    """
    if by == "pocket":
        return StickerCaptioner(judge())
    device = machine.device if machine.device != "auto" else "cuda" if on_gpu(machine) else "cpu"
    return vision_captioner(Path(by), device)


def write_captions(
    datasets: Datasets,
    dataset: str,
    wording: Wording,
    captioner: Captioner,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> None:
    """Write captions of the pictures of a dataset that have none; those that cannot be told are noted.

    Args:
        datasets: of the server.
        dataset: id of the pictures.
        wording: of the captions.
        captioner: looks at a picture.
        on_event: receives a step for each picture, and notes.
        should_stop: asked before each picture; nothing is written then.

    Raises:
        Unknown: if there are no such pictures.
        Cancelled: if it should stop.
    """
    asked = [one.name for one in datasets.entries(dataset) if not one.caption]
    answers: dict[str, str] = {}
    for number, name in enumerate(asked, 1):
        if should_stop():
            raise Cancelled(f"stopped before picture {number} of {len(asked)}.")
        try:
            with Image.open(datasets.picture(dataset, name)) as picture:
                answers[name] = captioner(picture.convert("RGB"))
        except (DataError, Unknown) as error:  # removed meanwhile, or none that it knows
            on_event(Note(f"{name} is left without: {error.message}"))
        on_event(StepDone(number, len(asked)))
    worded = wording.among(tuple(answers.values()))
    for name, answer in answers.items():
        try:
            if not datasets.entry(dataset, name).caption:  # else one was typed meanwhile
                datasets.set_caption(dataset, name, caption_line(answer, worded))
        except (DataError, Unknown) as error:
            on_event(Note(f"{name} is left without: {error.message}"))
