"""Changes of weights as tensors of a file: PEFT's names out, any of the known spellings in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines.concepts.formats import lycoris as decompositions
from pipelines.concepts.lora_keys import parsed
from pipelines.concepts.weight_deltas import PARTS, Change, Difference, LowRank
from pipelines.errors import ConceptError

LORA_METADATA = "lora_adapter_metadata"  # diffusers' header key for ranks and alphas
_DOWN, _UP, _MAGNITUDE, _COLUMNS, _WHOLE = (
    ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".dora_scale", ".diff",
)  # fmt: skip


def stored(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Tensors as they are written: PEFT's names for low-rank changes, the weight's name with `.diff` for others."""
    tensors: dict[str, Tensor] = {}
    for key, change in changes.items():
        if isinstance(change, Difference):
            tensors[key + _WHOLE] = change.difference
            continue
        module = key.removesuffix(".weight")
        tensors |= {module + _DOWN: change.down, module + _UP: change.up}
        if change.magnitude is not None:
            tensors[module + (_COLUMNS if change.columns else _MAGNITUDE)] = _shaped(change.magnitude, change)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def _shaped(magnitude: Tensor, change: LowRank) -> Tensor:
    """Magnitudes as PEFT has them, (out,) or of a convolution (1, out, 1, 1), and as LyCORIS, (1, in, ...)."""
    kernel = change.down.ndim - 2
    return magnitude.reshape(1, -1, *[1] * kernel) if kernel or change.columns else magnitude


def lora_metadata(changes: Mapping[str, Change]) -> dict[str, Any]:
    """Return the metadata by which diffusers loads the tensors with the right strength, by part."""
    described: dict[str, Any] = {}
    for part in PARTS:
        mine = {
            key.removeprefix(f"{part}.").removesuffix(".weight"): change
            for key, change in changes.items()
            if key.startswith(f"{part}.") and isinstance(change, LowRank)
        }
        if not mine:
            continue
        ranks = {layer: len(change.down) for layer, change in mine.items()}
        alphas = {layer: change.scale * len(change.down) for layer, change in mine.items()}
        rank, alpha = _commonest(ranks), _commonest(alphas)
        described[f"{part}.r"] = rank
        described[f"{part}.lora_alpha"] = alpha
        described[f"{part}.target_modules"] = list(mine)
        described[f"{part}.use_dora"] = next(iter(mine.values())).magnitude is not None
        if others := {layer: value for layer, value in ranks.items() if value != rank}:
            described[f"{part}.rank_pattern"] = others
        if others := {layer: value for layer, value in alphas.items() if value != alpha}:
            described[f"{part}.alpha_pattern"] = others
    return described


def _commonest(values: Mapping[str, Any]) -> Any:
    listed = list(values.values())
    return max(set(listed), key=listed.count)


def _scale(layer: str, rank: int, alpha: Tensor | None, metadata: Mapping[str, Any]) -> float:
    """Alpha / rank of a layer: by a tensor of its own, or by the header's metadata, which may hold anything."""
    part, _, path = layer.partition(".")
    try:
        if alpha is not None:
            scale = float(alpha) / rank
        else:
            own = _of_pattern(metadata.get(f"{part}.alpha_pattern"), path)
            whole = float(metadata.get(f"{part}.lora_alpha", metadata.get(f"{part}.r", rank)) if own is None else own)
            scale = whole / (math.sqrt(rank) if metadata.get(f"{part}.use_rslora") else rank)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, OverflowError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise ConceptError(f"The LoRA of {layer:.80} has an impossible alpha or rank.", "Get the file again.")
    return scale


def _of_pattern(pattern: Any, path: str) -> Any:
    """The value for a layer in peft's patterns: the first whose name is the layer's, or its end."""
    listed = pattern.items() if isinstance(pattern, dict) else ()
    return next((value for name, value in listed if path == name or path.endswith(f".{name}")), None)


def read_stored(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Change]:
    """Changes from the tensors of a file in any of the known spellings; names that are none are left out.

    Args:
        tensors: as `stored` writes them, or as diffusers or kohya's scripts do.
        metadata: as `lora_metadata` gives it; without it and without alphas, alpha is the rank, as everybody assumes.

    Raises:
        ConceptError: if half of a pair is missing, or the strength cannot be told.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (key := parsed(name)) is not None:
            layers.setdefault(key.layer, {})[key.role] = tensor
    changes: dict[str, Change] = {}
    for layer, own in layers.items():
        if "difference" in own:
            changes[layer] = Difference(own["difference"])
        if decompositions.kind_of(set(own)):
            changes[f"{layer}.weight"] = Difference(decompositions.whole(layer, own))
        elif set(own) - {"difference"}:
            changes[f"{layer}.weight"] = _low_rank(layer, own, metadata)
    return changes


def _low_rank(layer: str, own: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> LowRank:
    down, up, core = own.get("down"), own.get("up"), own.get("mid")
    if down is None or up is None or up.ndim < 2 or down.ndim < 2 or up.shape[1] != len(down) or not len(down):
        raise ConceptError(f"The LoRA pair of {layer:.80} is broken.", "Get the file again.")
    if (up.ndim == 4 and up.shape[2:] != (1, 1)) or (core is not None and core.shape[:2] != (len(down), len(down))):
        raise ConceptError(f"The LoRA pair of {layer:.80} is broken.", "Get the file again.")
    if core is not None:
        down, up = decompositions.with_core(down, core), up.reshape(*up.shape[:2], 1, 1)
    if (scalar := own.get("scalar")) is not None and scalar.numel() == 1:
        up = up * scalar.flatten()
    magnitude, columns = _magnitude(layer, own, (len(up), down.shape[1]))
    return LowRank(down, up, _scale(layer, len(down), own.get("alpha"), metadata), magnitude, columns)


def _magnitude(layer: str, own: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[Tensor | None, bool]:
    """The magnitudes of a layer of a shape (out, in), and whether they are those of columns.

    A `dora_scale` tells by its shape: (1, in, ...) of columns, which is LyCORIS's own, (out, 1, ...) of rows.
    """
    magnitude, scale = own.get("magnitude"), own.get("dora")
    if scale is not None and scale.ndim > 1 and len(scale) == 1 and scale.numel() == shape[1]:
        return scale.flatten(), True
    rows = magnitude if scale is None else scale
    if rows is not None and rows.numel() != shape[0]:
        raise ConceptError(
            f"The DoRA magnitudes of {layer:.80} have the shape {tuple(rows.shape)}; its weight has {shape[0]} rows "
            f"and {shape[1]} columns.",
            "They fit neither; get the file again.",
        )
    return (None if rows is None else rows.flatten()), False


def same(one: Mapping[str, Change], other: Mapping[str, Change]) -> bool:
    """Return whether two sets of changes are equal, number by number."""
    if one is other:
        return True
    if one.keys() != other.keys():
        return False
    scales = [[getattr(change, "scale", None) for _, change in sorted(changes.items())] for changes in (one, other)]
    mine, others = stored(one), stored(other)
    return (
        scales[0] == scales[1]
        and mine.keys() == others.keys()
        and all(torch.equal(mine[key], others[key]) for key in mine)
    )
