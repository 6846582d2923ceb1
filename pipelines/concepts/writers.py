"""Concepts in the layouts of other programs.

AUTOMATIC1111, Forge, ComfyUI, InvokeAI and kohya's scripts read embeddings as `emb_params` (SDXL: `clip_l` and
`clip_g`) and LoRA in kohya's names with alpha; the file's name is the word. diffusers reads one tensor named by the
word, and LoRA in PEFT's names, which is also what `Concept.save` writes. PEFT by itself reads a folder a network.
Layers of transformers have the names of their first implementations in kohya's scripts (`lora_unet_double_blocks_...`,
with alpha) and in ComfyUI (`diffusion_model.double_blocks...`, the scale worked in, which it takes for 1 then).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pipelines.concepts.card import CARD_KEY
from pipelines.concepts.concept import Concept, write_tensors
from pipelines.concepts.formats.delta_tensors import LORA_METADATA, lora_metadata, stored
from pipelines.concepts.formats.kohya import to_kohya
from pipelines.concepts.formats.original_tensors import in_original_names, to_comfyui
from pipelines.concepts.formats.peft_folders import CONFIG, MODEL, adapters
from pipelines.concepts.weight_deltas import Difference, LowRank, by_rows, difference
from pipelines.errors import ConceptError
from pipelines.files import whole_file
from pipelines.models.components import Components
from pipelines.models.families.known import KNOWN
from pipelines.words import file_stem

Dialect = Literal["a1111", "comfyui", "diffusers", "peft"]


def export_as(
    concept: Concept, folder: Path, dialect: Dialect, *, half: bool = False, base: Components | None = None
) -> list[Path]:
    """Write a concept for other programs; its weights and its word in files of their own.

    Args:
        concept: what to write.
        folder: where to; the files are named after the word.
        dialect: `a1111` also for Forge, ComfyUI, InvokeAI and kohya's scripts; with what it shows in `X.json`.
            `comfyui` has ComfyUI's own names, which for a UNet are those of `a1111`. `peft` makes a folder, and one in
            it for each network where it changes several; a word is written for diffusers.
        half: store numbers in float16.
        base: what it was learned on; needed for `a1111` where a DoRA has magnitudes of rows, whose change is written
            whole.

    Raises:
        ConceptError: if there is no such layout for it, it does not fit the base, or a file is there already.
    """
    concept = _writable(concept, dialect, base)
    stem = file_stem(concept.token)
    files: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {}
    notes: dict[str, dict[str, Any]] = {}
    if concept.changes:
        name = f"{stem}-lora" if concept.rows else stem
        if dialect == "peft":
            folders = _folders(concept)
            at = {part: f"{name}/{part}/" if len(folders) > 1 else f"{name}/" for part in folders}
            files |= {at[part] + MODEL: (tensors, said) for part, (_, tensors, said) in folders.items()}
            notes |= {at[part] + CONFIG: config for part, (config, _, _) in folders.items()}
        else:
            files[f"{name}.safetensors"] = _weights(concept, dialect, stem)
    if concept.rows:
        files |= {f"{name}.safetensors": content for name, content in _words(concept, dialect, stem).items()}
    if dialect == "a1111":
        notes |= {f"{name.removesuffix('.safetensors')}.json": _beside(concept, stem) for name in files}
    if there := [folder / name for name in (*files, *notes) if (folder / name).exists()]:
        raise ConceptError(f"{there[0]} is there already.", "Choose another folder.")
    for name, (tensors, said) in files.items():
        stored_as = {key: tensor.half() if half else tensor for key, tensor in tensors.items()}
        write_tensors(folder / name, stored_as, said)
    for name, note in notes.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(json.dumps(note, indent=1), encoding="utf-8")
    return [folder / name for name in files]


def _writable(concept: Concept, dialect: Dialect, base: Components | None) -> Concept:
    """The concept with changes that the layout has, magnitudes of rows worked into whole differences.

    Raises:
        ConceptError: if there is no layout for them.
    """
    concept.require_plain(dialect)
    known = KNOWN.get(concept.card.family)
    if concept.rows and known is not None and not known.travels:
        raise ConceptError(
            f"{concept.token} is a word of {known.title}, whose text encoder no other program gives new words.",
            "Use it in this studio, or teach the subject by dreambooth with a plain trigger: that LoRA travels.",
        )
    changes = concept.changes
    if dialect not in ("a1111", "comfyui"):
        foreign = [c for c in changes.values() if isinstance(c, Difference) or c.columns]
        if foreign:
            what = "whole weights" if isinstance(foreign[0], Difference) else "the lengths of columns"
            raise ConceptError(
                f"{concept.token} changes {what}, for which {dialect} has no layout.",
                "Export it for a1111, or write a whole model with studio export.",
            )
        return concept
    if not by_rows(changes):
        return concept
    if base is None:
        raise ConceptError(
            f"{concept.token} is a DoRA, whose lengths of rows only diffusers and PEFT read.",
            "Export it for diffusers, or name the base it was learned on (--base) to write its changes whole.",
        )
    concept.check_fits(base)
    whole = {
        key: difference(base, key, change) if by_rows({key: change}) else change for key, change in changes.items()
    }
    return replace(concept, changes=whole)


def _beside(concept: Concept, stem: str) -> dict[str, str | float]:
    """Return the notes that AUTOMATIC1111 and Forge show of a file, for the `X.json` beside `X.safetensors`."""
    card = concept.card
    return {
        "description": concept.modelspec().get("modelspec.description", ""),
        "sd version": (KNOWN[card.family].shown if card.family in KNOWN else "") or "Unknown",
        # There an embedding's word is its file's name; words of the base stay what they are.
        "activation text": stem if concept.rows else concept.token,
        "preferred weight": 1.0,
        "notes": f"trained on {card.base}" if card.base else "",
    }


def _words(concept: Concept, dialect: Dialect, stem: str) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
    """Files of a word. diffusers reads those of SDXL one text encoder at a time, so that they are two."""
    rows = [part.detach().cpu().float().contiguous() for part in concept.rows]
    word = Concept(concept.card, concept.rows)
    said = {CARD_KEY: word.card.model_dump_json(), **word.modelspec()}
    if dialect in ("a1111", "comfyui"):
        said["modelspec.trigger_phrase"] = stem  # there a word is called by its file's name
    else:
        if len(rows) == 1:
            return {stem: ({concept.token: rows[0]}, said)}
        named = dict(zip((stem, f"{stem}_2", f"{stem}_3"), rows, strict=False))
        return {name: ({concept.token: part}, word.modelspec()) for name, part in named.items()}
    names = KNOWN[concept.card.family].rows if concept.card.family in KNOWN else ()
    tensors = (
        {"emb_params": rows[0]} if len(rows) == 1 else dict(zip(names or ("clip_l", "clip_g"), rows, strict=False))
    )
    return {stem: (tensors, said)}


def _alone(concept: Concept) -> tuple[Concept, dict[str, str]]:
    """The changed weights without the word, and what their header says of them."""
    alone = Concept(concept.card.model_copy(update={"vectors": 0}), (), concept.changes)
    return alone, {CARD_KEY: alone.card.model_dump_json(), **alone.modelspec()}


def _folders(concept: Concept) -> dict[str, tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]]:
    """Configuration, tensors and header of the folder of each network."""
    alone, said = _alone(concept)
    return adapters(alone.changes, alone.card.base, said)


def _weights(concept: Concept, dialect: Dialect, stem: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a LoRA alone."""
    alone, said = _alone(concept)
    if dialect in ("a1111", "comfyui") and concept.rows:
        said["modelspec.trigger_phrase"] = stem
    if dialect == "diffusers":
        return stored(concept.changes), {**said, LORA_METADATA: json.dumps(lora_metadata(concept.changes))}
    word, family = said["modelspec.trigger_phrase"], alone.card.family
    changes = in_original_names(concept.changes, family)
    several = not family.startswith("sd") or family in ("sdxl", "sd3")
    if dialect == "comfyui" and any(key.startswith("transformer.") for key in changes):
        return to_comfyui(changes), said
    return to_kohya(changes, several), {**said, **_training(alone, stem, word)}


def _training(concept: Concept, stem: str, word: str) -> dict[str, str]:
    """The least of kohya's `ss_` fields by which other programs know a LoRA, and the word that its card lists there."""
    low = [change for change in concept.changes.values() if isinstance(change, LowRank)]
    network = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "full"}'}
    if low:
        network = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(len(low[0].down)),
            "ss_network_alpha": f"{low[0].scale * len(low[0].down):g}",
            "ss_network_args": "{}",
        }
    return {
        "ss_output_name": stem,
        **network,
        "ss_base_model_version": KNOWN[concept.card.family].version if concept.card.family in KNOWN else "",
        "ss_v2": str(concept.card.family == "sd2"),
        "ss_sd_model_name": Path(concept.card.base).name,
        "ss_tag_frequency": json.dumps({stem: {word: 1}}, ensure_ascii=False),
    }
