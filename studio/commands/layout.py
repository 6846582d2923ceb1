"""Sources of boxes besides `--box`: the prompt, or a file; and pictures with their boxes drawn. Without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.errors import RequestError
from pipelines.files import whole_file
from pipelines.pictures.metadata import read_made
from pipelines.request.box_files import Form, draw_boxes, read_boxes, write_boxes
from pipelines.request.request import Box, Frozen
from studio.commands.layout_llm import Planning, planner_of


class Placing(Frozen):
    """Boxes of a picture."""

    layout: bool = False
    """Plan boxes for the things of the prompt: left of, right of, above, below, next to, between, and, numbers."""

    boxes_from: str | None = None
    """File of boxes: .bbox, COCO or pixels .json (FILE.json:PICTURE.png for one of several), YOLO .txt."""

    draw_boxes: bool = False
    """Also write each picture with its boxes drawn over it, as NAME.boxes.png."""


def boxes_of(source: str) -> tuple[Box, ...]:
    """Return the boxes of a file; of a file about several pictures, those of the picture behind a colon."""
    if Path(source).exists():
        return read_boxes(Path(source))
    path, colon, picture = source.rpartition(":")
    return read_boxes(Path(path), picture) if colon and Path(path).exists() else read_boxes(Path(source))


def placed(wishes: dict[str, Any], placing: Placing, planning: Planning) -> dict[str, Any]:
    """Return the request with the boxes that `placing` adds.

    Raises:
        RequestError: if boxes come from two places, or there is no prompt to plan from.
    """
    ways = [name for name, given in (("--box", "boxes" in wishes), ("--layout", placing.layout)) if given]
    ways += ["--boxes-from"] if placing.boxes_from else []
    if len(ways) > 1:
        raise RequestError(f"Boxes come from {' and '.join(ways)}.", "Use one of them.")
    if placing.boxes_from:
        boxes = boxes_of(placing.boxes_from)
    elif placing.layout:
        if not wishes.get("prompt"):
            raise RequestError("There is no prompt to plan boxes from.", "Give one beside --layout.")
        boxes = planner_of(planning)(wishes["prompt"])
    else:
        return wishes
    return wishes | {"boxes": [box.model_dump() for box in boxes]}


def drawn(path: Path) -> Path:
    """Write a picture made here with its boxes drawn over it, beside it."""
    with Image.open(path) as picture:
        over = draw_boxes(picture, read_made(path).request.boxes)
    beside = path.with_suffix(".boxes.png")
    with whole_file(beside) as temporary:
        over.save(temporary, format="PNG")
    return beside


def layout(
    sentence: str | None, source: str | None, output: Path | None, form: Form, size: tuple[int, int], planning: Planning
) -> list[str]:
    """Return boxes of a sentence or a file as lines for `--box`, and write them to `output` if it is given.

    Raises:
        RequestError: if there is neither or both, or the boxes cannot be.
    """
    if (sentence is None) == (source is None):
        raise RequestError(
            "Give a sentence, or --source FILE.", 'For example: studio layout "two foxes left of a house"'
        )
    boxes = boxes_of(source) if source is not None else planner_of(planning)(sentence or "")
    if min(size) < 1:
        raise RequestError(f"A picture of {size[0]} x {size[1]} pixels cannot be.", "Give --size WIDTH HEIGHT.")
    if output is not None:
        return [str(write_boxes(boxes, output, form, size))]
    return [f"{box.phrase}:{','.join(f'{edge:g}' for edge in box.box)}" for box in boxes]
