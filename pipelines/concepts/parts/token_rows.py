"""Token rows: the part of a concept that is a new word, as rows beside the embedding table of each text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.headers import WORD, words
from pipelines.concepts.lora_keys import parsed
from pipelines.concepts.token_embeddings import embed_ids, new_words, word_ids
from pipelines.errors import ConceptError
from pipelines.models.components import Components, row_widths, word_table


@dataclass(frozen=True)
class TokenRows:
    """A new word.

    Attributes:
        rows: (vectors, dim) float32 for each text encoder of the concept's family.
    """

    rows: tuple[Tensor, ...]

    @property
    def vectors(self) -> int:
        """Number of embedding vectors of the word."""
        return len(self.rows[0])

    def fits(self, components: Components, card: ConceptCard) -> None:
        """Refuse a base whose text encoders read rows of another length.

        Raises:
            ConceptError: with both lengths.
        """
        check_widths(components, card, [row.shape[-1] for row in self.rows])

    @contextmanager
    def attach(self, components: Components, card: ConceptCard, strength: float) -> Iterator[Components]:
        """Add the word; a strength below 1 blends its rows toward the word training started from.

        Raises:
            ConceptError: if the word is taken.
        """
        rows = blended(components, card, self.rows, strength)
        with new_words(components, card.token, rows) as added:
            for parameter in added.rows:
                parameter.requires_grad_(False)
            yield added.components

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows by the names they have beside changed weights."""
        return {f"{WORD}{i}": part for i, part in enumerate(self.stored())}

    def stored(self) -> list[Tensor]:
        """Return the rows of each text encoder as they are written, float32 on the CPU."""
        return [part.detach().cpu().float().contiguous() for part in self.rows]

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TokenRows | None:
        """Read the word of a file in any of the known layouts; further words of it are left out."""
        return cls.named(tensors, words([name for name in tensors if parsed(name) is None]).names)

    @classmethod
    def named(cls, tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> TokenRows | None:
        """Read the word in tensors of these names, one for each text encoder; None if there are no names."""
        rows = tuple(tensors[name].float().reshape(-1, tensors[name].shape[-1]) for name in names)
        return cls(rows) if rows else None


def check_widths(components: Components, card: ConceptCard, widths: list[int]) -> None:
    """Refuse a base whose text encoders read rows of other lengths than `widths`, one for each encoder.

    Raises:
        ConceptError: with both lengths.
    """
    wanted = row_widths(components)
    if widths != wanted:
        raise ConceptError(
            f"{card.token} was made for {card.base or 'another model'}: "
            f"its rows have {', '.join(map(str, widths))} numbers, "
            f"and the text encoders of {components.name} ({components.family.name}) read "
            f"{', '.join(map(str, wanted))}.",
            "Use it with its own base, or train it again on this one.",
        )


def blended(components: Components, card: ConceptCard, rows: tuple[Tensor, ...], strength: float) -> tuple[Tensor, ...]:
    """Blend rows (..., dim) of each text encoder toward the word training started from.

    Args:
        components: the base.
        card: names that word; if it is unknown, the average word of the base takes its place.
        rows: what was learned.
        strength: 0 gives the word training started from, 1 the rows themselves.
    """
    if strength == 1.0:
        return rows
    mixed: list[Tensor] = []
    for own, encoder, tokenizer in zip(rows, components.text_encoders, components.tokenizers, strict=False):
        ids = word_ids(tokenizer, card.init) if card.init else []
        table = word_table(encoder)
        start = embed_ids(encoder, ids[:1]) if ids else table.weight.detach().float().mean(0, keepdim=True)
        start = start.to(own)
        mixed.append(start + strength * (own - start))
    return tuple(mixed)
