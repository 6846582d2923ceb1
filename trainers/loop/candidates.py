"""Concepts kept on the way of a training, of which one becomes the result: where they are. Needs no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.concepts.card import HASH_KEY, read_header
from pipelines.errors import ConceptError
from pipelines.files import whole_file


def candidate_steps(steps: int, count: int) -> frozenset[int]:
    """The steps after which a candidate is kept, evenly spread, the last among them; fewer where there are fewer steps.

    >>> sorted(candidate_steps(200, 5))
    [40, 80, 120, 160, 200]
    """
    return frozenset(round(steps * (number + 1) / count) for number in range(count)) - {0}


def candidates_folder(concept: Path) -> Path:
    """Where the candidates of a concept file are: X.steps beside X.safetensors."""
    return concept.with_name(f"{concept.stem}.steps")


def candidate(folder: Path, step: int) -> Path:
    """The file of the candidate of a step, in the folder that keeps them."""
    return folder / f"{step:07d}.safetensors"


def candidates(concept: Path) -> dict[int, Path]:
    """Steps -> file of the candidates of a concept that are there."""
    found = sorted(candidates_folder(concept).glob("[0-9]*.safetensors"))
    return {int(path.stem): path for path in found if path.stem.isdecimal() and path.is_file()}


def kept_step(concept: Path) -> int | None:
    """The step of the candidate that a concept file is, by the sums in their headers; None if it is none of them.

    Raises:
        ConceptError: if one of them cannot be read.
    """

    def digest(path: Path) -> str:
        return read_header(path).get("__metadata__", {}).get(HASH_KEY, "")

    own = digest(concept)
    return next((step for step, path in candidates(concept).items() if own and digest(path) == own), None)


def take(concept: Path, step: int) -> None:
    """Put the candidate of a step in the place of the concept; all candidates stay, so it can be undone.

    Raises:
        ConceptError: if there is none of that step.
    """
    kept = candidates(concept)
    if step not in kept:
        there = ", ".join(map(str, kept)) or "none; --candidates keeps some"
        raise ConceptError(f"{concept.stem} has no candidate of step {step}.", f"There are: {there}.")
    with whole_file(concept) as temporary:
        shutil.copyfile(kept[step], temporary)
