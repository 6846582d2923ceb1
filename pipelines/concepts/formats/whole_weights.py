"""Files whose weights are changes only beside their base: whole weights of Custom Diffusion, and IA3.

diffusers' Custom Diffusion script keeps what the attention's projections became; an IA3 (arXiv:2205.05638, as LyCORIS
stores it) a factor for each row or column of a weight. Both become whole differences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipelines.concepts.card import read_header
from pipelines.concepts.formats.pickles import read_tensors
from pipelines.concepts.lora_keys import parsed
from pipelines.concepts.weight_deltas import Difference, part_of
from pipelines.errors import ConceptError
from pipelines.models.components import Components

_CUSTOM = re.compile(r"(?:unet\.)?(.+)\.processor\.to_(q|k|v|out)_custom_diffusion(?:\.0)?\.(weight|bias)")
_FACTOR, _INPUT = ".weight", ".on_input"


def needs_base(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are such weights."""
    return any(_CUSTOM.fullmatch(name) or name.endswith(_INPUT) for name in names)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, also of a pickle, of which nothing is run.

    Raises:
        ConceptError: if it cannot be read.
    """
    if path.suffix != ".safetensors":
        return read_tensors(path)[0]
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConceptError(f"{path.name} cannot be read: {error}.", "Get it again.") from None


def differences(tensors: Mapping[str, Tensor], base: Components) -> dict[str, Difference]:
    """Return the differences of the weights to this base.

    Raises:
        ConceptError: if they are for another one.
    """
    changes: dict[str, Difference] = {}
    for name, tensor in tensors.items():
        if found := _CUSTOM.fullmatch(name):
            owner, layer, leaf = found.groups()
            key = f"unet.{owner}.to_{layer}{'.0' if layer == 'out' else ''}.{leaf}"
            changes[key] = Difference(tensor.float() - _weight(base, key, tensor.shape))
        elif name.endswith(_FACTOR) and f"{name.removesuffix(_FACTOR)}{_INPUT}" in tensors:
            stem = name.removesuffix(_FACTOR)
            if (known := parsed(f"{stem}.lora_up.weight")) is None:
                raise ConceptError(f"{stem:.80} is no layer that is known.", "Check the file.")
            key = f"{known.layer}.weight"
            changes[key] = _scaled(key, tensor, bool(tensors[stem + _INPUT].any()), base)
    return changes


def _scaled(key: str, factors: Tensor, of_columns: bool, base: Components) -> Difference:
    weight = _weight(base, key)
    along = 1 if of_columns else 0
    if factors.numel() != weight.shape[along]:
        raise _misfit(base, key, f"{factors.numel()} {'columns' if of_columns else 'rows'}", weight)
    shape = [1] * weight.ndim
    shape[along] = -1
    return Difference(weight * factors.float().reshape(shape))


def _weight(base: Components, key: str, shape: Any = None) -> Tensor:
    """A weight of the base, float32; refuses one that is not there or of another shape."""
    part, _, path = key.partition(".")
    network = part_of(base, part)
    weight = None if network is None else dict(network.named_parameters()).get(path)
    if weight is None or (shape is not None and weight.shape != shape):
        raise _misfit(base, key, "no such weight" if shape is None else f"the shape {tuple(shape)}", weight)
    return weight.detach().float().cpu()


def _misfit(base: Components, key: str, theirs: str, weight: Tensor | None) -> ConceptError:
    ours = "lacks it" if weight is None else f"has it as {tuple(weight.shape)}"
    return ConceptError(
        f"The file holds {key:.100} with {theirs}; {base.name} {ours}.", "Name the base it was trained on (--base)."
    )
