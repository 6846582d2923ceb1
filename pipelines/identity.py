"""What tells base models apart: a fingerprint of their weights, whatever their files look like."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from pipelines.grounding import is_gated

if TYPE_CHECKING:
    from pipelines.components import Components

FORMER = {"9a82fcfd3971b051": "852e69bd049f01aa"}
"""Fingerprint -> the one of the same base when its gated layers, still untrained, were part of it.

What was learned on that base names it so.
"""


def weights_identity(components: Components) -> str:
    """Hash of a sample of every weight as float16, so that an fp16 copy of a base counts as that base.

    The gated layers are left out: a base that is given boxes is the same base to all that was learned on it.
    To be taken before the weights are cast to bfloat16, which loses digits: `load` does.
    """
    digest = hashlib.sha256(components.family.encode())
    for module in components.modules():
        own = ((name, tensor) for name, tensor in module.state_dict().items() if not is_gated(name))
        for name, tensor in sorted(own):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten()[:64].to("cpu", torch.float16).numpy().tobytes())
    for encoder in components.text_encoders:
        words: Any = encoder.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        digest.update(words.weight.detach().flatten()[:65536].to("cpu", torch.float16).numpy().tobytes())
    found = digest.hexdigest()[:16]
    return FORMER.get(found, found)
