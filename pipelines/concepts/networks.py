"""Concepts of a picture as AUTOMATIC1111 names them in it: `<lora:NAME:1>`, `Lora hashes` and `TI hashes`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.concepts.card import read_header, sum_of_numbers
from pipelines.concepts.concept import Concept
from pipelines.concepts.formats.delta_tensors import same
from pipelines.errors import ConceptError
from pipelines.pictures.metadata import Network
from pipelines.request.request import ConceptUse

SHORT = 12
"""Digits of a sum that are told."""


def networks(uses: Sequence[ConceptUse], concepts: Sequence[Concept]) -> tuple[Network, ...]:
    """The files that were used, in order.

    Weights that several share, because they were learned together, are one LoRA at the largest strength, as they are
    applied.

    Args:
        uses: of the request.
        concepts: what each of them is.
    """
    listed: list[Network] = []
    for number, (use, concept) in enumerate(zip(uses, concepts, strict=True)):
        together = [n for n, other in enumerate(concepts) if concept.changes and same(other.changes, concept.changes)]
        if concept.changes and together[0] != number:
            continue
        path = Path(use.source)
        if not path.is_file():  # taken from memory
            continue
        strength = max([uses[n].strength for n in together], default=use.strength)
        name = re.sub(r"[:,<>]", "", path.stem)
        word = "" if concept.changes else concept.token
        listed.append(Network(name, _sum(path, bool(concept.changes))[:SHORT], strength, word))
    return tuple(listed)


def _sum(path: Path, lora: bool) -> str:
    """The SHA-256 by which AUTOMATIC1111 knows a file: of a LoRA what its trainer says, or of its numbers alone."""
    if not lora:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        said = read_header(path).get("__metadata__", {}).get("sshs_model_hash", "")
    except ConceptError:
        said = ""
    return said if re.fullmatch(r"[0-9a-f]{12,64}", said) else sum_of_numbers(path)
