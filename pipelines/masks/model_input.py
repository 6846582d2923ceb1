"""Pictures as models for masks and names read them, without torchvision, which some processors need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and spread of the colours for Segment Anything and its second version."""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""The same for the third."""


@dataclass(frozen=True)
class ModelInput:
    """A picture at the side that a model reads, and the way back.

    Attributes:
        pixels: (1, 3, side, side), normalised.
        size: width and height of the picture.
        inside: width and height of the picture within `side`; the rest below and to the right is filled with zeros.
        side: of the model's square.
    """

    pixels: Tensor
    size: tuple[int, int]
    inside: tuple[int, int]
    side: int

    def places(self, shares: Tensor) -> Tensor:
        """Return places (..., 2), fractions of the picture, in pixels of the model's square."""
        return shares * torch.tensor(self.inside, dtype=torch.float32)

    def on_picture(self, masks: Tensor) -> Tensor:
        """Return masks (P, M, h, w) of the model's square at the size of the picture, interpolated."""
        (width, height), (right, bottom) = self.size, self.inside
        if (right, bottom) != (self.side, self.side):
            masks = interpolate(masks, (self.side, self.side), mode="bilinear", align_corners=False)
            masks = masks[..., :bottom, :right]
        return interpolate(masks, (height, width), mode="bilinear", align_corners=False)


def model_input(
    picture: Image.Image, side: int, colours: tuple[tuple[float, ...], tuple[float, ...]], padded: bool
) -> ModelInput:
    """Return a picture as a model reads it.

    Args:
        picture: RGB.
        side: of the model's square.
        colours: mean and spread of the three colours.
        padded: keep the proportions and fill up with zeros, as the first Segment Anything does; else the picture is
            stretched to the square.
    """
    scale = side / max(picture.size)
    inside = tuple(int(edge * scale + 0.5) for edge in picture.size) if padded else (side, side)
    resized = picture.convert("RGB").resize(inside, Image.Resampling.BILINEAR)  # pyright: ignore[reportArgumentType]
    mean, spread = (np.asarray(one, dtype=np.float32) for one in colours)
    values = (np.asarray(resized, dtype=np.float32) / 255 - mean) / spread
    pixels = torch.zeros(1, 3, side, side)
    pixels[0, :, : inside[1], : inside[0]] = torch.from_numpy(values).permute(2, 0, 1)
    return ModelInput(pixels, picture.size, (inside[0], inside[1]), side)
