"""Concepts in the layouts of other programs.

AUTOMATIC1111, Forge, ComfyUI, InvokeAI and kohya's scripts read embeddings as `emb_params` (SDXL: `clip_l` and
`clip_g`) and LoRA in kohya's names with alpha; the file's name is the word. diffusers reads one tensor named by the
word, and LoRA in PEFT's names, which is also what `Concept.save` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipelines.card import CARD_KEY, file_stem
from pipelines.changes import LORA_METADATA, Change, LowRank, lora_metadata, stored
from pipelines.concept import Concept, write_tensors
from pipelines.errors import ConceptError
from pipelines.files import whole_file
from pipelines.lora_keys import kohya

Dialect = Literal["a1111", "diffusers"]

_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_SHOWN = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


def export_as(concept: Concept, folder: Path, dialect: Dialect, *, half: bool = False) -> list[Path]:
    """Write a concept for other programs; its weights and its word in files of their own.

    Args:
        concept: what to write.
        folder: where to; the files are named after the word.
        dialect: `a1111` also for Forge, ComfyUI, InvokeAI and kohya's scripts; with what it shows in `X.json`.
        half: store numbers in float16.

    Raises:
        ConceptError: if there is no such layout for it, or a file is there already.
    """
    if any(not isinstance(change, LowRank) for change in concept.changes.values()):
        raise ConceptError(
            f"{concept.token} changes whole weights, for which {dialect} has no layout.",
            "Write a whole model with studio export.",
        )
    stem = file_stem(concept.token)
    files: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {}
    if concept.changes:
        files[f"{stem}-lora" if concept.rows else stem] = _weights(concept, dialect, stem)
    if concept.rows:
        files |= _words(concept, dialect, stem)
    paths = {folder / f"{name}.safetensors": content for name, content in files.items()}
    notes = [path.with_suffix(".json") for path in paths if dialect == "a1111"]
    if there := [path for path in (*paths, *notes) if path.exists()]:
        raise ConceptError(f"{there[0]} is there already.", "Choose another folder.")
    for path, (tensors, said) in paths.items():
        stored_as = {name: tensor.half() if half else tensor for name, tensor in tensors.items()}
        write_tensors(path, stored_as, said)
    for note in notes:
        with whole_file(note) as temporary:
            temporary.write_text(json.dumps(_beside(concept, stem), indent=1), encoding="utf-8")
    return list(paths)


def _beside(concept: Concept, stem: str) -> dict[str, str | float]:
    """What AUTOMATIC1111 and Forge show of a file, by the `X.json` beside `X.safetensors`."""
    card = concept.card
    return {
        "description": concept.modelspec().get("modelspec.description", ""),
        "sd version": _SHOWN.get(card.family, "Unknown"),
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
    if dialect == "diffusers":
        if len(rows) == 1:
            return {stem: ({concept.token: rows[0]}, said)}
        named = dict(zip((stem, f"{stem}_2"), rows, strict=True))
        return {name: ({concept.token: part}, word.modelspec()) for name, part in named.items()}
    tensors = {"emb_params": rows[0]} if len(rows) == 1 else {"clip_l": rows[0], "clip_g": rows[1]}
    return {stem: (tensors, said)}


def _weights(concept: Concept, dialect: Dialect, stem: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a LoRA alone."""
    card = concept.card.model_copy(update={"vectors": 0})
    alone = Concept(card, (), concept.changes)
    said = {CARD_KEY: card.model_dump_json(), **alone.modelspec()}
    if dialect == "diffusers":
        return stored(concept.changes), {**said, LORA_METADATA: json.dumps(lora_metadata(concept.changes))}
    return to_kohya(concept.changes, card.family == "sdxl"), {**said, **_training(alone, stem)}


def to_kohya(changes: Mapping[str, Change], sdxl: bool) -> dict[str, Tensor]:
    """Low-rank changes in kohya's names, each with its true alpha."""
    tensors: dict[str, Tensor] = {}
    for key, change in changes.items():
        if not isinstance(change, LowRank):
            continue
        name, rank = kohya(key.removesuffix(".weight"), sdxl), len(change.down)
        tensors |= {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": change.up}
        tensors[f"{name}.alpha"] = torch.tensor(change.scale * rank)
        if change.magnitude is not None:
            tensors[f"{name}.dora_scale"] = change.magnitude.reshape(-1, *[1] * (change.down.ndim - 1))
    return {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}


def _training(concept: Concept, stem: str) -> dict[str, str]:
    """The least of kohya's `ss_` fields by which other programs know a LoRA."""
    first = next(change for change in concept.changes.values() if isinstance(change, LowRank))
    rank = len(first.down)
    return {
        "ss_output_name": stem,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{first.scale * rank:g}",
        "ss_network_args": "{}",
        "ss_base_model_version": _VERSIONS.get(concept.card.family, ""),
        "ss_v2": str(concept.card.family == "sd2"),
        "ss_sd_model_name": concept.card.base,
    }
