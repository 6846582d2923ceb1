"""Changes of transformers taken apart and joined, where the first implementation has one layer for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.concepts.weight_deltas import Change, Difference, LowRank
from pipelines.errors import ConceptError
from pipelines.models.families.original_layers import family_of_layers, original, ours

PART = "transformer."


def in_our_names(changes: Mapping[str, Change]) -> dict[str, Change]:
    """Return changes with those of transformers in the names of diffusers, fused layers taken apart.

    Raises:
        ConceptError: if a fused layer has magnitudes of columns, which its parts do not have.
    """
    layers = {
        key.removeprefix(PART).rpartition(".")[0]: _size(change)
        for key, change in changes.items()
        if key.startswith(PART)
    }
    family = family_of_layers(layers)
    found: dict[str, Change] = {}
    for key, change in changes.items():
        layer, _, leaf = key.removeprefix(PART).rpartition(".")
        names = ours(family, layer) if key.startswith(PART) else (layer,)
        if not key.startswith(PART) or names == (layer,):
            found[key] = change
            continue
        for name, part in zip(names, _apart(key, change, len(names)), strict=True):
            found[f"{PART}{name}.{leaf}"] = part
    return found


def _size(change: Change) -> tuple[int, int]:
    """Return outputs and inputs."""
    shape = change.shape()
    return shape[0], shape[1] if len(shape) > 1 else 0


def _apart(key: str, change: Change, count: int) -> list[Change]:
    """Return the changes of the layers that a fused one is made of, in the order of its rows."""
    if count == 1:
        return [change]
    outputs, inputs = _size(change)
    # Queries, keys and values are as wide as the inputs; what is behind them takes the rest.
    width = outputs // 3 if count == 3 else inputs or outputs // (count + 3)
    sizes = [width] * (count - 1) + [outputs - width * (count - 1)]
    if isinstance(change, Difference):
        return [Difference(part) for part in change.difference.split(sizes)]
    if change.columns:
        raise ConceptError(f"{key:.80} has lengths of columns for several layers at once.", "Get it as plain LoRA.")
    magnitudes: Sequence[Tensor | None] = [None] * count
    if change.magnitude is not None:
        magnitudes = change.magnitude.split(sizes)
    ups, rank = change.up.split(sizes), len(change.down)
    own = rank // count
    blocks = [slice(k * own, (k + 1) * own) for k in range(count)]
    parted = rank % count == 0 and all(
        not bool(up[:, other].any()) for k, up in enumerate(ups) for n, other in enumerate(blocks) if n != k
    )
    return [
        LowRank(change.down[blocks[k]], up[:, blocks[k]].contiguous(), change.scale, magnitudes[k])
        if parted
        else replace(change, up=up.contiguous(), magnitude=magnitudes[k])
        for k, up in enumerate(ups)
    ]


def in_original_names(changes: Mapping[str, Change], family: str) -> dict[str, Change]:
    """Return changes with those of a transformer in the names of its first implementation, layers joined.

    Raises:
        ConceptError: if one has magnitudes that cannot be joined.
    """
    found: dict[str, Change] = {}
    joined: dict[str, dict[int, tuple[str, Change]]] = {}
    counts: dict[str, int] = {}
    for key, change in changes.items():
        layer, _, leaf = key.removeprefix(PART).rpartition(".")
        name, place, count = original(family, layer) if key.startswith(PART) else (layer, 0, 1)
        target = f"{PART}{name}.{leaf}" if key.startswith(PART) else key
        if count == 1:
            found[target] = change
        else:
            joined.setdefault(target, {})[place] = (key, change)
            counts[target] = count
    for target, parts in joined.items():
        found[target] = _together(target, {place: one for place, (_, one) in parts.items()}, counts[target])
    return found


def _together(key: str, parts: Mapping[int, Change], count: int) -> Change:
    """Return one change for several layers of equal inputs; layers without one have zeros in their place."""
    some = next(iter(parts.values()))
    inputs = some.shape()[1]
    # Queries, keys and values are square; a feed-forward beside them is four times as wide.
    heights = [parts[k].shape()[0] if k in parts else inputs * (4 if k == 3 else 1) for k in range(count)]
    if isinstance(some, Difference):
        rows = [parts[k].difference if k in parts else torch.zeros(heights[k], inputs) for k in range(count)]  # pyright: ignore[reportAttributeAccessIssue]
        return Difference(torch.cat(rows))
    low = {k: one for k, one in parts.items() if isinstance(one, LowRank)}
    if len(low) < len(parts) or any(one.magnitude is not None for one in low.values()):
        raise ConceptError(f"{key:.80} would join changes that are no plain LoRA.", "Export it for diffusers.")
    ranks = {len(one.down) for one in low.values()}
    rank, scale = max(ranks), next(iter(low.values())).scale
    downs, ups = [], []
    for k in range(count):
        down, up = torch.zeros(rank, inputs), torch.zeros(heights[k], rank)
        if k in low:
            own = len(low[k].down)
            down[:own], up[:, :own] = low[k].down, low[k].up * (low[k].scale / scale)
        downs.append(down)
        ups.append(up)
    return LowRank(torch.cat(downs), torch.block_diag(*ups), scale)


_COMFYUI = (
    ("transformer.", "diffusion_model."),
    ("text_encoder.", "text_encoders.clip_l.transformer.text_model."),
    ("text_encoder_2.", "text_encoders.clip_g.transformer."),
)


def to_comfyui(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """The tensors of changes in the names of ComfyUI, their scale worked into the up-projections.

    Args:
        changes: those of a transformer in the names of its first implementation.
    """
    tensors: dict[str, Tensor] = {}
    for key, change in changes.items():
        start, theirs = next(pair for pair in _COMFYUI if key.startswith(pair[0]))
        layer, _, leaf = (theirs + key.removeprefix(start)).rpartition(".")
        if isinstance(change, Difference):
            tensors[f"{layer}.diff{'_b' if leaf == 'bias' else ''}"] = change.difference
            continue
        tensors[f"{layer}.lora_A.weight"] = change.down
        tensors[f"{layer}.lora_B.weight"] = change.up * change.scale
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
