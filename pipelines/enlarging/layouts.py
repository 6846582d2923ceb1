"""Files of upscalers of the ESRGAN family: their layouts, recognised by the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt

import torch
from torch import Tensor

from pipelines.enlarging.networks import Compact, Network, RRDBNet, filled

Tensors = Mapping[str, Tensor]

_ORIGINAL = (  # ESRGAN's first layout: one list of layers, of which those with weights have numbers
    (re.compile(r"model\.0\.(\w+)"), r"conv_first.\1"),
    (re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)"), r"body.\1.rdb\2.conv\3.\4"),
    (re.compile(r"model\.1\.sub\.\d+\.(\w+)"), r"conv_body.\1"),
)
_SECOND = (  # of its later code, and of BSRGAN
    (re.compile(r"RRDB_trunk\.(\d+)\.RDB(\d)\."), r"body.\1.rdb\2."),
    (re.compile(r"trunk_conv\."), "conv_body."),
    (re.compile(r"upconv(\d)\."), r"conv_up\1."),
    (re.compile(r"HRconv\."), "conv_hr."),
)
_BEHIND = re.compile(r"model\.(\d+)\.(weight|bias)")


def network_of(tensors: Tensors) -> Network | None:
    """Return the network that the tensors of a file are the weights of; None if it is of none of these layouts."""
    for build in (_residual, _compact):
        try:
            if (found := build(tensors)) is not None:
                return found
        except (KeyError, RuntimeError, ValueError):  # other layers or shapes under the same names
            continue
    return None


def _residual(tensors: Tensors) -> Network | None:
    named = _renamed(tensors)
    first, growing = named.get("conv_first.weight"), named.get("body.0.rdb1.conv1.weight")
    if first is None or growing is None or first.ndim != 4 or growing.ndim != 4:
        return None
    blocks = len({name.split(".")[1] for name in named if name.startswith("body.")})
    doublings = sum(name.startswith("conv_up") and name.endswith(".weight") for name in named)
    folded = {3: 1, 12: 2, 48: 4}.get(first.shape[1], 0)
    if not folded or 2**doublings < folded or doublings > 4:
        return None
    return _made(lambda: RRDBNet(first.shape[0], growing.shape[0], blocks, doublings, folded), named)


def _renamed(tensors: Tensors) -> dict[str, Tensor]:
    """Return the tensors under the names of Real-ESRGAN's layout."""
    named = {_translated(name): tensor for name, tensor in tensors.items()}
    numbers = sorted({int(found[1]) for name in named if (found := _BEHIND.fullmatch(name))})
    ends = {number: f"conv_up{place}" for place, number in enumerate(numbers[:-2], 1)}
    ends |= dict(zip(numbers[-2:], ("conv_hr", "conv_last"), strict=False))
    return {_BEHIND.sub(lambda found: f"{ends[int(found[1])]}.{found[2]}", name): one for name, one in named.items()}


def _translated(name: str) -> str:
    for pattern, new in _ORIGINAL:
        if pattern.fullmatch(name):
            return pattern.sub(new, name)
    for pattern, new in _SECOND:
        if pattern.match(name):
            return pattern.sub(new, name)
    return name


def _compact(tensors: Tensors) -> Network | None:
    first = tensors.get("body.0.weight")
    convolutions = sorted(
        int(name.split(".")[1]) for name, one in tensors.items() if re.fullmatch(r"body\.\d+\.weight", name)
        and one.ndim == 4
    )  # fmt: skip
    if first is None or first.ndim != 4 or first.shape[1] != 3 or len(convolutions) < 2:
        return None
    scale = isqrt(tensors[f"body.{convolutions[-1]}.weight"].shape[0] // 3)
    return _made(lambda: Compact(first.shape[0], len(convolutions) - 2, scale), tensors) if scale else None


def _made(build: Callable[[], Network], tensors: Tensors) -> Network:
    """Return a network with weights; it takes no memory for others first."""
    with torch.device("meta"):
        network = build()
    return filled(network, tensors)
