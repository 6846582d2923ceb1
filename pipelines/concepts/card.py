"""A concept's card: what was learned, how, on which base. Read from a safetensors header without torch.

The header is attacker-controlled when a file comes from somewhere else, so it is read with a size cap, strict JSON
without duplicate keys, and offsets that must tile the data exactly.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from pipelines.concepts.headers import VECTOR_LIMIT, described
from pipelines.errors import ConceptError
from pipelines.request.request import Frozen, problems
from pipelines.request.texts import without_folders
from pipelines.words import Composed

CARD_KEY = "promptstudio.card"
HASH_KEY = "modelspec.hash_sha256"
HEADER_LIMIT = 4 << 20  # bytes; a concept's header is a few KB, a large LoRA's some hundred
TENSOR_LIMIT = 20_000
CARD_LIMIT = 64 << 10  # letters; a card has a few thousand

Kind = Literal["object", "style", "subject", "relation", "slider"]


class ConceptCard(Frozen):
    """The card of a concept, as its file carries it."""

    token: Composed = Field(min_length=1, max_length=100)
    """The word prompts use, for example `<my-fox>`."""
    kind: Kind = "object"
    """The kind of thing that was learned."""
    method: str = "textual-inversion"
    """Name of the method that learned it."""
    family: str = ""
    """Model family: pocket, sd1, sd2 or sdxl; empty if unknown."""
    base: str = ""
    """Name of the base model it was trained on."""
    base_fingerprint: str = ""
    """`Components.fingerprint()` of that base."""
    vectors: int = Field(default=1, ge=0, le=VECTOR_LIMIT)
    """Embedding vectors of the token; 0 for a concept of changed weights alone, called by words the base has."""
    init: str = ""
    """The word training started from: the kind of thing it is, as the base calls it."""
    left: str = ""
    """Of a relation: the things it was learned between, on its left side."""
    right: str = ""
    """Those on its right side."""
    example: str = ""
    """A sentence that uses it."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration of the run."""
    scores: dict[str, float] = Field(default_factory=dict)
    """Figures of `studio score`."""
    created: str = ""
    """Time of its training, ISO 8601."""

    @property
    def strengths(self) -> tuple[float, float]:
        """The least and the largest strength it may be used with: a word has no opposite, changed weights have."""
        return (0.0, 2.0) if self.vectors else (-4.0, 4.0)

    def require_strength(self, strength: float) -> None:
        """Refuse a strength that means nothing.

        Raises:
            ConceptError: naming the range.
        """
        low, high = self.strengths
        if not low <= strength <= high:
            why = " is a word, which has no opposite" if strength < 0 else ""
            raise ConceptError(
                f"The strength {strength:g} of {self.token} is not between {low:g} and {high:g}"
                + (f": {self.token}{why}." if why else "."),
                "Give one in between; sliders and LoRAs without a word take from -4 to 4.",
            )

    @field_validator("base", "recipe")
    @classmethod
    def _says_no_folders(cls, value: Any) -> Any:
        """Names of bases and pictures stay, where they lay does not: the file is made to be given away."""
        return _named(value)


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, dict):
        return {name: _named(one) for name, one in value.items()}
    return [_named(one) for one in value] if isinstance(value, list | tuple) else value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key appears twice")
    return dict(pairs)


def read_header(path: Path) -> dict[str, Any]:
    """The validated header of a safetensors file.

    Raises:
        ConceptError: if the file is missing, no safetensors file, or its header is damaged.
    """
    hint = "Check the path, or download or train the concept again."
    try:
        size = path.stat().st_size if path.is_file() else -1
    except OSError:  # a name no file system takes
        size = -1
    if size < 0:
        raise ConceptError(f"There is no concept file {str(path)[:300]}.", hint)
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            # Only now: the first byte of a good file is the low byte of a length, which may be any.
            if start[:1] == b"\x80" or start[:2] == b"PK":
                raise ConceptError(
                    f"{path.name} is a pickle, which can run code when it is read.", "Ask for the .safetensors file."
                )
            raise ConceptError(f"{path.name} is not a safetensors file (header length {length}).", hint)
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        _check_layout(header, size - 8 - length)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ConceptError(f"The header of {path.name} is damaged: {error}.", hint) from None
    return header


def sum_of_numbers(path: Path) -> str:
    """The SHA-256 of all bytes behind the header of a safetensors file, 64 hex digits."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        stream.seek(8 + length)
        return hashlib.file_digest(stream, "sha256").hexdigest()


_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
          "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip


def _check_layout(header: dict[str, Any], available: int) -> None:
    if not isinstance(header, dict) or len(header) > TENSOR_LIMIT:
        raise ValueError("it is no table of tensors")
    metadata = header.get("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata must be text")
    place = 0
    for begin, end in sorted(_span(name, entry, available) for name, entry in header.items() if name != "__metadata__"):
        if begin != place:
            raise ValueError("tensors overlap or leave gaps")
        place = end
    if place != available:
        raise ValueError(f"{available} bytes of data where {place} were announced")


def _span(name: str, entry: dict[str, Any], available: int) -> tuple[int, int]:
    """Begin and end of a tensor's data, checked against its shape."""
    begin, end = entry["data_offsets"]
    count = 1
    for extent in entry["shape"]:
        if not isinstance(extent, int) or isinstance(extent, bool) or extent < 0:
            raise ValueError(f"tensor {name!r:.40} has an impossible shape")
        count = min(count * extent, available + 1)  # the whole product of absurd ones would take minutes
    if not (type(begin) is type(end) is int) or begin < 0 or end - begin != count * _BYTES[entry["dtype"]]:
        raise ValueError(f"tensor {name!r:.40} has the wrong length")
    return begin, end


def read_card(path: Path) -> ConceptCard:
    """The card of a concept file; files of other programs get one made from what their header tells.

    Raises:
        ConceptError: as `read_header`, or if the card itself is damaged.
    """
    return card_of(path.name, read_header(path))


def card_of(file: str, header: dict[str, Any]) -> ConceptCard:
    """The card in a header, or one made from what the header tells.

    Raises:
        ConceptError: if it is no concept of a known layout, or the card is damaged.
    """
    metadata: dict[str, str] = header.get("__metadata__", {})
    try:
        own = ConceptCard.model_validate(described(file, header))
        if CARD_KEY not in metadata:
            return own
        if len(metadata[CARD_KEY]) > CARD_LIMIT:
            raise ConceptError(
                f"The card of {file} has {len(metadata[CARD_KEY]):,} letters; at most {CARD_LIMIT:,} are read.",
                "Get the file again.",
            )
        card = ConceptCard.model_validate_json(metadata[CARD_KEY])
    except ValidationError as error:
        raise ConceptError(f"The card of {file} is damaged: {problems(error)}", "Train it again.") from None
    if card.vectors != own.vectors:
        raise ConceptError(f"{file} does not hold the {card.vectors} vectors its card tells of.", "Get it again.")
    return card
