"""Pictures as inputs of GLIGEN's layers for texts and pictures: their CLIP embeddings, mapped among those of texts.

A base whose gated layers read pictures brings what is needed in its folder: `image_encoder` (CLIP's picture tower with
its projection), `image_project` (from the shared space back to that of texts before their projection) and the
`processor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection
from PIL import ImageOps
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from pipelines.errors import DataError, RequestError
from pipelines.models.components import Components
from pipelines.pictures.files import open_picture

LENGTH = 28.7
"""Norm of every picture's embedding: about that of a phrase's (`gligen_normalize_constant`)."""


@torch.no_grad()
def picture_embeddings(components: Components, paths: Sequence[str]) -> Tensor:
    """Return the inputs of the gated layers for pictures, (n, dim) float32.

    A picture is padded to a square with white, so that CLIP's centre crop keeps all of the thing.

    Raises:
        RequestError: if the base's folder lacks the parts, or a picture cannot be read.
    """
    encoder, project, processor = _parts(components)
    rows: list[Tensor] = []
    for path in paths:
        try:
            picture = open_picture(Path(path))
        except DataError as error:
            raise RequestError(f"A reference picture of the boxes: {error.message}", error.hint) from None
        side = max(picture.size)
        square = ImageOps.pad(picture, (side, side), color="white")
        pixels = processor(images=[square], return_tensors="pt")["pixel_values"]
        row = project(encoder(pixel_values=pixels).image_embeds)[0]
        rows.append(LENGTH * row / row.norm())
    return torch.stack(rows)


def _parts(components: Components) -> tuple[Any, Any, Any]:
    folder = Path(components.name)
    try:
        encoder: Any = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
        project: Any = CLIPImageProjection.from_pretrained(folder / "image_project", torch_dtype=torch.float32)
        names = ("processor", "feature_extractor")
        read = next((folder / name for name in names if (folder / name).is_dir()), folder / "processor")
        processor: Any = CLIPImageProcessor.from_pretrained(read)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            f"{components.name} reads pictures, but lacks what encodes them: {said:.120}",
            "Use a whole folder with image_encoder, image_project and processor, or leave pictures out of the boxes.",
        ) from None
    return encoder.eval(), project.eval(), processor
