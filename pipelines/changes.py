"""Changes of a base's weights: low-rank or whole differences, applied for as long as a `with` lasts.

A weight is replaced by its changed version, computed once, and the original is put back afterwards: a picture costs no
more than with the base alone, and the base stays bit-identical.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.components import Components
from pipelines.errors import ConceptError
from pipelines.lora_keys import parsed

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
        """The weight with this change, float32.

        With a magnitude the strength scales the low-rank change inside the direction, whose length stays the learned
        one (peft's `set_adapters`); 0 leaves the weight alone nonetheless.
        """
        before = weight.detach().float()
        if strength == 0:
            return before
        change = self.up.flatten(1).to(before) @ self.down.flatten(1).to(before) * self.scale
        after = before + strength * change.reshape(before.shape)
        if self.magnitude is None:
            return after
        along = (-1, *[1] * (before.ndim - 1))
        length = after.flatten(1).norm(dim=1).reshape(along)
        return after * self.magnitude.to(before).reshape(along) / length

    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it fits."""
        return (self.up.shape[0], *self.down.shape[1:])

    def widened(self, channels: int) -> LowRank:
        """The same change of a weight that reads more channels, whose further ones it leaves alone."""
        return replace(self, down=_widened(self.down, channels))


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

    def widened(self, channels: int) -> Difference:
        """The same change of a weight that reads more channels, whose further ones it leaves alone."""
        return Difference(_widened(self.difference, channels))


def _widened(weight: Tensor, channels: int) -> Tensor:
    """(out, in, k, k) with zeros for further inputs."""
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, channels - weight.shape[1]))


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
        if shape != _fitting(key, change, getattr(*found)).shape():
            raise ConceptError(
                f"{called} changes {key} as a weight of {change.shape()}, in {components.name} it is {shape}.",
                "It was made for another base; use the one it was trained on.",
            )


def _fitting(key: str, change: Change, weight: Tensor) -> Change:
    """The change; widened for the first layer of an inpainting UNet, whose first channels are the latents."""
    first = key == "unet.conv_in.weight" and weight.shape[1] > change.shape()[1]
    return change.widened(weight.shape[1]) if first else change


class _ChangedWeight(nn.Parameter):
    """A changed weight that remembers what it was in the base."""

    base: Tensor | None = None


@contextmanager
def applied(components: Components, changes: Mapping[str, Change], strength: float = 1.0) -> Iterator[None]:
    """Change the weights for as long as the `with` lasts.

    Nests: each change is that of the base's own weight, and they are added, so that their order does not matter.

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
            new = _ChangedWeight(_added(_fitting(key, change, weight), weight, strength), requires_grad=False)
            new.base = _base_of(weight)
            undo.append((owner, leaf, weight))
            setattr(owner, leaf, new)
        yield
    finally:
        for owner, leaf, weight in reversed(undo):
            setattr(owner, leaf, weight)


def _base_of(weight: Tensor) -> Tensor:
    """What a weight is in the base."""
    base: Tensor | None = getattr(weight, "base", None)
    return weight if base is None else base


def _added(change: Change, weight: Tensor, strength: float) -> Tensor:
    """A weight, which others may have changed already, with what a change makes of the base's own."""
    base = _base_of(weight)
    if base is weight:
        return _narrowed(change.changed(weight, strength), weight.dtype)
    difference = change.changed(base, strength) - base.detach().float()
    return _narrowed(weight.detach().float() + difference, weight.dtype)


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
        if set(own) - {"difference"}:
            changes[f"{layer}.weight"] = _low_rank(layer, own, metadata)
    return changes


def _low_rank(layer: str, own: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> LowRank:
    down, up, magnitude = own.get("down"), own.get("up"), own.get("magnitude")
    if down is None or up is None or up.ndim < 2 or down.ndim < 2 or up.shape[1] != len(down) or not len(down):
        raise ConceptError(f"The LoRA pair of {layer:.80} is broken.", "Get the file again.")
    if magnitude is not None and magnitude.numel() != len(up):
        raise ConceptError(f"The DoRA magnitudes of {layer:.80} are not as many as its rows.", "Get the file again.")
    if magnitude is not None:
        magnitude = magnitude.flatten()
    if up.ndim == 4 and up.shape[2:] != (1, 1):
        raise ConceptError(f"The LoRA pair of {layer:.80} is broken.", "Get the file again.")
    return LowRank(down, up, _scale(layer, len(down), own.get("alpha"), metadata), magnitude)
