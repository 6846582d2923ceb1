"""Other weights of a denoiser, for some of its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.concepts.concept import Concept
from pipelines.models.components import Components


@dataclass(frozen=True)
class Weights:
    """Parameters of a denoiser with the values they have for some predictions.

    Attributes:
        values: parameter and value.
    """

    values: Sequence[tuple[torch.nn.Parameter, Tensor]] = ()

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Give the denoiser these weights while the `with` lasts; afterwards it has its own, bit for bit."""
        own = [parameter.data for parameter, _ in self.values]
        try:
            for parameter, value in self.values:
                parameter.data = value
            yield
        finally:
            for (parameter, _), value in zip(self.values, own, strict=True):
                parameter.data = value


def changed_names(components: Components, concepts: Sequence[Concept]) -> list[str]:
    """Return the parameters of the denoiser that concepts change, each once."""
    prefix = f"{components.family.network}."
    keys = dict.fromkeys(key for concept in concepts for key in concept.changes)
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


def values(components: Components, names: Sequence[str]) -> list[Tensor]:
    """Return copies of parameters of the denoiser."""
    return [components.denoiser.get_parameter(name).detach().clone() for name in names]


def weights(components: Components, names: Sequence[str], given: Sequence[Tensor]) -> Weights:
    """Return values for parameters of a denoiser, by their names."""
    return Weights(list(zip(map(components.denoiser.get_parameter, names), given, strict=True)))
