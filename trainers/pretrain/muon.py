"""Muon: momentum whose matrices are made orthogonal before they are applied.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the step is scaled to AdamW's
typical size as in Liu et al., arXiv:2502.16982, so that one learning rate serves both. `torch.optim.Muon` takes only
2-D parameters; most of a UNet's weights are convolutions, read here as (out, in * height * width) matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix, approximately: singular values end between 0.7 and 1.2.

    Newton-Schulz iteration with the quintic coefficients of the source; matrix is (rows, columns) float32.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrix else x.T


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: parameters with at least two dimensions.
        lr: learning rate, on AdamW's scale.
        momentum: decay of the running gradient.
        weight_decay: as in AdamW.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply one step; `closure` is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["running"] = torch.zeros_like(parameter)
                running = state["running"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(running, group["momentum"])
                update = orthogonal(ahead.flatten(1))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)
