"""Concept Sliders: a direction between two ends, learned as low-rank changes that act by a signed strength.

Source: Gandikota et al., arXiv:2311.12092. Between two prompts (3.2, eq. 8): at strength s = 1 or -1 the prediction for
a prompt becomes the base's own, moved by s times the difference of what it predicts for the two ends, each said of one
of the things to be kept. Between two sets of pictures (3.3): at 1 the changes learn to denoise those of the one end, at
-1 those of the other. Three differences from the authors' code: both signs are learned in the same batch also between
prompts (theirs learns 1 alone unless told otherwise); the noisy latents are of pictures that the base drew once, or of
those that are given, instead of being denoised partly for each step; pictures of the two ends share their noise without
having to show the same scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from pipelines.errors import ConfigError
from pipelines.request.settings import FileOf
from pipelines.words import Composed
from trainers.method import Offer, Trainable
from trainers.settings import DataConfig, LowRankConfig, MethodConfig, ObjectiveConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipelines.concepts.concept import Concept
    from pipelines.events import OnEvent
    from pipelines.models.components import Components
    from pipelines.models.noise import NoiseProcess
    from trainers.data.batches import Batch, Example
    from trainers.losses import Captions
    from trainers.methods.parts.adapters import Trained

ARROW = "->"


class SliderConfig(MethodConfig, ObjectiveConfig, LowRankConfig):
    """Settings of Concept Sliders."""

    token: Composed = Field(min_length=1, max_length=60)
    """The slider's name, for example `bluer`. No prompt has to say it."""

    between: Composed = ""
    """The two ends as prompts, the one at strength -1 first: "a fox on an orange background -> a fox on a blue
    background". A `{}` in them stands for each of `keep`."""

    less_images: Annotated[Path | None, FileOf("dataset")] = None
    """Folder of pictures of the end at strength -1, instead of prompts; `images` are then those of the end at 1."""

    about: tuple[Composed, ...] = ()
    """Prompts that the slider is to act on, for example "a fox" or "a {}"; the prompts of the two ends by default, and
    for two folders of pictures the captions of those that have none."""

    keep: tuple[Composed, ...] = ()
    """Things that are to look as before: both ends are said of each of them, in the place of `{}` or before the
    prompt."""

    push: float = Field(default=1.0, gt=0, le=20)
    """Multiple of the difference of the two ends that is learned for a strength of 1; between prompts alone."""

    pictures: int = Field(default=48, ge=2, le=10_000)
    """Pictures that the base draws to learn on, where no folder is given."""

    @property
    def triggers(self) -> tuple[str, ...]:
        """Return its name."""
        return (self.token,)

    @property
    def spoken(self) -> str:
        """Return no word: captions describe pictures and do not name the slider."""
        return ""

    @property
    def trains_text(self) -> bool:
        """Return whether gradients go through the text encoders: never."""
        return False

    @property
    def ends(self) -> tuple[str, str]:
        """The prompts of the ends, that at strength -1 first; empty between pictures."""
        less, _, more = self.between.partition(ARROW)
        return less.strip(), more.strip()

    @property
    def drawn_prompts(self) -> tuple[str, ...]:
        """Return the prompts of pictures that the base draws where there is no folder; none between pictures."""
        return tuple(dict.fromkeys(self.of_things((*self.about, *self.ends)))) if self.between else ()

    def of_things(self, prompts: Sequence[str]) -> list[str]:
        """Return prompts with each of the things to be kept in the place of `{}`."""
        return [prompt.replace("{}", thing) for thing in self.keep or ("",) for prompt in prompts]

    @model_validator(mode="after")
    def _has_two_ends(self) -> Self:
        if bool(self.between) == (self.less_images is not None):
            raise ValueError(
                "a slider lies between two prompts or two folders of pictures; give between or less_images, not both"
                if self.between
                else "neither between nor less_images is given; say for example between 'a small fox -> a large fox'"
            )
        if self.between and (self.between.count(ARROW) != 1 or not all(self.ends)):
            raise ValueError(
                f"between {self.between!r} is not 'LESS {ARROW} MORE'; put one {ARROW} between two prompts"
            )
        if self.ends[0] == self.ends[1] and self.between:
            raise ValueError(f"both ends are {self.ends[0]!r}; a slider has two")
        said = [text for text in (*self.ends, *self.about) if "{}" in text]
        if said and not self.keep:
            raise ValueError(f"{said[0]!r} has a {{}} and keep has nothing to stand there; add keep, or say a thing")
        if self.dora:
            raise ValueError("dora learns the lengths of rows, which have no opposite; leave it out for a slider")
        return self


SD: dict[str, Any] = {
    "steps": 500,
    "batch": 1,
    "learning_rate": 2e-4,
    "scale_lr": False,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "flip": 0.0,
    "push": 4.0,
}
POCKET: dict[str, Any] = SD | {
    "steps": 120,
    "batch": 4,
    "pictures": 24,
    "learning_rate": 1e-3,
    "warmup": 10,
    "decay": 0.5,
    "rank": 8,
    "targets": "all",
    # Twice as much tears pictures apart: its guidance is strong enough by itself.
    "push": 1.0,
}


@dataclass(frozen=True)
class _State:
    """Inputs of losses and export of a slider.

    Attributes:
        config: ends and objective.
        process: noise process of the base.
        captions: the conditioning of captions.
        trained: the changes.
        pairs: caption -> the pairs of ends (less, more) that may be said for it; under "" those for all others.
    """

    config: SliderConfig
    process: NoiseProcess
    captions: Captions
    trained: Trained
    pairs: Mapping[str, Sequence[tuple[str, str]]]


class Slider:
    """Learns a direction between two prompts or two sets of pictures, used with strengths below and above 0."""

    name = "slider"
    Settings = SliderConfig
    offers = (
        Offer(
            "slider",
            "More or less of something, by a strength from below to above 0: say what less and more of it look like. "
            "No pictures are needed; the model draws its own.",
            {
                "token": ("Its name", "bluer"),
                "between": (
                    "Less -> more, as two prompts",
                    "a fox on an orange background -> a fox on a blue background",
                ),
            },
            pictures=False,
        ),
    )

    def recipe(self, family: str, config: SliderConfig) -> Mapping[str, Any]:
        """Return the authors' values, half their steps as both signs are learned in each; for `pocket` short ones."""
        return POCKET if family == "pocket" else SD

    @contextmanager
    def prepare(self, components: Components, config: SliderConfig, generator: torch.Generator) -> Iterator[Trainable]:
        """Put low-rank layers beside the denoiser's that act with both signs in each batch that is learned from."""
        from trainers.losses import Captions, process_of
        from trainers.methods.parts.adapters import denoiser_low_rank, mirrored

        with denoiser_low_rank(components, config, generator) as trained, mirrored(components.denoiser):
            process = process_of(components, config)
            state = _State(config, process, Captions(components, frozen=True), trained, _pairs(config))
            yield Trainable(
                components,
                trained.parameters,
                tuple(dict.fromkeys(config.of_things(config.about or config.ends))),
                state,
                completed=lambda examples, data, seed: _completed(config, examples, data),
                class_pictures=None if config.less_images is None else _less_pictures(config.less_images),
            )

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the squared error at strength 1 and at strength -1, in the mean."""
        import torch

        from trainers.losses import drawn, pixels_of, predicted, weighted_error

        state: _State = trainable.state
        components, config, process = trainable.components, state.config, state.process
        noise, t = drawn(batch, config, process, generator)
        noise, t = torch.cat((noise, noise)), torch.cat((t, t))
        if batch.prior is None:
            latents, frames = torch.cat((batch.latents,) * 2), torch.cat((batch.frames,) * 2)
            captions, masks = batch.captions * 2, batch.masks
            masks = None if masks is None else torch.cat((masks, masks))
            wanted = _moved(trainable, batch, noise[: len(batch.latents)], t[: len(batch.latents)], generator)
        else:
            latents = torch.cat((batch.latents, batch.prior.latents))
            frames = torch.cat((batch.frames, batch.prior.frames))
            captions, masks = batch.captions + batch.prior.captions, None
            wanted = process.target(latents, noise, t)
        told = state.captions(captions, frames, pixels_of(components, latents))
        guess = predicted(components, latents, t, noise, process, told)
        return {"denoise": weighted_error(process, guess, wanted, t, config, masks).mean()}

    def export(self, trainable: Trainable) -> Concept:
        """Return the changes as they are now."""
        from pipelines.concepts.card import ConceptCard
        from pipelines.concepts.concept import Concept

        config, components = trainable.state.config, trainable.components
        card = ConceptCard(
            token=config.token,
            kind="slider",
            method=self.name,
            family=components.family.name,
            base=components.name,
            vectors=0,
            example=next(iter(trainable.templates), ""),
        )
        return Concept(card, (), trainable.state.trained.changes())


def _pairs(config: SliderConfig) -> dict[str, list[tuple[str, str]]]:
    """Return for each prompt the pairs of ends that are said for it: of its own thing to be kept, if it names one."""
    if not config.between:
        return {}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for thing in config.keep or ("",):
        less, more = (end.replace("{}", thing) if "{}" in end else f"{thing} {end}".strip() for end in config.ends)
        for prompt in (*config.about, *config.ends):
            pairs.setdefault(prompt.replace("{}", thing), []).append((less, more))
        pairs.setdefault("", []).append((less, more))
    return pairs


def _completed(config: SliderConfig, examples: Sequence[Example], data: DataConfig) -> Sequence[Example]:
    """Return the pictures to learn on; raises ConfigError if an option would act on one of two ends alone."""
    if config.less_images is not None:
        asked = {"--flip": data.flip, "--smaller-copies": data.smaller_copies}
        if given := [name for name, value in asked.items() if value]:
            raise ConfigError(
                f"{' and '.join(given)} would change the pictures of one end of a slider and not of the other.",
                f"Use {' and '.join(f'{name} 0' for name in given)}, or give ends as prompts with --between.",
            )
        _require_no_masks(examples)
    return _described(config, examples)


def _require_no_masks(examples: Sequence[Example]) -> None:
    if masked := [one.name for one in examples if one.mask_source is not None]:
        raise ConfigError(
            f"A slider between two folders learns whole pictures, and {masked[0]:.80} has a mask.",
            "Take masks out of both folders, or give ends as prompts with --between.",
        )


def _described(config: SliderConfig, examples: Sequence[Example]) -> Sequence[Example]:
    """Return the pictures, those that the base drew of the ends with the prompts that the slider is to act on."""
    if not (config.between and config.about):
        return examples
    acted_on = {
        end.replace("{}", thing): tuple(prompt.replace("{}", thing) for prompt in config.about)
        for thing in config.keep or ("",)
        for end in config.ends
    }
    return [
        replace(one, captions=tuple(new for said in one.captions for new in acted_on.get(said, (said,))))
        for one in examples
    ]


def _less_pictures(folder: Path) -> Callable[[Path, OnEvent, Callable[[], bool]], list[Example]]:
    """Return the function that reads the pictures of the end at strength -1."""
    from trainers.data.sound_pictures import sound_examples

    def read(kept: Path, on_event: OnEvent, should_stop: Callable[[], bool]) -> list[Example]:
        examples = list(sound_examples(folder, on_event))
        _require_no_masks(examples)
        return examples

    return read


def _moved(trainable: Trainable, batch: Batch, noise: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """Return the targets (2B, C, h, w) for strengths 1 and -1: the base's prediction, moved to either end (eq. 8)."""
    import torch

    from trainers.losses import pixels_of, predicted

    state: _State = trainable.state
    count = len(batch.captions)
    chances = batch.part.of(lambda n: torch.rand(n, generator=generator, dtype=torch.float64), count).tolist()
    listed = [state.pairs.get(caption, state.pairs[""]) for caption in batch.captions]
    chosen = [pairs[int(chance * len(pairs))] for pairs, chance in zip(listed, chances, strict=True)]
    captions = [*batch.captions, *(less for less, _ in chosen), *(more for _, more in chosen)]
    latents, frames, noise = (torch.cat((one,) * 3) for one in (batch.latents, batch.frames, noise))
    with state.trained.off(), torch.no_grad():
        told = state.captions(captions, frames, pixels_of(trainable.components, latents))
        guess = predicted(trainable.components, latents, torch.cat((t,) * 3), noise, state.process, told)
    plain, less, more = guess.chunk(3)
    way = state.config.push * (more - less)
    return torch.cat((plain + way, plain - way))
