"""Gated layers for a base that has none, or others than its own: an adapter, attached for as long as a `with` lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, GatedSelfAttentionDense
from diffusers.models.embeddings import GLIGENTextBoundingboxProjection
from torch import Tensor, nn

from pipelines.errors import ModelError
from pipelines.gligen.tokens import load_adapter, save_adapter
from pipelines.models.components import Components

_HINT = "Give the layers that were trained for this family of models."


@dataclass(frozen=True)
class GatedLayers:
    """Gated layers that were trained on a base, and are a file of their own.

    Attributes:
        tensors: by their names in the UNet; float32.
        about: strings for the header of the file: base, fingerprint, steps.
        half: whether the file holds float16.
        partners: nothing is learned beside them.
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, str]
    half: bool = True
    partners: Sequence[GatedLayers] = ()

    def described(self, recipe: Mapping[str, Any], base_fingerprint: str) -> GatedLayers:
        """Return the same with the settings of the training, as text, and the base in the header."""
        told = {name: str(value) for name, value in recipe.items()}
        return replace(self, about={**told, **self.about, "fingerprint": base_fingerprint})

    def save(self, path: Path) -> Path:
        """Write the file, whole or not at all."""
        save_adapter(self.tensors, path, self.about, torch.float16 if self.half else torch.float32)
        return path

    def attach(self, components: Components) -> AbstractContextManager[Components]:
        """Give a base these layers inside the `with`; raises `ModelError` if they do not fit."""
        return with_layers(components, self.tensors, "the training")


@contextmanager
def with_adapter(components: Components, path: Path) -> Iterator[Components]:
    """Give a base the gated layers of a file; afterwards it is as before, and its other weights are never touched.

    Fits whatever is changed in the rest of the base: a fine-tune, concepts of any kind.

    Args:
        components: the base.
        path: `.safetensors` with the tensors of `fuser` and `position_net`, or a whole gated UNet.

    Raises:
        ModelError: if the file cannot be read or its layers do not fit the base.
    """
    tensors, _ = load_adapter(path)
    with with_layers(components, tensors, path.name) as gated:
        yield gated


@contextmanager
def with_layers(components: Components, tensors: Mapping[str, Tensor], said: str) -> Iterator[Components]:
    """Give a base gated layers inside the `with`.

    Args:
        components: the base.
        tensors: by their names in the UNet.
        said: where they come from, for errors.

    Raises:
        ModelError: if they do not fit the base.
    """
    unet = components.unet
    blocks = {name: module for name, module in unet.named_modules() if isinstance(module, BasicTransformerBlock)}
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("position_net."):
            groups.setdefault("", {})[name.removeprefix("position_net.")] = tensor
        else:
            where, _, leaf = name.partition(".fuser.")
            groups.setdefault(where, {})[leaf] = tensor
    if "" not in groups or groups.keys() - {""} != blocks.keys():
        missing = len(blocks.keys() - groups.keys())
        raise ModelError(
            f"The gated layers of {said} do not fit {components.name}: "
            f"{missing} of its {len(blocks)} blocks get none, {len(groups.keys() - {''} - blocks.keys())} are left over"
            f"{'' if '' in groups else ', and nothing reads boxes'}.",
            _HINT,
        )
    # Parts put together in memory have no fingerprint yet, and with the adapter in them it would be another.
    components = replace(components, identity=components.fingerprint())
    width = int(unet.config["cross_attention_dim"])
    with ExitStack() as attached:
        for where, block in blocks.items():
            fuser = _filled(_fuser(block, width), groups[where], f"{said} ({where})", components)
            attached.enter_context(_instead(block, "fuser", fuser))
        net = _filled(_position_net(groups[""], width), groups[""], f"{said} (position_net)", components)
        attached.enter_context(_instead(unet, "position_net", net))
        yield components


def _fuser(block: BasicTransformerBlock, width: int) -> nn.Module:
    """Return a gated layer without weights, with the heads of the block and the attention it uses."""
    host: Any = block.attn1
    with torch.device("meta"):
        layer = GatedSelfAttentionDense(block.dim, width, host.heads, host.inner_dim // host.heads)
    layer.attn.set_processor(host.processor)
    return layer


def _position_net(tensors: Mapping[str, Tensor], width: int) -> nn.Module:
    """Return a position net without weights, of the kind the tensors are of."""
    kind = "text-image" if "linears_image.0.weight" in tensors else "text-only"
    with torch.device("meta"):
        return GLIGENTextBoundingboxProjection(width, width, feature_type=kind)


def _filled(layer: nn.Module, tensors: Mapping[str, Tensor], what: str, base: Components) -> nn.Module:
    """Return the layer with its weights, frozen, in the precision and on the device of the base.

    Raises:
        ModelError: if they are not all there, or of another size.
    """
    moved = {name: tensor.to(base.device, base.dtype) for name, tensor in tensors.items()}
    try:
        layer.load_state_dict(moved, assign=True)
    except RuntimeError as error:
        said = str(error).splitlines()[-1].strip()
        raise ModelError(f"The gated layers of {what} do not fit {base.name}: {said}", _HINT) from None
    return layer.eval().requires_grad_(False)


@contextmanager
def _instead(owner: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Put a module into a place inside the `with`, and the former one back on exit."""
    before = getattr(owner, name, None)
    setattr(owner, name, module)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)
