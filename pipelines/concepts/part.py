"""Part: one kind of thing that a concept adds to a base. A concept is a card and a tuple of parts. Needs no torch.

Token rows and changed weights are the first two; other programs have layouts for them, by which they are read. A
further part stores its tensors behind a prefix of its own, which is registered in `registry` with the part's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.concepts.card import ConceptCard
    from pipelines.models.components import Components


class Part(Protocol):
    """One kind of thing that a concept adds to a base."""

    @property
    def vectors(self) -> int:
        """Number of embedding vectors of the word that this part adds; 0 if it adds no word."""
        ...

    def fits(self, components: Components, card: ConceptCard) -> None:
        """Refuse a base this part was not made for.

        Raises:
            ConceptError: with what was expected and what the base has.
        """
        ...

    def attach(self, components: Components, card: ConceptCard, strength: float) -> AbstractContextManager[Components]:
        """Give the base this part while the `with` lasts; afterwards it is bit-identical to before.

        Args:
            components: the base, which fits.
            card: of the concept; has the word.
            strength: 0 for what training started from, 1 for what was learned.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as they are stored, float32 or as learned, on the CPU, each behind the part's prefix."""
        ...

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Self | None:
        """Make the part from tensors of a file, or return None if they hold none of its kind.

        Args:
            tensors: those behind the part's prefix.
            metadata: of the file's header.

        Raises:
            ConceptError: if they are damaged.
        """
        ...
