"""A second judge of pictures: any image encoder of transformers from a folder, DINOv2 for example.

Whoever chooses by one judge should report by another: DINO tells subjects of one class apart, which CLIP was trained to
put together (Ruiz et al., arXiv:2208.12242, section 4).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel

from pipelines.errors import ModelError
from pipelines.pictures.tensors import fit, to_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for folders that do not say theirs."""
SIDE = 224


@dataclass(frozen=True)
class PictureEncoder:
    """An image encoder with the preprocessing of its pictures.

    Attributes:
        model: of transformers; takes `pixel_values`.
        side: of the square it is shown, in pixels.
        mean: of each channel in [0, 1].
        std: of each channel.
    """

    model: nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> PictureEncoder:
        """Read an encoder in the transformers layout (`config.json`, weights, `preprocessor_config.json`), in float32.

        Raises:
            ModelError: if the folder holds none.
        """
        try:
            if not folder.is_dir():
                raise OSError("there is no such folder")
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            path = folder / "preprocessor_config.json"
            said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            wanted = said.get("crop_size") or said.get("size") or {}
            side = wanted if isinstance(wanted, int) else wanted.get("height") or wanted.get("shortest_edge") or SIDE
            mean, std = (
                tuple(map(float, said.get(key) or own)) for key, own in (("image_mean", MEAN), ("image_std", STD))
            )
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"The image encoder in {folder} cannot be read: {first}.",
                "Give --dino a folder of transformers with an image encoder, for example of DINOv2.",
            ) from None
        return cls(model.to(device).eval().requires_grad_(False), int(side), mean, std)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors (N, D): the pooled state, or that of the first token where nothing is pooled."""
        device = next(self.model.parameters()).device
        pixels = torch.stack([(to_tensor(fit(one, self.side, self.side)) + 1) / 2 for one in pictures]).to(device)
        mean, std = (torch.tensor(value, device=device)[:, None, None] for value in (self.mean, self.std))
        seen: Any = self.model(pixel_values=(pixels - mean) / std)
        state = getattr(seen, "pooler_output", None)
        state = seen.last_hidden_state[:, 0] if state is None else state
        return torch.nn.functional.normalize(state.flatten(1), dim=-1)
