"""Other weights of a denoiser, for some of its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import replaced
from pipelines.models.components import Components


@dataclass(frozen=True)
class Weights:
    """Parameters that take the place of a denoiser's own for some predictions.

    Whole parameters change places, not their numbers, because one of a layer in few bits carries its changes beside it.

    Attributes:
        values: the module, the name of the parameter in it, and the parameter.
    """

    values: Sequence[tuple[nn.Module, str, torch.nn.Parameter]] = ()

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Give the denoiser these weights while the `with` lasts; afterwards it has its own."""
        own = [getattr(module, name) for module, name, _ in self.values]
        try:
            for module, name, parameter in self.values:
                replaced(module, name, parameter)
            yield
        finally:
            for (module, name, _), parameter in zip(self.values, own, strict=True):
                replaced(module, name, parameter)


def weights_of(components: Components, concepts: Sequence[Concept]) -> Weights:
    """Return the weights of the denoiser that concepts change, as they are now."""
    prefix = f"{components.family.network}."
    keys = dict.fromkeys(key for concept in concepts for key in concept.changes if key.startswith(prefix))
    values: list[tuple[nn.Module, str, torch.nn.Parameter]] = []
    for key in keys:
        path, _, leaf = key.removeprefix(prefix).rpartition(".")
        module = components.denoiser.get_submodule(path)
        values.append((module, leaf, getattr(module, leaf)))
    return Weights(values)
