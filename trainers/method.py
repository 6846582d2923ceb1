"""The protocol of methods: how something is learned, in one file, enrolled by one line in `trainers.methods`.

A method declares what is trainable, gives named loss terms for a batch, and exports what was learned. Loop, data,
checkpoints, previews, command line, forms and file format are the same for all and not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pipelines.concepts.concept import Concept
from pipelines.models.components import Components
from trainers.data.batches import Batch, Example


@dataclass(frozen=True)
class Trainable:
    """A base prepared for training.

    Attributes:
        components: the base with whatever is new in it.
        parameters: name -> the only tensors that are trained.
        wordings: prompt templates with one `{}` for the token; none if only pictures' own captions will do.
        state: what the method wants to keep for its losses.
        figures: numbers to report beside the losses.
        rates: name -> factor on the learning rate, for those that learn at another pace.
        examine: told the pictures before anything is encoded; raises `DataError` if it cannot learn from them.
    """

    components: Components
    parameters: Mapping[str, nn.Parameter]
    wordings: tuple[str, ...]
    state: Any
    figures: Callable[[], dict[str, float]] = field(default=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    examine: Callable[[Sequence[Example]], None] = lambda examples: None


class Method(Protocol):
    """One way of learning."""

    name: ClassVar[str]
    """As on the command line."""
    Config: ClassVar[Any]
    """Its settings, a frozen pydantic model; `trigger` is what prompts say to call the concept, `new_word` the word it
    adds to the base, or None; `trains_weights` and `trains_text` say what has to stay float32."""

    def recipe(self, family: str, config: Any) -> Mapping[str, Any]:
        """Values for a model family, of this method's or the shared settings, where they are not the defaults."""
        ...

    def prepare(
        self, components: Components, config: Any, generator: torch.Generator
    ) -> AbstractContextManager[Trainable]:
        """Make ready for training; the base is bit-identical after the `with`. Chance comes from `generator`."""
        ...

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Named loss terms of a batch; the loop optimises their sum."""
        ...

    def export(self, trainable: Trainable) -> Concept:
        """Return the concept as it is learned so far."""
        ...
