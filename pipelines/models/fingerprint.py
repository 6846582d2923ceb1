"""The identity of a base model: a fingerprint of its weights, whatever its file layout. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

FORMER = {"9a82fcfd3971b051": "852e69bd049f01aa"}
"""Fingerprint -> the one of the same base when its gated layers, still untrained, were part of it.

What was learned on that base names it so.
"""

SAMPLE, WORDS = 64, 65536
"""Sampled values of each weight, and of the table of words."""

Weight = tuple[str, tuple[int, ...], bytes]
"""Name, shape, and the first `SAMPLE` numbers as float16."""


def is_gated(name: str) -> bool:
    """Return whether a parameter of a UNet belongs to its gated layers or to their position net."""
    return ".fuser." in name or name.startswith("position_net.")


def identity(family: str, networks: Iterable[Iterable[Weight]], words: Iterable[bytes]) -> str:
    """Return 16 hex digits for a base.

    The gated layers are left out: a base that is given boxes is the same base to all that was learned on it.

    Args:
        family: of the base.
        networks: the weights of UNet, autoencoder and text encoders, in this order, each in any order.
        words: the first `WORDS` numbers of each text encoder's table of words, as float16.
    """
    digest = hashlib.sha256(family.encode())
    for network in networks:
        for name, shape, start in sorted(weight for weight in network if not is_gated(weight[0])):
            digest.update(f"{name}{shape}".encode())
            digest.update(start)
    for table in words:
        digest.update(table)
    found = digest.hexdigest()[:16]
    return FORMER.get(found, found)


def weights_identity(components: Any) -> str:
    """Return a hash of a sample of every weight as float16, so that an fp16 copy counts as the same base.

    To be taken before the weights are cast to bfloat16, which loses digits: `load` does.
    """
    networks = (
        [(name, tuple(tensor.shape), _start(tensor, SAMPLE)) for name, tensor in module.state_dict().items()]
        for module in components.modules()
    )
    tables: list[Any] = [encoder.get_input_embeddings() for encoder in components.text_encoders]  # pyright: ignore[reportCallIssue]
    return identity(components.family.name, networks, [_start(table.weight, WORDS) for table in tables])


def _start(tensor: Any, count: int) -> bytes:
    """Return the first numbers of a tensor as float16."""
    return tensor.detach().flatten()[:count].half().cpu().numpy().tobytes()
