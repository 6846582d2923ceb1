"""Changes of weights as kohya's scripts and LyCORIS name them, which ComfyUI, AUTOMATIC1111, Forge and InvokeAI read.

Low-rank changes are `lora_down`, `lora_up` and `alpha`; whole differences `diff` and `diff_b`, those of norms `w_norm`
and `b_norm`. A `dora_scale` is the length of each *column* there: of the rows' magnitudes of PEFT there is no such
layout, and its change has to be written whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.concepts.lora_keys import kohya, parsed
from pipelines.concepts.weight_deltas import Change, Difference, LowRank, by_rows


def named(changes: Mapping[str, Change], sdxl: bool) -> bool:
    """Return whether kohya's layout has a name for each change, by which it is found again."""
    if by_rows(changes):
        return False
    for key, change in changes.items():
        layer, _, leaf = key.rpartition(".")
        low = isinstance(change, LowRank)
        name = f"{kohya(layer, sdxl)}.{'lora_up.weight' if low else _ending(layer, leaf, change)}"
        if (found := parsed(name)) is None or found.layer != (layer if low else key):
            return False
    return True


def to_kohya(changes: Mapping[str, Change], sdxl: bool) -> dict[str, Tensor]:
    """The tensors of changes, by kohya's names.

    diffusers reads one alpha from such a file, whatever others it holds: layers with another than most have it worked
    into their up-projections.

    Args:
        changes: those that are `named`.
        sdxl: whether the base is SDXL, whose UNet has other names there.

    Raises:
        ValueError: if one has no name.
    """
    if not named(changes, sdxl):
        raise ValueError("one of these changes has no name in kohya's layout")
    low = {key: change for key, change in changes.items() if isinstance(change, LowRank)}
    tensors = _low_rank(low, sdxl)
    for key, change in changes.items():
        if isinstance(change, Difference):
            layer, _, leaf = key.rpartition(".")
            tensors[f"{kohya(layer, sdxl)}.{_ending(layer, leaf, change)}"] = change.difference
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _low_rank(changes: Mapping[str, LowRank], sdxl: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    alphas = [round(change.scale * len(change.down), 6) for change in changes.values()]
    alpha = max(set(alphas), key=alphas.count, default=1.0)
    for (key, change), own in zip(changes.items(), alphas, strict=True):
        name = kohya(key.removesuffix(".weight"), sdxl)
        up = change.up if own == alpha else change.up * (own / alpha)
        tensors |= {f"{name}.lora_down.weight": change.down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        if change.magnitude is not None:
            tensors[f"{name}.dora_scale"] = change.magnitude.reshape(1, -1, *[1] * (change.down.ndim - 2))
    return tensors


def _ending(layer: str, leaf: str, change: Difference) -> str:
    """Return the suffix of a whole difference behind the name of its layer."""
    if "norm" in layer.rpartition(".")[2] and change.difference.ndim == 1:
        return "w_norm" if leaf == "weight" else "b_norm"
    return "diff" if leaf == "weight" else "diff_b"
