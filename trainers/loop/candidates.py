"""Files of candidates: concepts saved during a training, of which one becomes the result. Needs no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.concepts.card import HASH_KEY, read_header
from pipelines.errors import ConceptError
from pipelines.files import whole_file


def candidate_steps(steps: int, count: int) -> frozenset[int]:
    """Return the steps after which a candidate is saved, evenly spread, the last among them.

    >>> sorted(candidate_steps(200, 5))
    [40, 80, 120, 160, 200]
    """
    return frozenset(round(steps * (number + 1) / count) for number in range(count)) - {0}


def candidates_folder(concept: Path) -> Path:
    """Return the folder of the candidates of a concept file: X.steps beside X.safetensors."""
    return concept.with_name(f"{concept.stem}.steps")


def candidate(folder: Path, step: int) -> Path:
    """Return the file of the candidate of a step, in its folder."""
    return folder / f"{step:07d}.safetensors"


def candidates(concept: Path) -> dict[int, Path]:
    """Return steps -> file of the candidates of a concept that exist."""
    found = sorted(candidates_folder(concept).glob("[0-9]*.safetensors"))
    return {int(path.stem): path for path in found if path.stem.isdecimal() and path.is_file()}


def kept_step(concept: Path) -> int | None:
    """Return the step of the candidate that a concept file equals, by the checksums in their headers; or None.

    Raises:
        ConceptError: if one of them cannot be read.
    """

    def digest(path: Path) -> str:
        return read_header(path).get("__metadata__", {}).get(HASH_KEY, "")

    own = digest(concept)
    return next((step for step, path in candidates(concept).items() if own and digest(path) == own), None)


def take(concept: Path, step: int) -> None:
    """Replace the concept by the candidate of a step; all candidates stay, so it can be undone.

    Raises:
        ConceptError: if there is none of that step.
    """
    kept = candidates(concept)
    if step not in kept:
        there = ", ".join(map(str, kept)) or "none; --candidates keeps some"
        raise ConceptError(f"{concept.stem} has no candidate of step {step}.", f"There are: {there}.")
    with whole_file(concept) as temporary:
        shutil.copyfile(kept[step], temporary)
