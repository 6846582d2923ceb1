"""Masks from clicks and boxes by Segment Anything (Kirillov et al., arXiv:2304.02643), through transformers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import SamModel, SamProcessor

from pipelines.errors import ModelError
from pipelines.masks.selection import Guess
from pipelines.request.inpaint import Selection


class Sam:
    """A Segment Anything model.

    Args:
        model: in evaluation mode.
        processor: of that model.
    """

    def __init__(self, model: SamModel, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls, folder: Path) -> Sam:
        """Read a model and its processor from a folder in the transformers layout.

        Raises:
            ModelError: if the folder holds none.
        """
        try:
            model = SamModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
            return cls(model, SamProcessor.from_pretrained(folder, local_files_only=True))
        except Exception as error:  # transformers raises whatever it meets
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"There is no Segment Anything model in {folder}: {first[:200]}",
                "Give a folder in the transformers layout, for example a download of facebook/sam-vit-base.",
            ) from None

    @torch.no_grad()
    def __call__(self, picture: Image.Image, selection: Selection) -> list[Guess]:
        """Return masks, best first. One click is ambiguous (whole, part, part of that) and gives three, others one.

        Args:
            picture: RGB.
            selection: clicks and a box.
        """
        width, height = picture.size
        clicks = [*selection.clicks, *selection.without]
        given: dict[str, Any] = {}
        if clicks:  # pixels of the picture, as [picture][thing][click]
            given["input_points"] = [[[[x * width, y * height] for x, y in clicks]]]
            given["input_labels"] = [[[1] * len(selection.clicks) + [0] * len(selection.without)]]
        if selection.box is not None:
            given["input_boxes"] = [[[edge * side for edge, side in zip(selection.box, picture.size * 2, strict=True)]]]
        ambiguous = len(clicks) == 1 and selection.box is None
        inputs = self.processor(picture, return_tensors="pt", **given)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        read = {key: value for key, value in inputs.items() if not key.endswith("sizes")}
        output = self.model(**{k: v.float() if v.is_floating_point() else v for k, v in read.items()},
                            multimask_output=ambiguous)  # fmt: skip
        masks = self.processor.post_process_masks(output.pred_masks, *sizes)[0][0].numpy()
        guesses = [
            Guess(Image.fromarray(mask.astype(np.uint8) * 255), float(quality))
            for mask, quality in zip(masks, output.iou_scores[0, 0], strict=True)
        ]
        return sorted(guesses, key=lambda guess: guess.quality, reverse=True)
