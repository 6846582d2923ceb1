"""Muon: an optimiser that makes the momentum of matrices orthogonal before it is applied.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the step is scaled to AdamW's
typical size as in Liu et al., arXiv:2502.16982, so that one learning rate serves both. `torch.optim.Muon` takes only
2-D parameters; most of a UNet's weights are convolutions, read here as (out, in * height * width) matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, approximately: singular values end between 0.7 and 1.2.

    Newton-Schulz iteration with the quintic coefficients of the source; (..., rows, columns) float32.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Matrices of one shape are made orthogonal together: a GPU then waits for dozens of launches instead of thousands.

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
            alike: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Step parameters whose matrices have one shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["running"] = torch.zeros_like(parameter)
        running = [self.state[parameter]["running"] for parameter in parameters]
        torch._foreach_lerp_(running, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, running, group["momentum"])
        updates = orthogonal(torch.stack([one.flatten(1) for one in ahead]))
        # A learning rate that is a tensor must stay one, or a recorded step would keep that of its recording.
        updates = updates * (group["lr"] * (0.2 * max(updates.shape[1:]) ** 0.5))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        shaped = [update.view_as(one) for update, one in zip(updates.unbind(), parameters, strict=True)]
        torch._foreach_sub_(parameters, shaped)
