"""Inpainting as a method: a UNet that sees the mask and what lies around it, from a base of 4 channels.

The first convolution gets five more inputs with weights of zero, so that training starts from what the base paints;
then the whole UNet is trained on masked pictures, as Stable Diffusion's inpainting models were (Rombach et al.,
arXiv:2112.10752). The base's own UNet stays what it is. Needs no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipelines.errors import DataError
from pipelines.request.settings import FileOf
from pipelines.words import file_stem
from trainers.method import Draw, Offer, Trainable
from trainers.settings import DataConfig, MethodConfig, TrainConfig

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from torch import Tensor

    from pipelines.events import Preview
    from pipelines.models.components import Components
    from trainers.base_models.inpainting_unet import Loss, MaskedBatch, Source
    from trainers.base_models.model_folder import InpaintingModel
    from trainers.data.folders import Example

UNUSED = frozenset({"center_crop", "buckets", "smaller_copies", "cache", "candidates", "preview", "quantise"})
"""Shared settings of pictures and concepts that a part of a base has no use for."""

RECIPE = {
    "steps": 3000,
    "batch": 8,
    "learning_rate": 1e-5,
    "scale_lr": False,
    "warmup": 100,
    "decay": 0.4,
    "max_grad_norm": 1.0,
    "ema": 0.999,
}
POCKET = {"learning_rate": 1e-3, "optimizer": "muon"}
"""Values with which a small UNet learns faster."""


class InpaintingUNetConfig(MethodConfig):
    """The new UNet."""

    unused: ClassVar[frozenset[str]] = UNUSED
    encodes_once: ClassVar[bool] = False
    gives_folder: ClassVar[bool] = True

    name: str = Field(default="", max_length=60)
    """Name of the new model; that of the base with -inpainting by default."""

    start: Annotated[Path | None, FileOf("own")] = None
    """A 9-channel UNet to go on from; by default the one beside the base, or the base itself, widened."""

    half: bool = False
    """Store weights in float16."""

    def result(self, base: str) -> Path:
        """Return the folder of the new model: that of the base with unet_inpainting/ in it."""
        own = Path(base).name.removesuffix(".safetensors").removesuffix(".ckpt")  # sd1.5 is no name with an ending
        return Path("models") / (file_stem(self.name) if self.name else f"{file_stem(own)}-inpainting")

    @property
    def trains_weights(self) -> bool:
        """Return True: the UNet is trained."""
        return True

    @property
    def trains_text(self) -> bool:
        """Return False: captions are encoded once."""
        return False


class InpaintingConfig(InpaintingUNetConfig):
    """Settings of inpainting."""

    empty: float = Field(default=0.1, ge=0, le=1)
    """Share of captions that are left empty."""


@dataclass
class UNetState:
    """A UNet in training.

    Attributes:
        base: the base; its autoencoder encodes, its schedule noises.
        config: settings.
        loss: of a batch.
        shown: a batch to draw previews of.
    """

    base: Components
    config: InpaintingUNetConfig
    loss: Loss
    shown: MaskedBatch | None = None


class InpaintingUNet(ABC):
    """Base of the trainings of a 9-channel UNet, which differ in their batches."""

    def recipe(self, family: str, config: Any) -> Mapping[str, Any]:
        """Return the values of a small model for `pocket`, else those of a fine-tuning."""
        return RECIPE | POCKET if family == "pocket" else RECIPE

    @abstractmethod
    def source(self, state: UNetState, examples: Sequence[Example], train: TrainConfig, data: DataConfig) -> Source:
        """Return the source of batches."""

    @abstractmethod
    def examine(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` if it cannot be learned from the pictures."""

    def sample(self, examples: Sequence[Example], count: int, config: Any) -> Sequence[Example]:
        """Return about `count` examples of which batches can be made as of all."""
        return examples[:count]

    def begun(self, components: Components, config: Any) -> UNet2DConditionModel:
        """Return the UNet that training starts from."""
        from trainers.base_models.inpainting_unet import start_from

        return start_from(components, config.start)

    @contextmanager
    def prepare(self, components: Components, config: Any, generator: torch.Generator) -> Iterator[Trainable]:
        """Give the base a new UNet of 9 channels inside the `with`."""
        from trainers.base_models.inpainting_unet import masked_loss

        unet = self.begun(components, config).train().requires_grad_(True)
        state = UNetState(components, config, masked_loss(unet, components))

        def batches(
            examples: Sequence[Example], train: TrainConfig, data: DataConfig, over: Callable[[], float]
        ) -> Draw:
            return drawn_from(self.source(state, examples, train, data), state)

        yield Trainable(
            replace(components, denoiser=unet),
            dict(unet.named_parameters()),
            (),
            state,
            examine=self.examine,
            batches=batches,
            preview=lambda step: preview(replace(components, denoiser=unet), state, step),
            sample=lambda examples, count: self.sample(examples, count, config),
        )

    def losses(self, trainable: Trainable, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the squared error inside the mask, and a little of that outside it."""
        from trainers.base_models.inpainting_unet import on_device

        return {"denoise": trainable.state.loss(batch, on_device(generator, trainable.components.device))}

    def export(self, trainable: Trainable) -> InpaintingModel:
        """Return the base with the UNet as it is now."""
        from trainers.base_models.model_folder import InpaintingModel

        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in trainable.components.unet.state_dict().items()
        }
        return InpaintingModel(trainable.state.base, weights, trainable.state.config.half)


class InpaintingTraining(InpaintingUNet):
    """Inpainting: a UNet that sees the mask and what lies around it, from a base of 4 channels."""

    name = "inpainting"
    Settings = InpaintingConfig
    offers = (
        Offer(
            "repainting",
            "The model itself learns to repaint parts of pictures like yours: hundreds of pictures and hours, and a "
            "whole model as its result.",
            {},
        ),
    )

    def examine(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` if there is no picture."""
        if not examples:
            raise DataError("There is no picture to learn from.", "Give at least one.")

    def source(self, state: UNetState, examples: Sequence[Example], train: TrainConfig, data: DataConfig) -> Source:
        """Return pictures with random masks."""
        from trainers.base_models.inpainting_data import picture_source

        return picture_source(state.base, examples, train.batch, data, state.config.empty)  # pyright: ignore[reportAttributeAccessIssue]


def drawn_from(source: Source, state: UNetState) -> Draw:
    """Return the batches of a source, the first of which is shown in previews."""
    import torch

    from trainers.base_models.inpainting_unet import on_device

    device = state.base.device
    with torch.no_grad():
        state.shown = source(0, torch.Generator(device).manual_seed(0))

    def draw(index: int, generator: torch.Generator) -> MaskedBatch:
        with torch.no_grad():
            return source(index, on_device(generator, device))

    return draw


def preview(components: Components, state: UNetState, step: int) -> Preview:
    """Return the first picture of the batch that is shown, painted by the UNet as it is now."""
    from pipelines.conditions.grid import Canvases
    from pipelines.events import Preview
    from pipelines.generation import generate
    from pipelines.request.request import Request

    batch = state.shown
    assert batch is not None, "made with the batches"
    canvases = Canvases(batch.pictures[:1].cpu(), batch.masks[:1].cpu())
    made = generate(components, Request(prompt="", steps=15), conditions=(canvases,))
    return Preview(step, made.pictures[0], "repainted")
