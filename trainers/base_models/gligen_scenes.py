"""Composed pictures with exact boxes, for the training of gated layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipelines.errors import ConfigError
from pipelines.gligen.tokens import UNNAMED, phrase_embeddings
from pipelines.models.components import Components, encode
from pipelines.models.families.clip import caption_ids
from pipelines.pictures.tensors import to_pictures
from pipelines.request.request import Box
from trainers.base_models.gligen import BoxedPictures
from trainers.data.folders import Example, Reading
from trainers.stickers.free_scenes import free_scenes
from trainers.stickers.world import NAMES, Scene, Stickers, article, scenes

POOL = 61  # seed of composed pictures
AT_ONCE = 512  # pictures that are composed together


@torch.no_grad()
def composed(components: Components, listed: list[Scene], at_once: int = AT_ONCE) -> BoxedPictures:
    """Return scenes of trained names as pictures with boxes, composed and encoded, on the base's device.

    The phrase of a thing is its name, or its name with an article; its box is around its visible part.
    """
    device = components.device
    size = components.defaults.size
    stickers = Stickers(size, device, names=NAMES)
    latents: list[Tensor] = []
    boxes: list[Tensor] = []
    contexts: list[Tensor] = []
    for start in range(0, len(listed), at_once):
        part = listed[start : start + at_once]
        rendered = stickers.render(part)
        latents.append(encode(components, rendered.images).mean.half())
        boxes.append(rendered.boxes)
        ids = caption_ids(components, 0, [item.caption for item in part])
        contexts.append(components.text_encoders[0](ids).last_hidden_state.half())
    context, box = torch.cat(contexts), torch.cat(boxes)
    numbers = {name: index for index, name in enumerate(NAMES)}
    things = torch.tensor([[*(numbers[one.name] for one in item.stickers), 0, 0][:3] for item in listed])
    empty = components.text_encoders[0](caption_ids(components, 0, [""])).last_hidden_state
    return BoxedPictures(
        latents=torch.cat(latents),
        contexts=lambda which: context[which].float(),
        empty=empty,
        phrases=torch.stack(
            [phrase_embeddings(components, NAMES), phrase_embeddings(components, [article(name) for name in NAMES])]
        ),
        unnamed=phrase_embeddings(components, [UNNAMED["pocket"]])[0],
        things=things.to(device),
        boxes=box.float(),
        present=(box[..., 2] > box[..., 0]) & (box[..., 3] > box[..., 1]),
    )


def one_source(folder: Path | None, count: int) -> None:
    """Refuse a training that names both a folder and a number of composed pictures, or neither.

    Raises:
        ConfigError: saying so.
    """
    if (folder is None) == (count == 0):
        raise ConfigError("One source of pictures is needed.", "Give --images FOLDER or --composed COUNT.")


def composed_examples(count: int) -> Reading:
    """Return so many composed pictures of trained names, with captions and exact boxes, as if they were read."""
    listed = pool(count, POOL)
    stickers = Stickers(names=NAMES)
    examples: list[Example] = []
    for start in range(0, count, AT_ONCE):
        part = listed[start : start + AT_ONCE]
        rendered = stickers.render(part)
        for scene, picture, boxes in zip(part, to_pictures(rendered.images), rendered.boxes.tolist(), strict=True):
            there = [(one.name, box) for one, box in zip(scene.stickers, boxes, strict=False) if box[2] > box[0]]
            named = tuple(Box(phrase=name, box=tuple(box)) for name, box in there if box[3] > box[1])
            examples.append(Example(f"composed {len(examples)}", picture, (scene.caption,), boxes=named))
    return Reading(tuple(examples), convention="composed pictures")


def pool(count: int, seed: int) -> list[Scene]:
    """Return scenes to learn positions from: a third of all kinds, the rest with free positions."""
    return [*scenes(count // 3, seed), *free_scenes(count - count // 3, seed + 1_000)]
