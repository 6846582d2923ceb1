"""Files and names on the command line, looked for before anything heavy is loaded. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.concepts.card import ConceptCard, read_card
from pipelines.errors import ConceptError, ModelError
from pipelines.request.request import Request, concept_use
from studio.library import concepts


def concept_file(name: str) -> Path:
    """Return the file of a concept given by its path, or by its file's name or word in the library.

    Raises:
        ConceptError: if there is none.
    """
    if _is_path(name):
        require_concept(name)
        return Path(name)
    if not concepts.FOLDER.is_dir():
        said = f"There is no concept {name!r:.80}: there is no library {concepts.FOLDER} yet."
        raise ConceptError(said, "Give the path of a concept file, or train a concept first.")
    return concepts.found(name, concepts.FOLDER)


def require_concept(path: str) -> None:
    """Check that a concept file is there.

    Raises:
        ConceptError: if there is neither a file nor a folder of PEFT.
    """
    if not Path(path).exists():
        raise ConceptError(f"There is no concept file {path:.300}.", "Check the path given with --concept.")


def named_use(text: str) -> dict[str, object]:
    """Convert `wolf`, `<wolf>` or `file.safetensors`, each with `:0.8` if wanted, to the fields of a `ConceptUse`."""
    fields = concept_use(text)
    source = str(fields["source"])
    return fields if _is_path(source) else fields | {"source": str(concept_file(source))}


def ready(request: Request, base: str | None = None) -> Request:
    """Return the request if the files it names are there, so that a typing error costs no loading.

    Args:
        request: the request.
        base: its base; where a hub id leads to is told when it is loaded.

    Raises:
        ConceptError: if a concept is not there, or its strength means nothing.
        RequestError: if a picture or an upscaler is not.
        ModelError: if the base is plainly a path that leads nowhere.
    """
    for use in request.concepts:
        require_concept(use.source)
    require_strengths([request])
    if request.inpaint is not None:
        request.inpaint.require_files()
    request.enlarge.require_file()
    if base is not None and base != "pocket" and not Path(base).exists() and not _may_be_an_id(base):
        hint = "Give pocket, a folder in the diffusers layout, a .safetensors file, or a hub id such as owner/name."
        raise ModelError(f"There is no base {base:.300}.", hint)
    return request


def require_strengths(requests: Iterable[Request], folder: Path = Path()) -> None:
    """Refuse strengths that a concept cannot have.

    Args:
        requests: with paths of concepts; folders of PEFT tell no range.
        folder: where the paths begin.

    Raises:
        ConceptError: if one means nothing, or a file cannot be read.
    """
    uses = {(use.source, use.strength): None for request in requests for use in request.concepts}
    cards: dict[str, ConceptCard] = {}
    for source, strength in uses:
        if Path(source).suffix == ".safetensors":
            if source not in cards:
                cards[source] = read_card(folder / source)
            cards[source].require_strength(strength)


def require_measurable(path: Path) -> None:
    """Refuse a concept that shows no thing of its own, with which pictures could be compared.

    Raises:
        ConceptError: if it is a slider, or cannot be read.
    """
    card = read_card(path)
    if card.kind == "slider":
        raise ConceptError(
            f"{card.token} is a slider: it changes pictures of other things, and has none of its own to be compared.",
            "Compare pictures at several strengths, such as -1, 0 and 1; keep a candidate by its step.",
        )


def _may_be_an_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~")) and not base.endswith(".safetensors")


def _is_path(name: str) -> bool:
    """Return whether a text is the path of a file or folder rather than a name or a word of the library."""
    return (
        Path(name).exists() or Path(name).suffix in (".safetensors", ".bin", ".pt", ".png") or len(Path(name).parts) > 1
    )
