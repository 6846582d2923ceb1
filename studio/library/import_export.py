"""Concepts into and out of the library: import, export and new words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from pipelines.concepts.card import ConceptCard, Kind
from pipelines.concepts.concept import Concept
from pipelines.concepts.formats import peft_folders
from pipelines.concepts.formats.whole_weights import differences, needs_base, tensors_of
from pipelines.concepts.token_embeddings import require_new
from pipelines.concepts.weight_deltas import Difference
from pipelines.concepts.writers import Dialect, export_as
from pipelines.errors import ConceptError
from pipelines.models import POCKET
from pipelines.models.components import Components
from pipelines.models.loading import load
from pipelines.models.single_files import clip_vocabulary
from pipelines.words import check_word, composed, file_stem
from studio.library import concepts
from trainers.loop.candidates import candidate, candidates, candidates_folder

OTHER_WORD = "--token <my-concept>"


def import_concept(
    source: Path, token: str | None, folder: Path, kind: Kind | None = None, bases: Sequence[str] = ()
) -> Path:
    """Import a file, or a folder of PEFT or of a script, into a folder of concepts; return the new file.

    Args:
        source: the file or folder; of a LoRA with several words each becomes a concept, with the same weights.
        token: another word for the first.
        folder: of concepts.
        kind: instead of what it says itself.
        bases: of whole weights and IA3, which become differences from the first of them that has such weights.

    Raises:
        ConceptError: if it is none, or a file of its name is there.
    """
    concept = _read_beside(source, bases) if bases else _read(source)
    if token is None and not concept.adds_word and concept.token == source.stem:  # the file itself names no word
        token = concepts.activation(source) or None
    if kind is not None:
        concept = replace(concept, card=concept.card.model_copy(update={"kind": kind}))
    concept = _called(concept, token or concept.token)
    together = [concept, *(_called(one, one.token) for one in concept.partners)]
    paths = [_place(one, folder) for one in together]
    if len({path.name.casefold() for path in paths}) < len(paths):
        words = ", ".join(one.token for one in together)
        raise ConceptError(
            f"Two of the words {words} would have one file.", f"Give the first another word, for example {OTHER_WORD}."
        )
    try:
        for one, path in zip(together, paths, strict=True):
            one.save(path)
            concepts.copy_picture(source, path)
    except BaseException:  # no room, say: asked again, none of them is in the way
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths[0]


def _read(source: Path) -> Concept:
    """Read the concept in a file, or a folder, of another program; by its content rather than by its name."""
    if source.name == peft_folders.MODEL and peft_folders.is_adapter(source.parent):
        source = source.parent  # the file alone does not tell its alpha
    if peft_folders.is_adapter(source):
        return Concept.load_adapter(source)
    if (source / f"{EMBEDS}_2.safetensors").is_file():
        return _both_embeds(source)
    if source.is_dir():
        source = _of_a_script(source)
    if not source.is_file():
        raise ConceptError(f"There is no file {source}.", "Check the path.")
    with source.open("rb") as stream:
        start = stream.read(8)
    if start == b"\x89PNG\r\n\x1a\n":
        return Concept.load_picture(source)
    if start[:2] == b"PK" and source.suffix != ".safetensors":  # so may the length of a good header begin
        return Concept.load_pickle(source)
    return Concept.load(source)


def _read_beside(source: Path, bases: Sequence[str]) -> Concept:
    """Read a concept in a format that needs its base, beside the first that it fits; others are read without one."""
    file = _of_a_script(source) if source.is_dir() and not peft_folders.is_adapter(source) else source
    if not file.is_file() or file.suffix == ".png" or not needs_base(tensors := tensors_of(file)):
        return _read(source)
    components, changes = _fitting(tensors, bases)
    about = ConceptCard(
        token=file.stem[:100],
        kind="subject",
        method="full" if any(name.endswith(".on_input") for name in tensors) else "custom-diffusion",
        family=components.family.name,
        base=components.name,
        base_fingerprint=components.fingerprint(),
        vectors=0,
    )
    # The script keeps each word in a file of its name.
    beside = sorted(source.glob("<*>.*")) if source.is_dir() else []
    words = [_read(path) for path in beside if path.suffix in (".safetensors", ".bin")]
    said = [{"token": word.token, "vectors": word.card.vectors} for word in words]
    first, *others = [
        Concept(about.model_copy(update=card), word.rows, changes) for card, word in zip(said, words, strict=True)
    ] or [Concept(about, (), changes)]
    first.check_fits(components)
    return replace(first, partners=tuple(others))


EMBEDS = "learned_embeds"
SCRIPTS = ("pytorch_lora_weights", EMBEDS, "pytorch_custom_diffusion_weights")
"""Files that the training scripts of diffusers write into their output folders."""


def _fitting(tensors: Mapping[str, Any], bases: Sequence[str]) -> tuple[Components, Mapping[str, Difference]]:
    """Return the first base that has such weights, and the differences from it; raises what the last says."""
    for base in bases[:-1]:
        components = load(base)
        with suppress(ConceptError):
            return components, differences(tensors, components)
    components = load(bases[-1])
    return components, differences(tensors, components)


def _both_embeds(folder: Path) -> Concept:
    """Return the word in the two files, one for each text encoder, of the SDXL script."""
    first, second = (Concept.load(folder / f"{EMBEDS}{end}.safetensors") for end in ("", "_2"))
    card = first.card.model_copy(update={"family": "sdxl"})
    return Concept(card, (*first.rows, *second.rows))


def _of_a_script(folder: Path) -> Path:
    """Return the file in the output folder of a training script of diffusers.

    Raises:
        ConceptError: if there is none.
    """
    found = next((path for name in SCRIPTS for end in (".safetensors", ".bin")
                  if (path := folder / f"{name}{end}").is_file()), None)  # fmt: skip
    if found is None:
        raise ConceptError(
            f"There is no {peft_folders.CONFIG} in the folder {folder}, nor {', '.join(SCRIPTS)}.", "Check the path."
        )
    return found


def _place(concept: Concept, folder: Path) -> Path:
    """Return the path for a concept; no file is there yet."""
    path = folder / f"{file_stem(concept.token)}.safetensors"
    if path.exists():
        raise ConceptError(f"{path} is there already.", "Choose another word, or delete it first.")
    return path


def _called(concept: Concept, token: str) -> Concept:
    """Return the concept under a word, checked as a training checks it, except words of the base that call weights.

    Raises:
        ConceptError: if no prompt can say it, or it is known to be a word of the base.
    """
    token = composed(token)
    if concept.adds_word:
        way = f"Give it another word, for example <{file_stem(token)}>; on the command line that is --token."
        check_word(token, way)
        require_new(_vocabulary(concept.card.family), token, concept.card.vectors, concept.card.family, way)
    return replace(concept, card=concept.card.model_copy(update={"token": token}))


def _vocabulary(family: str) -> Collection[str]:
    """Return the words that every base of a family has; none if they are not known."""
    if family == "pocket":
        return CLIPTokenizer.from_pretrained(str(POCKET / "tokenizer")).get_vocab()
    return clip_vocabulary() if family in ("sd1", "sd2", "sdxl") else ()


def export_concept(path: Path, output: Path, dialect: Dialect, half: bool, base: str | None = None) -> list[Path]:
    """Write a concept for other programs; return the files. `base` is its base, where that is needed."""
    learned_on = None if base is None else load(base)
    files = export_as(Concept.load(path), output, dialect, half=half, base=learned_on)
    for file in files:
        concepts.copy_picture(path, file)
    return files


def rename_concept(path: Path, token: str) -> Path:
    """Give a concept another word and its file that name; return the new file."""
    concept = Concept.load(path)
    if not concept.adds_word:
        raise ConceptError(f"{concept.token} has no word of its own: it is words of the base.", "It keeps its name.")
    kept: dict[int, Concept] = {}
    for step, file in candidates(path).items():
        with suppress(ConceptError):  # a damaged one stays what it is
            kept[step] = _called(Concept.load(file), token)
    concept = _called(concept, token)
    new = concept.save(_place(concept, path.parent))
    for there, place in concepts.beside(path, new):
        there.replace(place)
    for step, one in kept.items():
        one.save(candidate(candidates_folder(new), step))
    path.unlink()
    return new
