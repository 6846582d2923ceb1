"""Frozen networks in fewer bits: the linear layers of repeated blocks kept in 8 or 4 bits a number.

Weights alone are stored so; what is computed stays in the precision of the network, each layer being written out while
it works. Gradients pass through to what is before a layer and beside it (QLoRA, arXiv:2305.14314), and nothing is kept
of it for the backward pass but its bits. No package is needed, and it is the same on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.models.fingerprint import is_gated
from pipelines.request.settings import Quantised

BITS: Mapping[Quantised, float] = {"int8": 8.0, "fp8": 8.0, "nf4": 4.5}
"""Bits a number takes, of nf4 with the scales of its blocks; those of a row's scale are not counted."""

BLOCK = 64
"""Numbers of nf4 with a scale of their own."""

LARGEST = {"int8": 127.0, "fp8": 448.0}

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 values of 4-bit NormalFloat (arXiv:2305.14314, appendix E)."""


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is kept in few bits.

    Its `weight` holds the bits as int8, which no cast of a network touches: (out, in), or two numbers a byte for nf4.
    A parameter put in its place may have `changes`, which `pipelines.concepts.weight_deltas` lays beside it.
    """

    def __init__(self, layer: nn.Linear, form: Quantised) -> None:
        nn.Module.__init__(self)
        self.form: Quantised
        self.in_features, self.out_features, self.form = layer.in_features, layer.out_features, form
        bits, scale = _narrow(layer.weight.detach(), form)
        self.weight = nn.Parameter(bits, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scale", scale)
        self.eval()

    def plain(self) -> Tensor:
        """Return the weight (out, in), float32."""
        scale: Any = self.scale
        return _wide(self.weight.detach(), scale, self.form).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product with the weight as it is stored, or as changes beside it make it."""
        changes = getattr(self.weight, "changes", ())
        low_rank = [one for one in changes if one[0].is_product()]
        if len(low_rank) < len(changes):  # others need the weight itself
            before = self.plain()
            after = before + sum(change.changed(before, strength) - before for change, strength in changes)
            return F.linear(input, after.to(input.dtype), self.bias)
        product: Tensor = _Product.apply(input, self)  # pyright: ignore[reportAssignmentType]
        for change, strength in low_rank:
            side = F.linear(F.linear(input.to(change.down.dtype), change.down), change.up)
            product = product + (strength * change.scale * side).to(product.dtype)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """A product with a weight that is written out anew in the backward pass, not kept from the forward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: QuantisedLinear) -> Tensor:  # pyright: ignore
        ctx.layer = layer
        return F.linear(input, layer.plain().to(input.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return gradient @ ctx.layer.plain().to(gradient.dtype), None


def quantise(network: nn.Module, form: Quantised) -> None:
    """Keep the linear layers of a network's repeated blocks in few bits, in place and for good.

    Embeddings, the first and the last layers stay as they are, as do layers for boxes, which are another training's.

    Args:
        network: a denoiser or a text encoder, frozen.
        form: int8 and fp8 have a scale for each row, nf4 one for each `BLOCK` numbers; layers whose numbers do not fill
            whole blocks stay as they are.
    """
    for name in quantisable(network, form):
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, QuantisedLinear(network.get_submodule(name), form))  # pyright: ignore


def form_of(network: nn.Module) -> Quantised | None:
    """Return what a network is quantised to; None if it is not."""
    return next((module.form for module in network.modules() if isinstance(module, QuantisedLinear)), None)


def quantisable(network: nn.Module, form: Quantised) -> list[str]:
    """Return the names of the layers that `quantise` would keep in few bits."""
    blocks = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, nn.ModuleList))
    return [
        name
        for name, layer in network.named_modules()
        if type(layer) is nn.Linear
        and name.startswith(blocks)
        and not is_gated(f"{name}.weight")
        and (form != "nf4" or layer.weight.numel() % BLOCK == 0)
    ]


def _narrow(weight: Tensor, form: Quantised) -> tuple[Tensor, Tensor]:
    """Return the bits of a weight (out, in) as int8, and its scales, float32."""
    rows = weight.float().reshape(-1, BLOCK) if form == "nf4" else weight.float()
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST.get(form, 1.0)
    scaled = rows / scale
    if form == "int8":
        return scaled.round().to(torch.int8), scale
    if form == "fp8":
        return scaled.to(torch.float8_e4m3fn).view(torch.int8), scale
    values = torch.tensor(NF4, device=weight.device)
    codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2).to(torch.uint8).flatten()
    return (codes[0::2] << 4 | codes[1::2]).view(torch.int8), scale


def _wide(bits: Tensor, scale: Tensor, form: Quantised) -> Tensor:
    """Return the weight that bits and scales stand for, float32, in the shape of its scales' rows."""
    if form == "int8":
        return bits * scale
    if form == "fp8":
        return bits.view(torch.float8_e4m3fn).float() * scale
    packed = bits.view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1, BLOCK)
    return torch.tensor(NF4, device=bits.device)[codes.long()] * scale
