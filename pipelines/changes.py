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
        magnitude: lengths of the rows of the result, (out,), as PEFT trains them (DoRA, arXiv:2402.09353, eq. 5), or of
            its columns, (in,), as LyCORIS does; or None.
        columns: whether they are those of the columns.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None
    columns: bool = False

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """The weight with this change, float32.

        With magnitudes of rows the strength scales the low-rank change inside the direction, whose length stays the
        learned one (peft's `set_adapters`); 0 leaves the weight alone nonetheless. With those of columns it scales the
        whole change, as ComfyUI and AUTOMATIC1111 do.
        """
        before = weight.detach().float()
        if strength == 0:
            return before
        change = self.up.flatten(1).to(before) @ self.down.flatten(1).to(before) * self.scale
        inside = 1.0 if self.columns else strength
        after = before + inside * change.reshape(before.shape)
        if self.magnitude is None:
            return after
        along = (1, -1) if self.columns else (-1, 1)
        shape = along + (1,) * (before.ndim - 2)
        length = after.transpose(0, 1 if self.columns else 0).flatten(1).norm(dim=1).reshape(shape)
        after = after * self.magnitude.to(before).reshape(shape) / length
        return before + strength * (after - before) if self.columns else after

    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it fits."""
        return (self.up.shape[0], *self.down.shape[1:])

    def widened(self, channels: int) -> LowRank:
        """The same change of a weight that reads more channels, whose further ones it leaves alone."""
        if self.columns:
            raise ConceptError(
                "A DoRA of columns cannot be used with a UNet that reads more channels than its own.",
                "Use the base it was trained on.",
            )
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


def by_rows(changes: Mapping[str, Change]) -> bool:
    """Whether there are magnitudes of rows among changes (DoRA as PEFT trains it)."""
    return any(
        isinstance(change, LowRank) and change.magnitude is not None and not change.columns
        for change in changes.values()
    )


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


def difference(components: Components, key: str, change: Change) -> Difference:
    """What a change does to a weight of this base, as a whole difference; it must fit (`check_fits`)."""
    found = _owner(components, key)
    if found is None:
        raise KeyError(key)
    weight: Tensor = getattr(*found)
    return Difference((change.changed(weight, 1.0) - weight.detach().float()).cpu())


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
    down, up = own.get("down"), own.get("up")
    if down is None or up is None or up.ndim < 2 or down.ndim < 2 or up.shape[1] != len(down) or not len(down):
        raise ConceptError(f"The LoRA pair of {layer:.80} is broken.", "Get the file again.")
    if up.ndim == 4 and up.shape[2:] != (1, 1):
        raise ConceptError(f"The LoRA pair of {layer:.80} is broken.", "Get the file again.")
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
