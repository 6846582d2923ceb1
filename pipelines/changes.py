"""Changes of a base's weights: low-rank or whole differences, applied for as long as a `with` lasts.

A weight is replaced by its changed version, computed once, and the original is put back afterwards: a picture costs no
more than with the base alone, and the base stays bit-identical.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.components import Components
from pipelines.errors import ConceptError

PARTS = ("unet", "text_encoder", "text_encoder_2")
LORA_METADATA = "lora_adapter_metadata"  # diffusers' header key for ranks and alphas


@dataclass(frozen=True)
class LowRank:
    """A low-rank change (LoRA, arXiv:2106.09685, eq. 3), with a magnitude also its direction alone (DoRA).

    Attributes:
        down: (rank, in) or (rank, in, k, k).
        up: (out, rank) or (out, rank, 1, 1).
        scale: alpha / rank.
        magnitude: (out,) lengths of the rows of the result (DoRA, arXiv:2402.09353, eq. 5), or None.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """The weight with this change, float32."""
        before = weight.detach().float()
        change = self.up.flatten(1).to(before) @ self.down.flatten(1).to(before) * self.scale
        after = before + change.reshape(before.shape)
        if self.magnitude is not None:
            along = (-1, *[1] * (before.ndim - 1))
            length = after.flatten(1).norm(dim=1).reshape(along)
            after = after * self.magnitude.to(before).reshape(along) / length
        return before + strength * (after - before)

    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it fits."""
        return (self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class Difference:
    """A change given whole: trained minus base, of the shape of the weight."""

    difference: Tensor

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """The weight with this change, float32."""
        before = weight.detach().float()
        return before + strength * self.difference.to(before)

    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it fits."""
        return tuple(self.difference.shape)


Change = LowRank | Difference


def same(one: Mapping[str, Change], other: Mapping[str, Change]) -> bool:
    """Whether two sets of changes are equal, number by number."""
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


def part_of(components: Components, part: str) -> nn.Module | None:
    """The network called `unet`, `text_encoder` or `text_encoder_2`, or None."""
    if part == "unet":
        return components.unet
    which = {"text_encoder": 0, "text_encoder_2": 1}.get(part, 99)
    return components.text_encoders[which] if which < len(components.text_encoders) else None


def _owner(components: Components, key: str) -> tuple[nn.Module, str] | None:
    """The module that holds the parameter `part.path.leaf`, and the leaf's name."""
    part, _, path = key.partition(".")
    module = part_of(components, part)
    where, _, leaf = path.rpartition(".")
    try:
        owner = module.get_submodule(where) if module is not None else None
    except AttributeError:
        return None
    return (owner, leaf) if owner is not None and isinstance(getattr(owner, leaf, None), nn.Parameter) else None


def check_fits(components: Components, changes: Mapping[str, Change], called: str) -> None:
    """Refuse changes of weights this base does not have.

    Raises:
        ConceptError: naming the first weight that is missing or has another shape.
    """
    for key, change in changes.items():
        found = _owner(components, key)
        if found is None:
            raise ConceptError(
                f"{called} changes {key}, which {components.name} does not have.",
                "It was made for another kind of model, or its file is damaged; use the base it was trained on.",
            )
        shape = tuple(getattr(*found).shape)
        if shape != change.shape():
            raise ConceptError(
                f"{called} changes {key} as a weight of {change.shape()}, in {components.name} it is {shape}.",
                "It was made for another base; use the one it was trained on.",
            )


@contextmanager
def applied(components: Components, changes: Mapping[str, Change], strength: float = 1.0) -> Iterator[None]:
    """Change the weights for as long as the `with` lasts. Nests: a second change starts from the first's result.

    Args:
        components: the base.
        changes: `part.path.leaf` -> change; must fit (`check_fits`).
        strength: 0 leaves the base as it is, 1 gives what was learned.
    """
    undo: list[tuple[Any, str, nn.Parameter]] = []
    try:
        for key, change in changes.items():
            found = _owner(components, key)
            if found is None or strength == 0:
                continue
            owner, leaf = found
            weight: nn.Parameter = getattr(owner, leaf)
            new = _narrowed(change.changed(weight, strength), weight.dtype)
            undo.append((owner, leaf, weight))
            setattr(owner, leaf, nn.Parameter(new, requires_grad=False))
        yield
    finally:
        for owner, leaf, weight in reversed(undo):
            setattr(owner, leaf, weight)


def _narrowed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another precision. To bfloat16 it is rounded up or down by chance, the same each time.

    Rounded to the nearest, changes smaller than half a step of bfloat16 would vanish, and most of a careful
    training are.
    """
    if dtype != torch.bfloat16:
        return weight.to(dtype)
    generator = torch.Generator().manual_seed(weight.numel())
    chance = torch.randint(0, 1 << 16, weight.shape, generator=generator, dtype=torch.int32).to(weight.device)
    bits = (weight.contiguous().view(torch.int32) + chance) & ~0xFFFF
    return bits.view(torch.float32).to(dtype)


# -- as stored --------------------------------------------------------------------------------------------------

_DOWN, _UP, _MAGNITUDE, _WHOLE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".diff"


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
            tensors[module + _MAGNITUDE] = change.magnitude
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def lora_metadata(changes: Mapping[str, Change]) -> dict[str, Any]:
    """What diffusers needs beside the tensors to load them with the right strength, by part."""
    described: dict[str, Any] = {}
    for part in PARTS:
        mine = {k: c for k, c in changes.items() if k.startswith(f"{part}.") and isinstance(c, LowRank)}
        if not mine:
            continue
        ranks = {key: len(change.down) for key, change in mine.items()}
        rank = max(set(ranks.values()), key=list(ranks.values()).count)
        first = next(iter(mine.values()))
        described[f"{part}.r"] = rank
        described[f"{part}.lora_alpha"] = first.scale * rank
        described[f"{part}.target_modules"] = [key.removeprefix(f"{part}.").removesuffix(".weight") for key in mine]
        described[f"{part}.use_dora"] = first.magnitude is not None
    return described


def _scale(part: str, rank: int, metadata: Mapping[str, Any]) -> float:
    """Alpha / rank of a part by the header's metadata, which may hold anything."""
    try:
        scale = float(metadata.get(f"{part}.lora_alpha", rank)) / float(metadata.get(f"{part}.r", rank))
    except (TypeError, ValueError, ZeroDivisionError):
        scale = math.nan
    if not 0 < scale < math.inf:
        raise ConceptError(
            f"The header gives the LoRA of the {part} an impossible alpha or rank.", "Get the file again."
        )
    if metadata.get(f"{part}.alpha_pattern") or metadata.get(f"{part}.rank_pattern"):
        raise ConceptError(
            "This LoRA has another alpha or rank in some layers, which is not supported.", "Export it with one for all."
        )
    return scale * math.sqrt(rank) if metadata.get(f"{part}.use_rslora") else scale


def read_stored(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Change]:
    """Changes from the tensors of a file; keys that are none are left out.

    Args:
        tensors: as `stored` writes them.
        metadata: as `lora_metadata` gives it; without it, alpha is the rank, as diffusers assumes.

    Raises:
        ConceptError: if half of a pair is missing, or the strength cannot be told.
    """
    changes: dict[str, Change] = {}
    for key, tensor in tensors.items():
        if key.endswith(_WHOLE):
            changes[key.removesuffix(_WHOLE)] = Difference(tensor)
        elif key.endswith(_UP) and key.removesuffix(_UP) + _DOWN not in tensors:
            raise ConceptError(f"The LoRA pair of {key.removesuffix(_UP)} is broken.", "Get the file again.")
        elif key.endswith(_DOWN):
            module = key.removesuffix(_DOWN)
            up = tensors.get(module + _UP)
            if up is None or up.ndim < 2 or tensor.ndim < 2 or up.shape[1] != len(tensor):
                raise ConceptError(f"The LoRA pair of {module} is broken.", "Get the file again.")
            magnitude = tensors.get(module + _MAGNITUDE)
            if magnitude is not None and magnitude.numel() != len(up):
                raise ConceptError(
                    f"The DoRA magnitudes of {module} are not as many as its rows.", "Get the file again."
                )
            scale = _scale(module.partition(".")[0], len(tensor), metadata)
            changes[f"{module}.weight"] = LowRank(tensor, up, scale, magnitude)
    return changes
