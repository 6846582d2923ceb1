"""Visual prompts as a method: the UNet for inpainting learns changes from pairs of pictures, as answers in a grid.

A grid is a picture whose mask is a cell: example before and after, query, and answer (Bar et al., arXiv:2209.00647).
Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from trainers.base_models.inpainting import UNUSED, InpaintingUNet, InpaintingUNetConfig, UNetState
from trainers.method import Offer
from trainers.settings import DataConfig, TrainConfig, require_folder

if TYPE_CHECKING:
    from trainers.base_models.inpainting_unet import Source
    from trainers.data.folders import Example, Reading


class InContextConfig(InpaintingUNetConfig):
    """Settings of visual prompts."""

    unused: ClassVar[frozenset[str]] = UNUSED | {"flip"}

    examples: int = Field(default=2, ge=1, le=16)
    """Most examples on a canvas; every fourth step has more than one."""

    hint: str = Field(default="", max_length=300)
    """The task in words, given with some of the visual prompts."""

    hinted: float = Field(default=0.5, ge=0, le=1)
    """Share of visual prompts that are given it."""

    blank: float = Field(default=0.1, ge=0, le=1)
    """Share of visual prompts whose examples are left blank, so that an example can guide."""

    def read(self, folder: Path | None) -> Reading:
        """Read pairs: fox.before.png with fox.after.png, or before/fox.png with after/fox.png; subfolders are tasks."""
        from trainers.data.picture_pairs import read_tasks

        return read_tasks(require_folder(folder))


class InContextTraining(InpaintingUNet):
    """Visual prompts: the UNet for inpainting learns changes from pairs of pictures, as answers in a grid."""

    name = "incontext"
    Settings = InContextConfig
    offers = (
        Offer(
            "change by example",
            "The model itself learns to change pictures as yours were changed: pairs of pictures, before and after, in "
            "a zip; hours, and a whole model as its result.",
            {},
        ),
    )

    def examine(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` if a task has fewer pairs than a visual prompt needs."""
        from trainers.base_models.inpainting_data import require_pairs

        require_pairs(examples)

    def sample(self, examples: Sequence[Example], count: int, config: InContextConfig) -> Sequence[Example]:
        """Return pairs of the smallest task, which says how many examples a canvas has; enough for these."""
        from trainers.base_models.inpainting_data import require_pairs

        smallest = min(require_pairs(examples).values(), key=len)
        return smallest[: max(count, config.examples + 1)]

    def source(self, state: UNetState, examples: Sequence[Example], train: TrainConfig, data: DataConfig) -> Source:
        """Return visual prompts of the pairs."""
        from trainers.base_models.inpainting_data import pair_source

        return pair_source(state.base, examples, train.batch, data.resolution, state.config)  # pyright: ignore[reportArgumentType]
