"""LyCORIS's decompositions of a change of weights (LoHa, LoKr, LoCon with a core) as what they amount to.

Source: KohakuBlueleaf/LyCORIS (arXiv:2309.14859), in the reading of AUTOMATIC1111 and ComfyUI. A LoCon with a core is
low-rank again, exactly; LoHa and LoKr become whole differences.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.errors import ConceptError

KINDS = {"hada": "LoHa", "lokr": "LoKr"}


def kind_of(roles: set[str]) -> str | None:
    """The decomposition that tensors of these roles are of: `hada`, `lokr` or none."""
    return next((kind for kind in KINDS if any(role.startswith(kind) for role in roles)), None)


def with_core(down: Tensor, core: Tensor) -> Tensor:
    """The down-projection (rank, in, k, k) of a LoCon whose kernel lies in a core.

    Args:
        down: (rank, in, 1, 1) or (rank, in).
        core: `lora_mid`, (rank, rank, k, k).
    """
    return torch.einsum("pqkl,qi->pikl", core.float(), down.flatten(1).float())


def whole(layer: str, own: Mapping[str, Tensor]) -> Tensor:
    """The difference that a LoHa or LoKr amounts to, (out, in, ...) or with the kernel flattened behind `in`.

    Args:
        layer: its name, for messages.
        own: tensors by role, `alpha` and `scalar` among them if given.

    Raises:
        ConceptError: if tensors are missing or do not fit together.
    """
    kind = kind_of(set(own))
    parts = {role: tensor.float() for role, tensor in own.items()}
    try:
        change, rank = _hadamard(parts) if kind == "hada" else _kronecker(parts)
    except (KeyError, RuntimeError, IndexError):
        raise ConceptError(
            f"The {KINDS.get(kind or '', 'change')} of {layer:.80} is broken.", "Get it again."
        ) from None
    scale = float(parts["alpha"]) / rank if rank and "alpha" in parts else 1.0
    return change * scale * float(parts.get("scalar", torch.tensor(1.0)))


def _hadamard(parts: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """(w1_a w1_b) * (w2_a w2_b), elementwise; with cores each is a Tucker product."""
    factors: list[Tensor] = []
    for which in ("1", "2"):
        a, b = parts[f"hada_w{which}_a"], parts[f"hada_w{which}_b"]
        core = parts.get(f"hada_t{which}")
        factors.append(a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a))
    return factors[0] * factors[1], len(parts["hada_w1_b"])


def _kronecker(parts: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The Kronecker product of w1 and w2, each given whole or as a product; the rank is 0 where both are whole."""
    rank = 0
    factors: list[Tensor] = []
    for which in ("1", "2"):
        given = parts.get(f"lokr_w{which}")
        if given is None:
            a, b, core = parts[f"lokr_w{which}_a"], parts[f"lokr_w{which}_b"], parts.get(f"lokr_t{which}")
            given = a @ b if core is None else torch.einsum("ijkl,ip,jr->prkl", core, a, b)
            rank = len(b)
        factors.append(given)
    one, two = factors
    return torch.kron(one.reshape(*one.shape, *[1] * (two.ndim - one.ndim)), two.contiguous()), rank
