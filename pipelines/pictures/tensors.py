"""Conversion between pictures and tensors; the only place that knows the range [-1, 1]. Files: `pictures.files`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale and centre-crop to exactly (width, height), keeping proportions."""
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def to_tensor(picture: Image.Image) -> Tensor:
    """Convert an RGB picture to (3, H, W) float32 in [-1, 1]."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).div(127.5).sub(1).contiguous()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """Convert (B, 3, H, W) in [-1, 1] to RGB pictures."""
    array = (images.float().cpu().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one) for one in array]
