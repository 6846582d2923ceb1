"""New words for a frozen text encoder: trainable rows beside its embedding table, in and out with a `with`.

The table itself is never resized or written, so gradients can only reach the new rows and the base is bit-identical
afterwards. Works for one text encoder or two, and nests: a second set of words stacks on the first.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import ConceptError
from pipelines.models.components import Components, row_widths, word_table
from pipelines.words import check_word, composed

_BARE = re.compile(r"\w+", re.UNICODE)


class RowsBeside(nn.Module):
    """An embedding that looks ids from `first` on up in its own rows, and all others in the table beside it.

    Args:
        table: the frozen embedding.
        rows: (n, dim), the only trainable tensor.
        first: id of the first new row.
    """

    def __init__(self, table: nn.Module, rows: nn.Parameter, first: int) -> None:
        super().__init__()
        self.table = table
        self.rows = rows
        self.first = first

    @property
    def weight(self) -> Tensor:
        """The frozen table; some readers look for its dtype and size."""
        weight = self.table.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., dim) of ids."""
        new = ids >= self.first
        known = self.table(ids.masked_fill(new, 0))
        learned = F.embedding((ids - self.first).clamp(0, len(self.rows) - 1), self.rows)
        return torch.where(new[..., None], learned.to(known.dtype), known)


def spaced(tokenizer: Any) -> bool:
    """Return whether a space belongs to the word behind it, as in byte-level vocabularies of language models."""
    return tokenizer(" a", add_special_tokens=False).input_ids != tokenizer("a", add_special_tokens=False).input_ids


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """Return the token ids of a word as it stands within a sentence: with its space, where that belongs to it."""
    text = f" {word}" if spaced(tokenizer) else word
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


@dataclass(frozen=True)
class NewWords:
    """A base with new words in it.

    Attributes:
        components: what understands the words.
        rows: one (vectors, dim) parameter for each text encoder.
        names: the token names, one for each vector: "<x>", "<x>_1", ...
    """

    components: Components
    rows: tuple[nn.Parameter, ...]
    names: tuple[str, ...]


def vector_names(token: str, vectors: int) -> tuple[str, ...]:
    """Names of a token's vectors, as diffusers counts them."""
    return (token, *(f"{token}_{i}" for i in range(1, vectors)))


def check_token(components: Components, token: str, vectors: int = 1) -> None:
    """Refuse a token that cannot be a new word.

    Raises:
        ConceptError: if it is empty, has spaces or prompt syntax, or is already a word of the base.
    """
    check_word(token)
    for tokenizer in components.tokenizers:
        require_new(tokenizer.get_vocab(), token, vectors, components.name)


def require_new(
    vocabulary: Collection[str],
    token: str,
    vectors: int,
    base: str,
    hint: str = "Choose another, for example in angle brackets: <my-fox>.",
) -> None:
    """Refuse a token that is a word of a vocabulary, that of what is called `base`.

    Raises:
        ConceptError: if it is.
    """
    for name in vector_names(token, vectors):
        if any(one in vocabulary for one in (name, f"{name.lower()}</w>", f"Ġ{name}", f"▁{name}")):
            raise ConceptError(f"The token {token!r} is already a word of {base} ({name!r}).", hint)


def single_rows(components: Components, word: str) -> tuple[Tensor, ...]:
    """The embedding row of a word in each text encoder, each (1, dim) float32.

    Raises:
        ConceptError: if the word is not exactly one token.
    """
    rows: list[Tensor] = []
    for tokenizer, encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        ids = word_ids(tokenizer, word)
        if len(ids) != 1:
            pieces = tokenizer.convert_ids_to_tokens(ids)
            raise ConceptError(
                f"The initializer {word!r} is {len(ids)} tokens for {components.name} ({' '.join(pieces)}), not one.",
                "Choose a single plain word near the thing, for example fox, dog or painting.",
            )
        rows.append(embed_ids(encoder, ids))
    return tuple(rows)


def embed_ids(encoder: nn.Module, ids: Sequence[int]) -> Tensor:
    """Embedding rows (n, dim) float32 of token ids, with words that are attached now included."""
    table = word_table(encoder)
    device = next(encoder.parameters()).device
    with torch.no_grad():
        return table(torch.tensor(list(ids), device=device)).detach().float().clone()


def _added(tokenizer: Any, names: Sequence[str]) -> list[AddedToken]:
    """Return new tokens for a tokenizer; where spaces belong to words they take theirs, which else stood alone."""
    left = spaced(tokenizer)
    return [AddedToken(n, normalized=False, single_word=bool(_BARE.fullmatch(n)), lstrip=left) for n in names]


@contextmanager
def new_words(components: Components, token: str, initial: Sequence[Tensor]) -> Iterator[NewWords]:
    """Add a word of one or several vectors for as long as the `with` lasts.

    Args:
        components: the base; its tokenizers are copied, its embedding modules put back on exit.
        token: the word.
        initial: (vectors, dim) for each text encoder; copied into new parameters, in float32.

    Raises:
        ConceptError: as `check_token`, or if the rows do not fit the text encoders.
    """
    vectors, token = len(initial[0]), composed(token)
    check_token(components, token, vectors)
    dims = row_widths(components)
    if [rows.shape[1] for rows in initial] != dims:
        raise ConceptError(
            f"{token} has rows of {[rows.shape[1] for rows in initial]} numbers, {components.name} needs {dims}.",
            "It was made for another model family; use the base it was trained on.",
        )
    names = vector_names(token, vectors)
    tokenizers = tuple(copy.deepcopy(tokenizer) for tokenizer in components.tokenizers)
    parameters: list[nn.Parameter] = []
    undo: list[tuple[Any, nn.Module, dict[str, int]]] = []
    expansions = dict(components.expansions)
    try:
        for tokenizer, encoder, rows in zip(tokenizers, components.text_encoders, initial, strict=True):
            tokenizer.add_tokens(_added(tokenizer, names))
            ids: Any = tokenizer.convert_tokens_to_ids(list(names))
            parameter = nn.Parameter(rows.detach().to(encoder.device, torch.float32, copy=True))
            table = word_table(encoder)
            holder: Any = getattr(encoder, "text_model", encoder)
            kept = {name: getattr(holder, name) for name in ("eos_token_id",) if hasattr(holder, name)}
            undo.append((encoder, table, kept))
            encoder.set_input_embeddings(RowsBeside(table, parameter, ids[0]))
            # Old configurations (eos_token_id 2) pool at the largest id, which would be the new word.
            if "eos_token_id" in kept:
                holder.eos_token_id = tokenizer.eos_token_id
            parameters.append(parameter)
            expansions[ids[0]] = tuple(ids)
        yield NewWords(replace(components, tokenizers=tokenizers, expansions=expansions), tuple(parameters), names)
    finally:
        for encoder, table, kept in reversed(undo):
            encoder.set_input_embeddings(table)
            holder = getattr(encoder, "text_model", encoder)
            for name, value in kept.items():
                setattr(holder, name, value)
