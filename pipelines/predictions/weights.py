"""Other weights of a denoiser, for some of its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipelines.concepts.concept import Concept
from pipelines.models.components import Components


@dataclass(frozen=True)
class Weights:
    """Parameters of a denoiser as they are for some predictions.

    Attributes:
        values: layer, name of its parameter, and the parameter that takes its place.
    """

    values: Sequence[tuple[torch.nn.Module, str, torch.nn.Parameter]] = ()

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Give the denoiser these weights while the `with` lasts; afterwards it has its own, bit for bit."""
        own = [getattr(layer, leaf) for layer, leaf, _ in self.values]
        try:
            for layer, leaf, here in self.values:
                setattr(layer, leaf, here)
            yield
        finally:
            for (layer, leaf, _), before in zip(self.values, own, strict=True):
                setattr(layer, leaf, before)


def changed_names(components: Components, concepts: Sequence[Concept]) -> list[str]:
    """Return the parameters of the denoiser that concepts change, each once."""
    prefix = f"{components.family.network}."
    keys = dict.fromkeys(key for concept in concepts for key in concept.changes)
    return [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]


def values(components: Components, names: Sequence[str]) -> list[torch.nn.Parameter]:
    """Return parameters of the denoiser as they are now; a concept puts others in their places."""
    return [components.denoiser.get_parameter(name) for name in names]


def weights(components: Components, names: Sequence[str], given: Sequence[torch.nn.Parameter]) -> Weights:
    """Return parameters for the places of a denoiser by these names."""
    places = [name.rpartition(".") for name in names]
    layers = [(components.denoiser.get_submodule(path), leaf) for path, _, leaf in places]
    return Weights([(layer, leaf, one) for (layer, leaf), one in zip(layers, given, strict=True)])
