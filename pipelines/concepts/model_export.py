"""A base with concepts in it, as a whole model folder that plain diffusers loads."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.concepts.concept import Concept, attached
from pipelines.concepts.token_embeddings import RowsBeside
from pipelines.concepts.weight_deltas import PARTS
from pipelines.errors import ConfigError
from pipelines.files import require_room
from pipelines.models.components import Components, word_table
from pipelines.models.loading import without_progress_bars


def export_model(
    components: Components, concepts: Sequence[tuple[Concept, float]], folder: Path, *, half: bool = False
) -> Path:
    """Write the base with the concepts in it in the diffusers layout; the folder is either whole or not there.

    Args:
        components: the base; bit-identical afterwards.
        concepts: each with its strength.
        folder: where to; must not be there yet.
        half: store weights in float16.

    Raises:
        ConfigError: if the folder is there, or the disk has no room.
        ConceptError: if a concept does not fit.
    """
    for concept, _ in concepts:
        concept.require_plain("a model folder of diffusers")
    if folder.exists():
        raise ConfigError(f"{folder} is there already.", "Choose another --output.")
    size = 2 if half else 4
    require_room(folder.parent, sum(p.numel() for module in components.modules() for p in module.parameters()) * size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with attached(components, concepts) as taught, without_progress_bars():
            _pipeline(taught, half).save_pretrained(temporary, safe_serialization=True)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _pipeline(components: Components, half: bool) -> Any:
    """A plain pipeline of copies, new words written into the tables of the text encoders."""
    encoders = [_with_own_words(encoder) for encoder in components.text_encoders]
    networks = {
        components.family.network: copy.deepcopy(components.denoiser),
        "vae": copy.deepcopy(components.vae),
        **dict(zip(PARTS[2:], encoders, strict=False)),
    }
    names = (part.replace("text_encoder", "tokenizer") for part in PARTS[2:])
    parts: dict[str, Any] = dict(zip(names, components.tokenizers, strict=False))
    for network in networks.values():
        torch.nn.Module.to(network, "cpu", torch.float16 if half else torch.float32)
    return components.family.pipeline(components, {**networks, **parts})


def _with_own_words(encoder: Any) -> Any:
    """A copy of a text encoder whose table holds the words that stood beside it."""
    beside: list[torch.Tensor] = []
    table = word_table(encoder)
    while isinstance(table, RowsBeside):
        beside.insert(0, table.rows.detach())
        table = table.table
    own = copy.deepcopy(encoder)
    own.set_input_embeddings(copy.deepcopy(table))
    if beside:
        rows = torch.cat(beside)
        before = len(word_table(own).weight)
        first = _first_id(encoder)
        # Tables may be longer than the vocabulary; new words stand right after the vocabulary.
        own.resize_token_embeddings(max(before, first + len(rows)), mean_resizing=False)
        with torch.no_grad():
            word_table(own).weight[first : first + len(rows)] = rows
    return own


def _first_id(encoder: Any) -> int:
    """Id of the first word beside the table."""
    table, first = word_table(encoder), 0
    while isinstance(table, RowsBeside):
        table, first = table.table, table.first
    return first
