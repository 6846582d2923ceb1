"""A real CLIP from a folder, to measure pictures of real models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from pipelines.errors import ModelError


@dataclass(frozen=True)
class Clip:
    """CLIP with its tokenizer and picture processor (transformers)."""

    model: CLIPModel
    tokenizer: Any
    processor: Any

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Clip:
        """Read a CLIP in the transformers layout, in float32.

        Raises:
            ModelError: if the folder holds none.
        """
        try:
            if not folder.is_dir():
                raise OSError("there is no such folder")
            model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"The CLIP in {folder} cannot be read: {first}.",
                "Give --clip a folder with a CLIPModel, its tokenizer and its picture processor.",
            ) from None
        return cls(model.to(device).eval().requires_grad_(False), tokenizer, processor)  # pyright: ignore

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return unit vectors (N, D)."""
        pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self.model.device)
        seen: Any = self.model.get_image_features(pixel_values=pixels)
        return torch.nn.functional.normalize(seen.pooler_output, dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors (N, D)."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        tokens = {name: value.to(self.model.device) for name, value in tokens.items()}
        read: Any = self.model.get_text_features(**tokens)
        return torch.nn.functional.normalize(read.pooler_output, dim=-1)
