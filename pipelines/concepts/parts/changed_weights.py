"""Changed weights: the part of a concept that is changes of the base's own weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from pipelines.concepts import weight_deltas
from pipelines.concepts.card import ConceptCard
from pipelines.concepts.formats.delta_tensors import LORA_METADATA, read_stored, stored
from pipelines.concepts.formats.original_tensors import in_our_names
from pipelines.concepts.weight_deltas import Change
from pipelines.errors import ConceptError
from pipelines.models.components import Components


@dataclass(frozen=True)
class ChangedWeights:
    """Changes of the base's weights.

    Attributes:
        changes: `unet.path.weight` (or `text_encoder.`, `text_encoder_2.`) -> what was learned for that weight.
    """

    changes: Mapping[str, Change]

    @property
    def vectors(self) -> int:
        """Return 0: weights add no word."""
        return 0

    def fits(self, components: Components, card: ConceptCard) -> None:
        """Refuse a base that lacks one of these weights, or has it in another shape.

        Raises:
            ConceptError: naming the first such weight.
        """
        weight_deltas.check_fits(components, self.changes, card.token)

    @contextmanager
    def attach(self, components: Components, card: ConceptCard, strength: float) -> Iterator[Components]:
        """Lay the changes in; a strength of 0 leaves the weights as they are."""
        with weight_deltas.applied(components, self.changes, strength):
            yield components

    def tensors(self) -> dict[str, Tensor]:
        """Return the changes in PEFT's names, whole differences by the weight's name with `.diff`."""
        return stored(self.changes)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ChangedWeights | None:
        """Read the changes of a file in any of the known spellings; names that are none are left out.

        Raises:
            ConceptError: if half of a pair is missing, or the strength cannot be told.
        """
        lora = json.loads(metadata.get(LORA_METADATA, "{}"))
        changes = in_our_names(read_stored(tensors, lora if isinstance(lora, dict) else {}))
        if changes and not any(one.acts() for one in changes.values()):
            raise ConceptError(
                f"The file changes nothing: all numbers of its {len(changes)} changes are zero, such as those of "
                f"{next(iter(changes))}.",
                "Get or train it again; a training that has not begun leaves such a file.",
            )
        return cls(changes) if changes else None
