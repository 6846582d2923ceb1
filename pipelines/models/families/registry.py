"""The families, by name."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.models.components import Family
from pipelines.models.families.flux import Flux1
from pipelines.models.families.flux2 import Flux2Klein
from pipelines.models.families.krea2 import Krea2
from pipelines.models.families.qwen_image import QwenImage
from pipelines.models.families.sd import Pocket, StableDiffusion
from pipelines.models.families.sd3 import StableDiffusion3
from pipelines.models.families.sdxl import StableDiffusionXL
from pipelines.models.families.z_image import ZImage

_LISTED: tuple[Family, ...] = (
    Pocket(),
    StableDiffusion("sd1"),
    StableDiffusion("sd2"),
    StableDiffusionXL(),
    StableDiffusion3(),
    Flux1(),
    Flux2Klein(),
    ZImage(),
    QwenImage(),
    Krea2(),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _LISTED}
"""All families. A new one is enrolled by its place here and its line in `known`."""
