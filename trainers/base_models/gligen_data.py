"""Pictures with boxes for gated layers: read from folders, and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipelines.errors import DataError
from pipelines.gligen.tokens import UNNAMED, phrase_embeddings
from pipelines.models.components import Components
from trainers.base_models.gligen import BoxedPictures
from trainers.data.folders import Example, Reading, read_folder
from trainers.data.latents import Encoder, fitted
from trainers.data.stored import Composed
from trainers.data.training_boxes import COCO, TrainingBoxes, yolo_tree
from trainers.losses import Captions


def mirrored(example: Example) -> Example:
    """Return a picture and its boxes mirrored left to right."""
    boxes = [one.model_copy(update={"box": (1 - one.box[2], one.box[1], 1 - one.box[0], one.box[3])})
             for one in example.boxes]  # fmt: skip
    source = Composed(example.size, partial(_turned, example))
    return replace(example, source=source, mask_source=None, boxes=tuple(boxes))


def _turned(example: Example) -> Image.Image:
    return ImageOps.mirror(example.picture)


def caption_of(example: Example) -> str:
    """Return the caption of a picture; for one without, the things in its boxes."""
    return (example.captions or (", ".join(box.phrase for box in example.boxes),))[0]


def read_boxed(folder: Path) -> Reading:
    """Return the pictures of a folder with their boxes (`fox.bbox` for `fox.png`), or those of `annotations.json`.

    Of a YOLO data set (`yolo_tree`) the pictures in all folders of `images/` are read with their label files. Pictures
    without boxes are shown without. What `TrainingBoxes` changed is noted.

    Raises:
        DataError: as `read_folder`, or if no picture has a box.
        RequestError: for a box that cannot be read, naming the file and the box.
    """
    pictures, labels = yolo_tree(folder) or (folder, None)
    boxes = TrainingBoxes(pictures, labels)
    reading = read_folder(pictures, deep=labels is not None)
    examples = tuple(replace(one, boxes=boxes.of(one.name)) for one in reading.examples)
    if examples and not any(one.boxes for one in examples):
        raise DataError(
            f"No picture in {folder} has a box.",
            f'Put one.bbox beside one.png, with lines as {{"label": "fox", "bbox": [0.1, 0.2, 0.5, 0.6]}}, or {COCO}, '
            "or name the folder of a YOLO data set, with images/, labels/ and data.yaml.",
        )
    return replace(reading, examples=examples, notes=tuple(boxes.notes()))


@torch.no_grad()
def encoded(components: Components, listed: Sequence[Example], side: int) -> BoxedPictures:
    """Encode pictures with boxes for gated layers; squeezed to squares of `side` pixels, so boxes stay true."""
    device = components.device
    encoder = Encoder(components)
    latents = [encoder([fitted(one.picture, (side, side), crop=False)]).mean for one in listed]
    names = list(dict.fromkeys(box.phrase for one in listed for box in one.boxes))
    places = max(len(one.boxes) for one in listed)
    things = torch.zeros(len(listed), places, dtype=torch.int64)
    boxes, present = torch.zeros(len(listed), places, 4), torch.zeros(len(listed), places, dtype=torch.bool)
    for row, one in enumerate(listed):
        for place, box in enumerate(one.boxes):
            things[row, place] = names.index(box.phrase)
            boxes[row, place] = torch.tensor(box.box)
            present[row, place] = True
    captions = [caption_of(one) for one in listed]
    read = Captions(components, frozen=True)

    def contexts(which: Tensor) -> Tensor:
        said = [captions[index] for index in which.tolist()]
        return read(said, torch.zeros(len(said), 2), (side, side))["encoder_hidden_states"]

    return BoxedPictures(
        torch.cat(latents),
        contexts,
        read([""], torch.zeros(1, 2), (side, side))["encoder_hidden_states"],
        phrase_embeddings(components, names)[None].to(device),
        phrase_embeddings(components, [UNNAMED.get(components.family.world, "a thing")])[0].to(device),
        things.to(device),
        boxes.to(device),
        present.to(device),
    )
