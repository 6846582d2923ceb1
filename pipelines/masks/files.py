"""Masks: which part of a picture is repainted. 1, white, is repainted; 0, black, is kept."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from pipelines.errors import RequestError


def softened(mask: Image.Image, grow: int = 0, feather: int = 0) -> Image.Image:
    """Widen a mask and let it fade outwards.

    What was white stays white, so nothing of what is to go shines through; `grow` + `feather` pixels from it nothing
    has changed.

    Args:
        mask: grey.
        grow: pixels, white up to there.
        feather: pixels of a linear fade beyond.
    """
    values = np.asarray(mask)
    if (not grow and not feather) or not (values >= 128).any():
        return mask
    distance = np.asarray(distance_transform_edt(values < 128))
    fade = np.clip(1 - (distance - grow) / (feather + 1), 0, 1)
    return Image.fromarray(np.maximum(values, np.round(fade * 255).astype(np.uint8)))


def require_mask(mask: Image.Image, image: Image.Image) -> None:
    """Check that a mask fits this picture.

    Raises:
        RequestError: if it is of another size, or nothing in it is to be repainted.
    """
    if mask.size != image.size:
        raise RequestError(
            f"The mask has {mask.width} x {mask.height} pixels, the picture {image.width} x {image.height}.",
            "Make the mask as large as the picture.",
        )
    if (brightest := int(np.asarray(mask).max())) < 128:
        raise RequestError(
            f"Nothing in the mask is to be repainted: its brightest pixel is {brightest} of 255.",
            "Paint white what is to be repainted, or leave the mask out to change the whole picture.",
        )
