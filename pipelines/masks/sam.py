"""Masks from clicks and boxes, or of everything, by Segment Anything, through transformers.

Its first version (Kirillov et al., arXiv:2304.02643), its second (arXiv:2408.00714), EdgeTAM (arXiv:2501.07256) and
the part of the third that clicks are for; each from a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.masks.folders import kind_of, model_in
from pipelines.masks.model_input import HALF, IMAGENET, ModelInput, model_input
from pipelines.masks.selection import Guess
from pipelines.request.inpaint import Selection

KNOWN = (
    "Segment Anything in the transformers layout, such as a download of facebook/sam-vit-base (model_type sam), "
    "facebook/sam2.1-hiera-tiny (sam2), yonigozlan/EdgeTAM-hf (edgetam) or facebook/sam3 (sam3_tracker)"
)
SURE, STABLE, APART = 0.88, 0.95, 0.7
"""For everything: quality and stability a mask has at least, and the overlap of boxes from which two are one thing;
the authors' own."""
GRID, AT_ONCE = 32, 64
"""For everything: points along a side, and how many are asked for in one call."""
SHIFT = 1.0
"""Shift of the threshold within which a stable mask changes little."""


@dataclass(frozen=True)
class _Kind:
    """A version: its class in transformers, the colours it expects, and whether pictures keep their proportions."""

    model: str
    colours: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    padded: bool = False


KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "sam": _Kind("SamModel", padded=True),
        "sam2": _Kind("Sam2Model"),
        "sam2_video": _Kind("Sam2Model"),
        "edgetam": _Kind("EdgeTamModel"),
        "edgetam_video": _Kind("EdgeTamModel"),
        "sam3_tracker": _Kind("Sam3TrackerModel", HALF),
        "sam3_video": _Kind("Sam3TrackerModel", HALF),
    }
)
"""`model_type` of a folder's `config.json` -> version. Published weights call themselves by the models for films."""


class Sam:
    """A Segment Anything model of any version.

    Args:
        model: in evaluation mode.
        kind: its version, a key of `KINDS`.
    """

    def __init__(self, model: Any, kind: str) -> None:
        self.model, self.kind = model, KINDS[kind]
        side = model.config.prompt_encoder_config.image_size
        self.side = int(side if isinstance(side, int) else side[0])

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls, folder: Path) -> Sam:
        """Read a model from a folder in the transformers layout.

        Raises:
            ModelError: if the folder holds none, or one of another kind.
        """
        kind = kind_of(folder, "Segment Anything model", KNOWN)
        if kind == "sam3":
            raise ModelError(
                f"The model in {folder} is the part of SAM 3 that finds by names; clicks are for its other part.",
                "Give it with --finder and a name, or a folder of model_type sam3_tracker or sam3_video here.",
            )
        if kind not in KINDS:
            raise ModelError(
                f"The model in {folder} is a {kind:.40}, no Segment Anything.", f"Give a folder of {KNOWN}."
            )
        return cls(model_in(folder, KINDS[kind].model), kind)

    def read(self, picture: Image.Image) -> ModelInput:
        """Return a picture as this version reads it."""
        return model_input(picture, self.side, self.kind.colours, self.kind.padded)

    @torch.no_grad()
    def __call__(self, picture: Image.Image, selection: Selection) -> list[Guess]:
        """Return masks, best first. One click is ambiguous (whole, part, part of that) and gives three, others one.

        Args:
            picture: RGB.
            selection: clicks and a box.
        """
        read = self.read(picture)
        clicks = [*selection.clicks, *selection.without]
        given: dict[str, Tensor] = {}
        if clicks:  # (picture, thing, click, 2)
            given["input_points"] = read.places(torch.tensor(clicks))[None, None]
            given["input_labels"] = torch.tensor([1] * len(selection.clicks) + [0] * len(selection.without))[None, None]
        if selection.box is not None:
            given["input_boxes"] = read.places(torch.tensor(selection.box).view(2, 2)).view(1, 1, 4)
        ambiguous = len(clicks) == 1 and selection.box is None
        output = self.model(pixel_values=read.pixels, multimask_output=ambiguous, **given)
        masks = read.on_picture(output.pred_masks[0].float())[0] > 0
        guesses = [_guess(mask, quality) for mask, quality in zip(masks, output.iou_scores[0, 0], strict=True)]
        return sorted(guesses, key=lambda guess: guess.quality, reverse=True)

    @torch.no_grad()
    def everything(
        self, picture: Image.Image, points: int = GRID, sure: float = SURE, stable: float = STABLE
    ) -> list[Guess]:
        """Return masks of all things, the largest first, each once: those of a grid of clicks that are sure and stable.

        Args:
            picture: RGB.
            points: of the grid along a side.
            sure: least quality that the model predicts.
            stable: least overlap of a mask with itself at another threshold.
        """
        read = self.read(picture)
        along = (torch.arange(points) + 0.5) / points
        places = read.places(torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).reshape(-1, 2))
        seen = self.model.get_image_embeddings(read.pixels)
        kept: list[tuple[Tensor, float]] = []
        for some in places.split(AT_ONCE):
            output = self.model(
                image_embeddings=seen,
                input_points=some[None, :, None],
                input_labels=torch.ones(1, len(some), 1, dtype=torch.long),
                multimask_output=True,
            )
            quality = output.iou_scores[0].flatten()
            logits = output.pred_masks[0].float().flatten(0, 1)[quality >= sure]
            for one, score in zip(logits, quality[quality >= sure].tolist(), strict=True):
                shown = read.on_picture(one[None, None])[0, 0]
                inner, outer = (shown > SHIFT).sum(), (shown > -SHIFT).sum()
                if bool((shown > 0).any()) and float(inner / outer) >= stable:
                    kept.append((shown > 0, score))
        guesses = [_guess(mask, quality) for mask, quality in apart(kept)]
        return sorted(guesses, key=lambda guess: int(np.count_nonzero(np.asarray(guess.mask))), reverse=True)


def _guess(mask: Tensor, quality: Tensor | float) -> Guess:
    return Guess(Image.fromarray(mask.numpy().astype(np.uint8) * 255), float(quality))


def apart(found: list[tuple[Tensor, float]], most: float = APART) -> list[tuple[Tensor, float]]:
    """Return masks without those whose box overlaps a better one's by more than `most` (non-maximum suppression).

    Args:
        found: masks (H, W) with anything in them, each with its quality.
        most: intersection over union.
    """
    kept: list[tuple[Tensor, float]] = []
    boxes: list[tuple[int, int, int, int]] = []
    for mask, quality in sorted(found, key=lambda one: one[1], reverse=True):
        box = around(mask)
        if all(overlap(box, other) <= most for other in boxes):
            kept.append((mask, quality))
            boxes.append(box)
    return kept


def around(mask: Tensor) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a mask (H, W) with anything in it."""
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the intersection over union of two boxes."""
    wide = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    high = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return wide * high / max(sum(areas) - wide * high, 1e-9)
