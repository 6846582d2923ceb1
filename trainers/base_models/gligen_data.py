"""Gated layers for any base, from a folder of pictures with boxes: read, encode, train, write."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor

from pipelines.errors import ConfigError, DataError, ModelError
from pipelines.events import Note, OnEvent, ignore
from pipelines.files import require_room
from pipelines.gligen.tokens import gated_parameters, phrase_embeddings
from pipelines.models.components import Components
from pipelines.request.request import Box
from trainers.base_models.gligen import BoxedPictures, GroundingRun, train_grounding, with_gates
from trainers.base_models.gligen_scenes import composed, pool
from trainers.data.batches import digest
from trainers.data.folders import Example, read_folder
from trainers.data.latents import Encoder, fitted
from trainers.data.training_boxes import COCO, TrainingBoxes, yolo_tree
from trainers.losses import Captions
from trainers.method_settings import GroundingConfig, GroundingDestination

POOL = 61  # seed of composed pictures


@dataclass(frozen=True)
class Boxed:
    """A picture with its boxes."""

    example: Example
    boxes: tuple[Box, ...]

    def mirrored(self) -> Boxed:
        """Return the picture and its boxes mirrored left to right."""
        picture = ImageOps.mirror(self.example.picture)
        boxes = [one.model_copy(update={"box": (1 - one.box[2], one.box[1], 1 - one.box[0], one.box[3])})
                 for one in self.boxes]  # fmt: skip
        return Boxed(replace(self.example, source=picture, mask_source=None), tuple(boxes))


def read_boxed(folder: Path, skip: bool | None = None, on_event: OnEvent = ignore) -> list[Boxed]:
    """Return the pictures of a folder with their boxes (`fox.bbox` for `fox.png`), or those of `annotations.json`.

    Of a YOLO data set (`yolo_tree`) the pictures in all folders of `images/` are read with their label files. Pictures
    without boxes are shown without. What `TrainingBoxes` changed is noted.

    Args:
        folder: folder to read.
        skip: whether pictures that are doubtful are to be left out; see `Reading.sound`.
        on_event: receives notes.

    Raises:
        DataError: as `read_folder`, or if no picture has a box.
        RequestError: for a box that cannot be read, naming the file and the box.
    """
    pictures, labels = yolo_tree(folder) or (folder, None)
    boxes = TrainingBoxes(pictures, labels)
    reading = read_folder(pictures, deep=labels is not None).sound(skip)
    listed = [Boxed(one, boxes.of(one.name)) for one in reading.examples]
    if not any(one.boxes for one in listed):
        raise DataError(
            f"No picture in {folder} has a box.",
            f'Put one.bbox beside one.png, with lines as {{"label": "fox", "bbox": [0.1, 0.2, 0.5, 0.6]}}, or {COCO}, '
            "or name the folder of a YOLO data set, with images/, labels/ and data.yaml.",
        )
    for said in boxes.notes():
        on_event(Note(said))
    return listed


@torch.no_grad()
def encoded(components: Components, listed: Sequence[Boxed], side: int) -> BoxedPictures:
    """Encode pictures with boxes for gated layers; squeezed to squares of `side` pixels, so boxes stay true."""
    device = components.device
    encoder = Encoder(components)
    latents = [encoder([fitted(one.example.picture, (side, side), crop=False)]).mean for one in listed]
    names = list(dict.fromkeys(box.phrase for one in listed for box in one.boxes))
    places = max(len(one.boxes) for one in listed)
    things = torch.zeros(len(listed), places, dtype=torch.int64)
    boxes, present = torch.zeros(len(listed), places, 4), torch.zeros(len(listed), places, dtype=torch.bool)
    for row, one in enumerate(listed):
        for place, box in enumerate(one.boxes):
            things[row, place] = names.index(box.phrase)
            boxes[row, place] = torch.tensor(box.box)
            present[row, place] = True
    # The caption of a picture without one lists the things in its boxes.
    captions = [(one.example.captions or (", ".join(box.phrase for box in one.boxes),))[0] for one in listed]
    read = Captions(components, frozen=True)

    def contexts(which: Tensor) -> Tensor:
        said = [captions[index] for index in which.tolist()]
        return read(said, torch.zeros(len(said), 2), (side, side))["encoder_hidden_states"]

    return BoxedPictures(
        torch.cat(latents),
        contexts,
        read([""], torch.zeros(1, 2), (side, side))["encoder_hidden_states"],
        phrase_embeddings(components, names)[None].to(device),
        phrase_embeddings(components, ["a thing"])[0].to(device),
        things.to(device),
        boxes.to(device),
        present.to(device),
    )


def learn_grounding(
    components: Components,
    where: GroundingDestination,
    config: GroundingConfig,
    *,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train gated layers on a base and write them to a file; return its path. Interrupted runs are resumed.

    Args:
        components: the base, float32; its own weights stay what they are.
        where: data, duration and output.
        config: settings.
        on_event: receives steps and notes.
        should_stop: asked once a step.

    Raises:
        ConfigError: if the file is there already, there is nothing or too much to learn from, or no room on the disk.
        DataError: if the pictures or their boxes cannot be read.
        ModelError: for a base whose text cannot be read by such layers.
        Cancelled: if `should_stop` said so; the same command goes on.
    """
    state = where.output.with_name(f".{where.output.stem}.state")
    _check(components, where, state)
    # Gated layers are the same base to what was learned on it; what is trained must not change its name.
    components = replace(components, identity=components.fingerprint(), denoiser=with_gates(components.unet))
    weights = sum(value.numel() for _, value in gated_parameters(components.unet))
    require_room(where.output.parent, 2 * weights + 3 * 16 * weights)  # the file; two states and the one being written
    side = where.resolution or components.defaults.size
    pictures, mark = _pictures(components, where, side, on_event)
    boxes = int(pictures.present.sum())
    on_event(Note(f"{len(pictures.latents)} pictures, {boxes} boxes, {weights:,} numbers to learn"))
    train_grounding(
        components.unet,
        components.scheduler_config,
        pictures,
        config,
        GroundingRun(
            where.steps,
            where.output,
            state,
            {"base": components.name, "fingerprint": components.fingerprint(), "pictures": mark, "side": str(side)},
            where.minutes,
            where.keep_every,
            report=10,
        ),
        on_event=on_event,
        should_stop=should_stop,
    )
    shutil.rmtree(state, ignore_errors=True)
    return where.output


def _check(components: Components, where: GroundingDestination, state: Path) -> None:
    """Refuse settings that cannot be carried out, before any work is done."""
    if where.output.suffix != ".safetensors":
        raise ConfigError(f"{where.output} is no .safetensors file.", "Give --output a name that ends so.")
    # A file beside a state is that of a checkpoint: the run goes on.
    if where.output.exists() and not (where.overwrite or state.exists()):
        raise ConfigError(f"{where.output} is there already.", "Choose another --output, or replace it: --overwrite.")
    if (where.images is None) == (where.composed == 0):
        raise ConfigError("One source of pictures is needed.", "Give --images FOLDER or --composed COUNT.")
    if where.composed and components.family.world != "pocket":
        raise ConfigError("Pictures are composed for pocket.", f"Give --images FOLDER for {components.name}.")
    if components.text_encoders[0].config.hidden_size != components.unet.config["cross_attention_dim"]:
        raise ModelError(
            f"The layers read phrases as {components.name} does not encode them.", "Use Stable Diffusion 1.x or 2.x."
        )


def _pictures(
    components: Components, where: GroundingDestination, side: int, on_event: OnEvent
) -> tuple[BoxedPictures, str]:
    """Return the training pictures, and a digest that identifies them."""
    if where.images is None:
        return composed(components, pool(where.composed, POOL)), f"composed {where.composed}"
    listed = read_boxed(where.images, where.skip_doubtful, on_event)
    listed += [one.mirrored() for one in listed] if where.mirror else []
    return encoded(components, listed, side), _mark(listed)


def _mark(listed: Sequence[Boxed]) -> str:
    """Return a digest that identifies these pictures with their boxes."""
    boxes = "\n".join(box.model_dump_json() for one in listed for box in one.boxes)
    return f"{digest([one.example for one in listed])} {hashlib.sha256(boxes.encode()).hexdigest()[:16]}"
