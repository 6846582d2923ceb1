"""Things in a picture by their names, by models from a folder: OWLv2, Grounding DINO and SAM 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.errors import ModelError, RequestError
from pipelines.masks.folders import kind_of, model_in, processor_in
from pipelines.masks.model_input import HALF, model_input

KNOWN = "OWLv2 (model_type owlv2), Grounding DINO (grounding-dino) or SAM 3 (sam3)"
TOKENS = 32
"""Tokens of a name that SAM 3 reads."""


@dataclass(frozen=True)
class NamedThing:
    """A thing that was found by its name.

    Attributes:
        name: as it was asked for.
        box: left, top, right and bottom edge, in fractions of the picture.
        score: how sure the finder is, in [0, 1].
        mask: grey, of the picture's size, white where it is, if the finder knows; else None.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float
    mask: Image.Image | None = None


class NameFinder(Protocol):
    """Anything that finds things by their names."""

    def __call__(self, picture: Image.Image, name: str) -> list[NamedThing]:
        """Return what is called so in an RGB picture, the surest first.

        Raises:
            RequestError: if there is nothing, or the finder does not know the name.
        """
        ...


@lru_cache(maxsize=1)
def name_finder(folder: Path) -> NameFinder:
    """Return the finder in a folder of the transformers layout.

    Args:
        folder: of a model with its processor; nothing is downloaded and no code in it is run.

    Raises:
        ModelError: if there is none, or it is of another kind.
    """
    kind = kind_of(folder, "finder of names", KNOWN)
    if kind not in KINDS:
        raise ModelError(f"The model in {folder} is a {kind:.40}, which finds nothing by name.", f"Give {KNOWN}.")
    return KINDS[kind](folder)


def bare(name: str) -> str:
    """Return a name in small letters, without its article.

    Raises:
        RequestError: if nothing is left.

    >>> bare("The red  Cup"), bare("an owl")
    ('red cup', 'owl')
    """
    words = name.lower().strip(" .").split()
    said = " ".join(words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words)
    if not said:
        raise RequestError(f"{name!r:.60} names nothing.", 'Say what is meant, such as "the red cup".')
    return said


def _listed(
    name: str, picture: Image.Image, boxes: Tensor, scores: Tensor, least: float, masks: Tensor | None = None
) -> list[NamedThing]:
    """Return what is surer than `least`, the surest first.

    Args:
        name: that was asked for.
        picture: in which.
        boxes: (N, 4) in fractions of the picture.
        scores: (N,).
        least: score.
        masks: (N, h, w) from 0 to 1, of the whole picture at another size.

    Raises:
        RequestError: if nothing is.
    """
    found: list[NamedThing] = []
    for index in scores.argsort(descending=True).tolist():
        if float(scores[index]) <= least:
            break
        left, top, right, bottom = (min(1.0, max(0.0, float(edge))) for edge in boxes[index])
        if right <= left or bottom <= top:
            continue
        mask = None if masks is None else _white(masks[index], picture.size)
        found.append(NamedThing(name, (left, top, right, bottom), float(scores[index]), mask))
    if not found:
        most = float(scores.max()) if len(scores) else 0.0
        raise RequestError(
            f"There is no {name!r:.60} in the picture that the finder is sure of: {most:.2f} at most, and more than "
            f"{least:g} is needed.",
            "Say it in other words, or point at it: --click 0.5,0.4",
        )
    return found


def _white(mask: Tensor, size: tuple[int, int]) -> Image.Image:
    large = interpolate(mask[None, None].float(), size[::-1], mode="bilinear", align_corners=False)[0, 0]
    return Image.fromarray(((large > 0.5) * 255).byte().numpy())


def _owl(name: str, least: float = 0.1) -> Callable[[Path], NameFinder]:
    """Return what reads a folder of OWLv2 or OWL-ViT (Minderer et al., arXiv:2306.09683), by the prefix of its classes.

    The picture is filled up to a square below and to the right, which boxes are fractions of.
    """

    def load(folder: Path) -> NameFinder:
        processor, model = processor_in(folder, f"{name}Processor"), model_in(folder, f"{name}ForObjectDetection")

        @torch.no_grad()
        def find(picture: Image.Image, name: str) -> list[NamedThing]:
            said = bare(name)
            inputs = processor(text=[[f"a photo of a {said}"]], images=picture, return_tensors="pt")
            output = model(**inputs)
            centre, half = output.pred_boxes[0, :, :2], output.pred_boxes[0, :, 2:] / 2
            boxes = torch.cat([centre - half, centre + half], dim=-1)
            if squared:
                boxes = boxes * (max(picture.size) / torch.tensor(picture.size * 2))
            return _listed(said, picture, boxes, output.logits[0, :, 0].sigmoid(), least)

        return find

    squared = name == "Owlv2"
    return load


def _grounding_dino(name: str, least: float = 0.25) -> Callable[[Path], NameFinder]:
    """Return what reads a folder of Grounding DINO (Liu et al., arXiv:2303.05499), by the prefix of its classes."""

    def load(folder: Path) -> NameFinder:
        processor = processor_in(folder, "GroundingDinoProcessor")
        model = model_in(folder, f"{name}ForObjectDetection")

        @torch.no_grad()
        def find(picture: Image.Image, name: str) -> list[NamedThing]:
            said = bare(name)
            inputs = processor(images=picture, text=f"{said}.", return_tensors="pt")
            output = model(**inputs)
            centre, half = output.pred_boxes[0, :, :2], output.pred_boxes[0, :, 2:] / 2
            scores = output.logits[0].sigmoid().amax(dim=-1)
            return _listed(said, picture, torch.cat([centre - half, centre + half], dim=-1), scores, least)

        return find

    return load


def _sam3(folder: Path, least: float = 0.3) -> NameFinder:
    """Return the finder in a folder of SAM 3, which also knows where each thing is to the pixel."""
    model: Any = model_in(folder, "Sam3Model")
    tokenizer = processor_in(folder, "CLIPTokenizer")
    backbone = model.config.vision_config.backbone_config.image_size
    side = int(backbone if isinstance(backbone, int) else backbone[0])

    @torch.no_grad()
    def find(picture: Image.Image, name: str) -> list[NamedThing]:
        said = bare(name)
        read = model_input(picture, side, HALF, padded=False)
        text = tokenizer(said, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        output = model(pixel_values=read.pixels, input_ids=text.input_ids, attention_mask=text.attention_mask)
        scores = output.pred_logits[0].sigmoid()
        if output.presence_logits is not None:
            scores = scores * output.presence_logits[0].sigmoid()
        return _listed(said, picture, output.pred_boxes[0], scores, least, output.pred_masks[0].sigmoid())

    return find


KINDS: Mapping[str, Callable[[Path], NameFinder]] = MappingProxyType(
    {
        "owlv2": _owl("Owlv2"),
        "owlvit": _owl("OwlViT"),
        "grounding-dino": _grounding_dino("GroundingDino"),
        "mm-grounding-dino": _grounding_dino("MMGroundingDino"),
        "sam3": _sam3,
        "sam3_video": _sam3,
    }
)
"""`model_type` of a folder's `config.json` -> what reads it."""
