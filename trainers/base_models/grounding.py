"""Gated layers for boxes as a method (GLIGEN, Li et al., arXiv:2301.07093): the base itself stays what it is.

Only the gated self-attention layers and what reads boxes for them learn, from pictures with boxes. The arithmetic is in
`trainers.base_models.gligen`. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pipelines.errors import DataError
from pipelines.words import file_stem
from trainers.base_models.inpainting import UNUSED
from trainers.method import Draw, Offer, Trainable
from trainers.settings import DataConfig, MethodConfig, TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipelines.events import Preview
    from pipelines.gligen.layers import GatedLayers
    from pipelines.models.components import Components
    from trainers.base_models.gligen import BoxedPictures, GroundingObjective
    from trainers.data.folders import Example, Reading

RECIPE = {
    "steps": 2000,
    "batch": 32,
    "learning_rate": 5e-5,
    "scale_lr": False,
    "warmup": 100,
    "decay": 0.4,
    "max_grad_norm": 1.0,
    "ema": 0.998,
}


class GroundingConfig(MethodConfig):
    """Settings of gated layers for boxes."""

    unused: ClassVar[frozenset[str]] = UNUSED | {"flip"}
    encodes_once: ClassVar[bool] = False

    name: str = Field(default="grounding", min_length=1, max_length=60)
    """Name of the file."""

    composed: int = Field(default=0, ge=0, le=1_000_000)
    """Learn from so many composed pictures instead, on pocket."""

    mirror: bool = False
    """Also show each picture mirrored, with its boxes; not for captions that say left and right."""

    gate_rate: float = Field(default=10.0, gt=0, le=1000)
    """Learning rate of the gates as a multiple of that of the layers. At the same they would open over tens of
    thousands of steps."""

    gate: float = Field(default=0.0, ge=0, lt=1)
    """Begin with new layers whose attention is open by this much, instead of with the base's; the base is changed
    from the first step, but layers behind closed gates learn next to nothing at first."""

    places_first: float = Field(default=0.0, ge=0, le=1)
    """Share of the training, at its beginning, that is about places: timesteps from 0.4 of the schedule on, where they
    are decided, and four captions in five left empty, so that only boxes say what is where."""

    caption_drop: float = Field(default=0.2, ge=0, le=1)
    """Share of captions left empty."""

    grounding_drop: float = Field(default=0.1, ge=0, le=1)
    """Share of pictures without any of their boxes."""

    box_drop: float = Field(default=0.3, ge=0, le=1)
    """In half of the pictures, the share of single boxes left out."""

    unnamed: float = Field(default=0.1, ge=0, le=1)
    """Share of boxes with a phrase that names nothing; the caption then decides the thing."""

    blur: float = Field(default=0.5, ge=0, le=10)
    """Noise on the phrases of a fifth of the pictures, in standard deviations of all phrases: words learned later,
    which lie between those known, are then read too."""

    half: bool = True
    """Store the layers in float16."""

    def result(self, base: str) -> Path:
        """Return the file of the layers alone."""
        return Path(f"{file_stem(self.name)}.safetensors")

    def read(self, folder: Path | None) -> Reading:
        """Read pictures with boxes, or compose them.

        Boxes are fox.bbox (lines of JSON with label and bbox in fractions) beside fox.png, one annotations.json (COCO),
        or those of a YOLO data set (images/, labels/ and data.yaml).

        Raises:
            ConfigError: if both a folder and composed pictures are asked for, or none.
        """
        from trainers.base_models.gligen_data import read_boxed
        from trainers.base_models.gligen_scenes import composed_examples, one_source

        one_source(folder, self.composed)
        return composed_examples(self.composed) if folder is None else read_boxed(folder)

    @property
    def trains_weights(self) -> bool:
        """Return True: layers of the UNet are trained."""
        return True

    @property
    def trains_text(self) -> bool:
        """Return False: captions are encoded once."""
        return False


@dataclass
class GatedState:
    """Gated layers in training.

    Attributes:
        base: the base.
        config: settings.
        objective: the data and the loss; made with the batches.
        example: a picture whose boxes are shown in previews.
    """

    base: Components
    config: GroundingConfig
    objective: GroundingObjective | None = None
    example: Example | None = None


class GroundingTraining:
    """Gated layers for boxes (GLIGEN) on any base, from pictures with boxes; the base itself stays what it is."""

    name = "grounding"
    Settings = GroundingConfig
    offers = (
        Offer(
            "places by boxes",
            "The model learns to put things where boxes say: thousands of pictures with boxes, in a zip, and hours; "
            "for Stable Diffusion 1.x and 2.x.",
            {},
        ),
    )

    def recipe(self, family: str, config: GroundingConfig) -> Mapping[str, Any]:
        """Return the values of layers of Stable Diffusion; small ones, of `pocket`, learn at a higher rate."""
        return RECIPE | {"learning_rate": 1e-3} if family == "pocket" else RECIPE

    @contextmanager
    def prepare(
        self, components: Components, config: GroundingConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Open the gated layers inside the `with`; a base without them is given some, closed."""
        from trainers.base_models.gligen import GATES, begin_open, opened, require_clip, with_gates

        require_clip(components)
        # Gated layers are the same base to what was learned on it; what is trained must not change its name.
        inside = replace(components, identity=components.fingerprint(), denoiser=with_gates(components.unet))
        state = GatedState(components, config)
        with opened(inside.unet) as trained:
            if config.gate:
                begin_open(trained, config.gate, generator)
            yield Trainable(
                inside,
                trained,
                (),
                state,
                examine=self.examine,
                sample=lambda examples, count: sorted(examples, key=lambda one: not one.boxes)[:count],
                rates={name: config.gate_rate for name in trained if name.endswith(GATES)},
                completed=lambda examples, data, seed: self.completed(examples, config),
                batches=lambda *given: self.batches(inside, state, *given),
                preview=lambda step: preview(inside, state, step),
            )

    def examine(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` if no picture has a box."""
        if not any(one.boxes for one in examples):
            raise DataError("There is no picture with a box in it.", "Give pictures with boxes.")

    def completed(self, examples: Sequence[Example], config: GroundingConfig) -> Sequence[Example]:
        """Return the pictures, and if asked for the same mirrored."""
        from trainers.base_models.gligen_data import mirrored

        return [*examples, *(map(mirrored, examples) if config.mirror else ())]

    def batches(
        self,
        components: Components,
        state: GatedState,
        examples: Sequence[Example],
        train: TrainConfig,
        data: DataConfig,
        over: Callable[[], float],
    ) -> Draw:
        """Encode the pictures; return a function for the numbers (B,) of those of a batch."""
        from trainers.base_models.gligen import GroundingObjective
        from trainers.base_models.inpainting_unet import on_device

        pictures = self.encoded(components, examples, data)
        state.example = next((one for one in examples if one.boxes), None)
        objective = GroundingObjective(components.unet, components.scheduler_config, pictures, state.config, over)
        state.objective = objective
        return lambda index, generator: objective.draw(train.batch, on_device(generator, components.device))

    def encoded(self, components: Components, examples: Sequence[Example], data: DataConfig) -> BoxedPictures:
        """Return the pictures as training data."""
        from trainers.base_models.gligen_data import encoded

        return encoded(components, examples, data.resolution or components.defaults.size)

    def losses(self, trainable: Trainable, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the base's own objective, at timesteps spread evenly over the batch."""
        from trainers.base_models.inpainting_unet import on_device

        return {"denoise": trainable.state.objective.loss(batch, on_device(generator, batch.device))}

    def export(self, trainable: Trainable) -> GatedLayers:
        """Return the layers as they are now."""
        from pipelines.gligen.layers import GatedLayers

        tensors = {name: value.detach().cpu().clone() for name, value in trainable.parameters.items()}
        return GatedLayers(tensors, {"base": trainable.components.name}, trainable.state.config.half)


def preview(components: Components, state: GatedState, step: int) -> Preview:
    """Return a picture drawn with the boxes of one that is learned from."""
    from pipelines.events import Preview
    from pipelines.generation import generate
    from pipelines.request.request import Request
    from trainers.base_models.gligen_data import caption_of

    example = state.example
    assert example is not None, "made with the batches"
    made = generate(components, Request(prompt=caption_of(example), boxes=example.boxes, steps=15))
    return Preview(step, made.pictures[0], caption_of(example))
