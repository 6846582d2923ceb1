"""Configuration of training, typed once; command line, TOML and web form are derived from it. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipelines.errors import DataError
from pipelines.request.settings import FileOf, Frozen, Quantised
from pipelines.words import Composed, file_stem
from trainers.several import further, require_further


class DataConfig(Frozen):
    """The training pictures, and how they are read."""

    images: Annotated[Path | None, FileOf("dataset")] = None
    """Folder of pictures, with captions in `.txt` files beside them; a slider without has the base draw its own."""

    resolution: int | None = Field(default=None, ge=16, le=4096)
    """Side in pixels that pictures are scaled to; the base model's own by default."""

    center_crop: bool = False
    """Crop to a square instead of squeezing."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of mirroring a picture."""

    buckets: bool = False
    """Keep the shape of each picture: batches of equal aspect ratio instead of squares."""

    smaller_copies: int = Field(default=0, ge=0, le=64)
    """Copies of each picture to learn from beside it, scaled to between 0.4 and 1 and moved, the surroundings going on
    from the picture's rim: the thing is then learned at any size and place."""

    cache: Annotated[Path | None, FileOf("own")] = None
    """Folder that keeps encoded pictures between runs."""

    skip_doubtful: bool = False
    """Learn without pictures that cannot be read or look like the mask of another, instead of stopping to name them."""


class TrainConfig(Frozen):
    """Duration and speed of a training."""

    steps: int = Field(default=3000, ge=1, le=1_000_000)
    """Optimiser steps."""

    minutes: float | None = Field(default=None, gt=0)
    """End after so much time if that is sooner; a learning rate that falls then falls towards it."""

    batch: int = Field(default=4, ge=1, le=1024)
    """Pictures a step."""

    accumulate: int = Field(default=1, ge=1, le=1024)
    """Batches per optimiser step, where memory is short; the gradient is their mean."""

    learning_rate: float = Field(default=5e-4, gt=0, le=10)
    """Learning rate, before `scale_lr`."""

    scale_lr: bool = True
    """Multiply the learning rate by batch and accumulation, as the official recipe does."""

    weight_decay: float = Field(default=1e-2, ge=0, le=1)
    """AdamW's decoupled weight decay."""

    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up of the learning rate."""

    decay: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls to 0 in a line; 0 keeps it constant."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random numbers; the same seed gives the same result."""

    preview_every: int = Field(default=0, ge=0)
    """Steps between preview pictures; 0 for none."""

    candidates: int = Field(default=0, ge=0, le=20)
    """Keep the concept this many times, evenly over the run, beside its file; `studio choose` proposes one of them."""

    max_grad_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; larger ones are scaled down to it."""

    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of a moving average of the parameters, which is then the result; 0 for none, 0.99 to 0.9999 are usual."""

    optimizer: Literal["adamw", "adamw8bit", "muon", "schedule-free"] = "adamw"
    """adamw8bit keeps its moments in 8 bits; needs bitsandbytes and a GPU. muon takes the matrices of hidden layers,
    which learn faster so from scratch, and AdamW the rest. schedule-free (arXiv:2405.15682) needs no decay of the rate,
    and schedulefree."""

    quantise: Quantised | None = None
    """Keep frozen weights in 8 or 4 bits a number, beside which low-rank changes and words are learned: a half or a
    quarter of the memory of bf16, a little slower. What is learned serves the base as it is."""

    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """bf16 or fp16: frozen parts are kept in bfloat16 or float16, for a GPU; trained parts stay float32."""

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.learning_rate * (self.batch * self.accumulate if self.scale_lr else 1)


class ObjectiveConfig(Frozen):
    """Weights of the denoising error."""

    snr_gamma: float | None = Field(default=None, gt=0)
    """Min-SNR weighting of timesteps (arXiv:2303.09556) with this gamma; 5 is the paper's. All count alike without."""

    offset_noise: float = Field(default=0.0, ge=0, le=1)
    """Strength of noise shared by a whole channel, which teaches very dark and very bright pictures; 0.1 is usual."""

    spread_timesteps: bool = False
    """Spread the timesteps evenly over each batch, for a calmer gradient, instead of drawing each by itself."""

    sigmas: Literal["logit-normal", "uniform"] | None = None
    """Noise levels that a rectified flow is taught, before the shift; logit-normal by default (arXiv:2403.03206)."""

    shift: float | None = Field(default=None, gt=0, le=20)
    """Shift of those levels towards noise, 1 for none; the family's own by default."""

    background: float = Field(default=0.1, ge=0, le=1)
    """Weight of what lies outside a picture's mask, where there are masks."""


NUM_CLASS_IMAGES = 100


class PriorConfig(Frozen):
    """Prior preservation: the class stays as it is while one of its members is learned."""

    class_word: str = Field(min_length=1)
    """The kind of thing, as the base calls it: fox, dog, backpack."""

    prior: Literal["none", "model", "pictures"] = "model"
    """"pictures": also learn the class from pictures the base made of it beforehand, as in the paper. "model": make
    the base's own prediction for the class word the target, which needs no pictures. "none": let the class drift."""

    prior_scope: Literal["class", "world"] = "class"
    """With prior "model", what is held fast: the class alone, as in the paper, or for every second picture an ordinary
    caption of other things too, so that the subject stays out of what stands beside it."""

    prior_every: int = Field(default=1, ge=1, le=64)
    """With prior "model", hold the base fast on every so many-th picture of a batch; 4 saves a third of the time."""

    prior_weight: float = Field(default=1.0, ge=0, le=100)
    """Weight of the prior term."""

    class_images: Annotated[Path | None, FileOf("dataset")] = None
    """Folder of class pictures; without it they are generated, and kept for this base and prompt."""

    num_class_images: int = Field(default=NUM_CLASS_IMAGES, ge=1, le=100_000)
    """Number of class pictures."""

    class_prompt: str | None = None
    """Prompt of the class pictures; must hold the class word. The training prompts with the class word by default."""

    @model_validator(mode="after")
    def _class_prompt_holds_the_class(self) -> Self:
        if self.class_prompt is not None and self.class_word not in self.class_prompt:
            raise ValueError(
                f"the class prompt {self.class_prompt!r} lacks the class word {self.class_word!r}; "
                "write for example 'a photo of a " + self.class_word + "'"
            )
        given = {"class_images": self.class_images, "class_prompt": self.class_prompt}
        meant = [name for name, value in given.items() if value is not None]
        meant += ["num_class_images"] * (self.num_class_images != NUM_CLASS_IMAGES)
        if meant and self.prior != "pictures":
            raise ValueError(f"{', '.join(meant)} belong to class pictures; say prior 'pictures' too")
        return self


class MethodConfig(Frozen):
    """Settings of a method, with what the loop has to know of any of them."""

    unused: ClassVar[frozenset[str]] = frozenset()
    """Shared settings that mean nothing for the method; they are not offered, and refused if they are given."""

    encodes_once: ClassVar[bool] = True
    """False if pictures or captions are encoded at every step, by networks that therefore stay on the device."""

    gives_folder: ClassVar[bool] = False
    """True if the result is a folder instead of a `.safetensors` file."""

    @property
    def triggers(self) -> tuple[str, ...]:
        """Return the words that call each concept of the run in prompts, its own first."""
        return ()

    @property
    def trigger(self) -> str:
        """Return the words in prompts for the run's own concept; empty if it learns no concept."""
        return self.triggers[0] if self.triggers else ""

    @property
    def spoken(self) -> str:
        """Return the word that captions of its pictures must say; empty for what no prompt has to name."""
        return self.trigger

    @property
    def drawn_prompts(self) -> tuple[str, ...]:
        """Return prompts of pictures that the base draws to learn on where no folder is given; none if it must be."""
        return ()

    def result(self, base: str) -> Path:
        """Return the place of the result on `base` if no other is asked for, within a folder of outputs."""
        return Path("concepts") / f"{file_stem(self.trigger)}.safetensors"

    def folders(self, images: Path | None) -> tuple[tuple[Path | None, str | None], ...]:
        """Return the folders of pictures to learn from, each with the word of what it shows if there are several.

        Args:
            images: the folder that the run names.
        """
        return ((images, None),)

    @property
    def new_word(self) -> str | None:
        """Return the word it adds to the base, if any."""
        return None

    @property
    def batches_apart(self) -> bool:
        """Return whether each of several words has batches of its own."""
        return False

    @property
    def trains_weights(self) -> bool:
        """Return whether weights of the UNet themselves are trained, which then stay float32."""
        return False

    @property
    def trains_text(self) -> bool:
        """Return whether gradients go through the text encoders, which then stay float32."""
        return True


def require_folder(folder: Path | None) -> Path:
    """Return the folder of pictures that a run names.

    Raises:
        DataError: if it names none.
    """
    if folder is None:
        raise DataError("Learning requires pictures.", "Give a folder of them with --images.")
    return folder


@dataclass(frozen=True)
class Subject:
    """One of the things that a run learns.

    Attributes:
        token: its identifier or new word.
        class_word: the kind of thing it is.
        trigger: words for it in prompts.
        images: folder of its pictures; None for the run's own.
    """

    token: str
    class_word: str
    trigger: str
    images: Path | None = None


class SubjectConfig(MethodConfig, PriorConfig, ObjectiveConfig):
    """Binding one subject, or several in one run, each with its pictures, its word and its class."""

    token: Composed = Field(min_length=1, max_length=60)
    """The subject's identifier or new word."""

    also: tuple[Annotated[str, FileOf("dataset", after=2)], ...] = ()
    """A further subject to learn in the same run, as DIR:TOKEN:CLASS, for example my-cat:<my-cat>:cat. May be given
    several times. Learned together they keep apart; each becomes a concept of its own."""

    cut_mix: float = Field(default=0.0, ge=0, lt=1)
    """Share of training pictures that are two of them side by side, of different subjects, with a caption that says
    where each stands (Cut-Mix of SVDiff, arXiv:2303.11305); needs `also`."""

    kind: Literal["subject", "object", "style"] = "subject"
    """Kind of concept to learn."""

    templates: Literal["auto", "object", "style", "pocket"] = "auto"
    """Prompt templates for pictures without captions; "auto" is "a photo of {}", and for `pocket` its own few."""

    @property
    def learns_words(self) -> bool:
        """Return whether the tokens are new words; else they are words of the base that stand before the class."""
        return True

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The subjects of the run, its own first."""
        others = ((one.token, one.word, one.images) for one in further(self.also))
        listed = [(self.token, self.class_word, None), *others]
        return tuple(
            Subject(token, kind, token if self.learns_words else f"{token} {kind}", images)
            for token, kind, images in listed
        )

    @property
    def triggers(self) -> tuple[str, ...]:
        """Return for each subject its new word, or its identifier with its class."""
        return tuple(subject.trigger for subject in self.subjects)

    def folders(self, images: Path | None) -> tuple[tuple[Path | None, str | None], ...]:
        """Return the folder of each subject, with its words if there are several."""
        subjects = self.subjects
        return tuple((one.images or images, one.trigger if len(subjects) > 1 else None) for one in subjects)

    @property
    def new_word(self) -> str | None:
        """The word it adds to the base, if any."""
        return self.token if self.learns_words else None

    def plain(self, caption: str) -> str:
        """Return the caption with the class word in the place of each subject."""
        classes = {subject.trigger: subject.class_word for subject in self.subjects}
        longest = sorted(classes, key=len, reverse=True)  # "zz fox" holds "z fox"
        return re.sub("|".join(map(re.escape, longest)), lambda found: classes[found[0]], caption)

    @model_validator(mode="after")
    def _subjects_differ(self) -> Self:
        require_further("also", self.also, "DIR:TOKEN:CLASS", "subjects", self.token)
        given = [name for name in ("class_images", "class_prompt") if getattr(self, name) is not None]
        if self.also and given:
            raise ValueError(f"{given[0]} is of one class; with also leave it out, and each class gets pictures made")
        if self.cut_mix and not self.also:
            raise ValueError("cut_mix needs a second subject to stand beside the first; name it with also")
        return self


class LowRankConfig(Frozen):
    """Shape of low-rank changes (LoRA)."""

    rank: int = Field(default=4, ge=1, le=512)
    """Rank of each change: 1 to 8 for a thing, 16 to 64 for a style or a face."""

    alpha: float | None = Field(default=None, gt=0)
    """Changes are scaled by alpha / rank; the rank by default."""

    targets: Literal["attention", "transformer", "all"] = "attention"
    """Layers of the UNet to change: the attention projections, all of the transformers, or the convolutions too. Layers
    for boxes are never changed."""

    dora: bool = False
    """Learn the direction and the length of each row apart (DoRA)."""


class TokenConfig(MethodConfig):
    """A method that learns a word."""

    token: Composed = Field(min_length=1, max_length=100)
    """The new word, for example `<my-fox>`."""

    init: str = Field(min_length=1)
    """An existing word of one token near the thing; training starts from it."""

    vectors: int = Field(default=1, ge=1, le=64)
    """Embedding vectors of the word: more hold more detail and edit less well."""

    @property
    def triggers(self) -> tuple[str, ...]:
        """Return the new word."""
        return (self.token,)

    @property
    def new_word(self) -> str | None:
        """Return the new word."""
        return self.token


class Destination(Frozen):
    """The base of a training, and the file of its result."""

    output: Annotated[Path | None, FileOf("own")] = None
    """The file of what is learned, or the folder of a model; outputs/concepts/TOKEN.safetensors, or a name of the base
    in outputs/, by default."""

    overwrite: bool = False
    """Replace a result that is there."""

    base: Annotated[str, FileOf("own")] = "pocket"
    """pocket, a diffusers folder, a .safetensors checkpoint, or a hub id."""

    keep_every: int = Field(default=50, ge=1)
    """Steps between writes of the training state; a large one is written less often."""

    preview: bool = True
    """Draw a picture of what was learned, with a fixed seed, beside its file."""
