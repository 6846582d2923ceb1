"""The protocol of methods: how something is learned, in one file, enrolled by one line in `trainers.methods`.

A method declares what is trainable, gives named loss terms for a batch, and exports what was learned. Loop, data,
checkpoints, previews, command line, REST, forms and file format are the same for all and not its business. Its settings
and the words for people stand in its file too, which therefore is read without torch: what needs torch is imported
inside its functions. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from trainers.settings import MethodConfig

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from pipelines.events import OnEvent, Preview
    from pipelines.models.components import Components
    from trainers.data.batches import Example
    from trainers.settings import DataConfig, TrainConfig


Draw = Callable[[int, "torch.Generator"], Any]
"""Gives the batch of an index; chance comes from the generator of the step."""


class Artifact(Protocol):
    """The result of a training: a concept, gated layers, or a model."""

    @property
    def partners(self) -> Sequence[Artifact]:
        """Return the results of the same run beside it, each written to a file of its own."""
        ...

    def described(self, recipe: Mapping[str, Any], base_fingerprint: str) -> Self:
        """Return the same with the settings of its training and the base in what it tells of itself."""
        ...

    def save(self, path: Path) -> Path:
        """Write it, whole or not at all."""
        ...

    def attach(self, components: Components) -> AbstractContextManager[Components]:
        """Give a base what was learned inside the `with`; afterwards the base is bit-identical."""
        ...


@dataclass(frozen=True)
class Trainable:
    """A base prepared for training.

    Attributes:
        components: the base with whatever is new in it.
        parameters: name -> the only tensors that are trained.
        templates: prompt templates with one `{}` for the token; none if only pictures' own captions will do.
        state: what the method wants to keep for its losses.
        figures: numbers to report beside the losses.
        rates: name -> factor on the learning rate, for those that learn at another pace.
        examine: told the pictures before anything is encoded; raises `DataError` if it cannot learn from them.
        completed: the pictures to learn from, made of those given, the settings of reading them and a seed.
        class_pictures: pictures of the class to learn beside them, each with the word of its class; read from or kept
            in the folder it is called with. None for a method that needs none.
        batches: makes batches of its own of the pictures, their settings and the share of the training that is over,
            0 to 1; the function it returns is called as `LatentSet.draw` is, with the index of the batch and the
            step's generator. None for latents with captions.
        preview: draws what is learned so far, after a number of steps; None for a picture of the token.
        sample: some of the examples, for a trial; about as many as asked, of which batches can be made as of all.
        notes: lines on what is to be known before the training starts.
        news: gives lines on what has happened since it was last asked, after each step.
    """

    components: Components
    parameters: Mapping[str, nn.Parameter]
    templates: tuple[str, ...]
    state: Any
    figures: Callable[[], dict[str, float]] = field(default=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    examine: Callable[[Sequence[Example]], None] = lambda examples: None
    completed: Callable[[Sequence[Example], DataConfig, int], Sequence[Example]] = lambda examples, data, seed: examples
    class_pictures: Callable[[Path, OnEvent, Callable[[], bool]], list[Example]] | None = None
    batches: Callable[[Sequence[Example], TrainConfig, DataConfig, Callable[[], float]], Draw] | None = None
    preview: Callable[[int], Preview] | None = None
    sample: Callable[[Sequence[Example], int], Sequence[Example]] = lambda examples, count: examples[:count]
    notes: Sequence[str] = ()
    news: Callable[[], Sequence[str]] = lambda: ()


@dataclass(frozen=True)
class Offer:
    """One kind of thing that a method is offered for on the page, in words for people who know no methods.

    Attributes:
        title: what the pictures show or what is learned of them.
        says: what it takes and costs, in a sentence.
        words: name of a setting -> its label and a value to suggest, for what a person has to fill in.
        settings: of the method, beside these.
        pairs: whether each picture shows two things that are to be named.
        pictures: whether it takes pictures; without, the base draws its own if there are none.
        hint: whether the word is asked for as the hint of a question in pictures, instead of in prompts.
    """

    title: str
    says: str
    words: Mapping[str, tuple[str, str]]
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    pairs: bool = False
    pictures: bool = True
    hint: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """Return the settings that the method is offered with, suggested words among them."""
        return {**self.settings, **{name: value for name, (_, value) in self.words.items()}}


Config = TypeVar("Config", bound=MethodConfig)


class Method(Protocol[Config]):
    """One way of learning."""

    name: str
    """As on the command line."""

    Settings: type[Config]
    """Its settings, a frozen pydantic model."""

    offers: tuple[Offer, ...]
    """Its offers on the page; the values of the first are settings that it can be tried with."""

    def recipe(self, family: str, config: Config) -> Mapping[str, Any]:
        """Return values for a model family, of its own or the shared settings, where they are not the defaults."""
        ...

    def prepare(
        self, components: Components, config: Config, generator: torch.Generator
    ) -> AbstractContextManager[Trainable]:
        """Make ready for training; the base is bit-identical after the `with`. Chance comes from `generator`."""
        ...

    def losses(self, trainable: Trainable, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Return named loss terms of a `Batch`, or what its own `batches` gave; the loop optimises their sum."""
        ...

    def export(self, trainable: Trainable) -> Artifact:
        """Return what is learned so far."""
        ...
