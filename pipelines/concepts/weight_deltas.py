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

from pipelines.errors import ConceptError
from pipelines.models.components import Components
from pipelines.models.memory.quantised import QuantisedLinear

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


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

    def acts(self) -> bool:
        """Return whether it changes any weight."""
        return self.magnitude is not None or bool(self.up.any() and self.down.any())

    def is_product(self) -> bool:
        """Return whether its effect on an output is that of two products, so that the weight itself is not needed."""
        return self.magnitude is None

    def moved(self, device: torch.device) -> LowRank:
        """Return the same change in float32 on a device."""
        told = {name: getattr(self, name) for name in ("down", "up", "magnitude")}
        return replace(self, **{name: None if one is None else one.float().to(device) for name, one in told.items()})

    def reshaped(self, shape: tuple[int, ...]) -> LowRank:
        """The same change of a weight (out, in, ...) of as many numbers."""
        return replace(self, down=self.down.reshape(len(self.down), *shape[1:]))

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

    def acts(self) -> bool:
        """Return whether it changes any weight."""
        return bool(self.difference.any())

    def is_product(self) -> bool:
        """Return no: the weight itself is changed."""
        return False

    def moved(self, device: torch.device) -> Difference:
        """Return the same change on a device."""
        return Difference(self.difference.to(device))

    def reshaped(self, shape: tuple[int, ...]) -> Difference:
        """The same change of a weight of as many numbers."""
        return Difference(self.difference.reshape(shape))

    def widened(self, channels: int) -> Difference:
        """The same change of a weight that reads more channels, whose further ones it leaves alone."""
        return Difference(_widened(self.difference, channels))


def _widened(weight: Tensor, channels: int) -> Tensor:
    """(out, in, k, k) with zeros for further inputs."""
    return nn.functional.pad(weight, (0, 0, 0, 0, 0, channels - weight.shape[1]))


Change = LowRank | Difference


def by_rows(changes: Mapping[str, Change]) -> bool:
    """Return whether there are magnitudes of rows among changes (DoRA as PEFT trains it)."""
    return any(
        isinstance(change, LowRank) and change.magnitude is not None and not change.columns
        for change in changes.values()
    )


def part_of(components: Components, part: str) -> nn.Module | None:
    """The network called `unet` or `transformer`, `text_encoder`, `text_encoder_2` or `text_encoder_3`, or None."""
    if part == components.family.network:
        return components.denoiser
    which = PARTS.index(part) - 2 if part in PARTS[2:] else 99
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
        shape = _shape(*found)
        if shape != _fitting(key, change, shape).shape():
            raise ConceptError(
                f"{called} changes {key} as a weight of {change.shape()}, in {components.name} it is {shape}.",
                "It was made for another base; use the one it was trained on.",
            )


def _shape(owner: nn.Module, leaf: str) -> tuple[int, ...]:
    """Return the shape of a weight, whatever it is stored in."""
    if isinstance(owner, QuantisedLinear) and leaf == "weight":
        return int(owner.out_features), int(owner.in_features)
    return tuple(getattr(owner, leaf).shape)


def _fitting(key: str, change: Change, shape: tuple[int, ...]) -> Change:
    """The change in the shape of the weight, if it has as many numbers for each output.

    It is widened for the first layer of an inpainting UNet, whose first channels are the latents. Other programs write
    pairs of two dimensions for convolutions of one pixel, and the kernel of a difference behind its inputs.
    """
    if key == "unet.conv_in.weight" and shape[1] > change.shape()[1]:
        change = change.widened(shape[1])
    own = change.shape()
    alike = own != shape and own[:1] == shape[:1] and math.prod(own) == math.prod(shape)
    return change.reshaped(shape) if alike else change


def difference(components: Components, key: str, change: Change) -> Difference:
    """Return the effect of a change on a weight of this base, as a whole difference; it must fit (`check_fits`)."""
    found = _owner(components, key)
    if found is None:
        raise KeyError(key)
    owner, leaf = found
    is_packed = isinstance(owner, QuantisedLinear) and leaf == "weight"
    weight: Tensor = owner.plain() if is_packed else getattr(owner, leaf)  # pyright: ignore[reportCallIssue]
    return Difference((_fitting(key, change, _shape(*found)).changed(weight, 1.0) - weight.detach().float()).cpu())


class _ChangedWeight(nn.Parameter):
    """A changed weight that remembers what it was in the base.

    That of a layer kept in few bits is still the base's, with the changes and their strengths beside it.
    """

    base: Tensor | None = None
    changes: tuple[tuple[Change, float], ...] = ()


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
            undo.append((owner, leaf, weight))
            fitting = _fitting(key, change, _shape(*found)).moved(components.device)
            setattr(owner, leaf, _changed_weight(owner, leaf, fitting, strength))
        yield
    finally:
        for owner, leaf, weight in reversed(undo):
            replaced(owner, leaf, weight)


def replaced(owner: nn.Module, leaf: str, weight: nn.Parameter) -> None:
    """Put a weight in the place of another, on its device: a network may have moved since it was taken out."""
    device = getattr(owner, leaf).device
    if weight.device != device:
        weight.data = weight.data.to(device)
    setattr(owner, leaf, weight)


def _changed_weight(owner: nn.Module, leaf: str, change: Change, strength: float) -> _ChangedWeight:
    """Return what takes the place of a weight, which others may have changed already."""
    weight: nn.Parameter = getattr(owner, leaf)
    if isinstance(owner, QuantisedLinear) and leaf == "weight":
        new = _ChangedWeight(weight.detach(), requires_grad=False)
        new.changes = (*getattr(weight, "changes", ()), (change, strength))
    else:
        new = _ChangedWeight(_added(change, weight, strength), requires_grad=False)
    new.base = _base_of(weight)
    return new


def _base_of(weight: Tensor) -> Tensor:
    """Return the weight as it is in the base."""
    base: Tensor | None = getattr(weight, "base", None)
    return weight if base is None else base


def _added(change: Change, weight: Tensor, strength: float) -> Tensor:
    """A weight, which others may have changed already, with what a change makes of the base's own."""
    base = _base_of(weight)
    if base is weight:
        return _cast(change.changed(weight, strength), weight.dtype)
    difference = change.changed(base, strength) - base.detach().float()
    return _cast(weight.detach().float() + difference, weight.dtype)


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another precision. To bfloat16 it is rounded up or down by chance, the same each time.

    Rounded to the nearest, changes smaller than half a step of bfloat16 would vanish, and most of a careful
    training are.
    """
    if dtype != torch.bfloat16:
        return weight.to(dtype)
    generator = torch.Generator().manual_seed(weight.numel())
    noise = torch.randint(0, 1 << 16, weight.shape, generator=generator, dtype=torch.int32).to(weight.device)
    bits = (weight.contiguous().view(torch.int32) + noise) & ~0xFFFF
    return bits.view(torch.float32).to(dtype)
