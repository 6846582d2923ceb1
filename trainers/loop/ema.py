"""The moving average of trained parameters, which is often better than their last state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.loop.checkpoints import Checkpoint, require_same
from trainers.loop.clock import Clock


class EMA:
    """Exponential moving average of parameters.

    Args:
        parameters: parameters to average.
        decay: share of the old average that stays at each update; early updates count more, min(decay, (1+n)/(10+n)),
            so that a short run is not mostly its start. 0 makes the average the parameters themselves.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the average; of one that learns no more it is what that one is."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self.values:
            torch._foreach_lerp_(list(self.values.values()), [self.parameters[n] for n in self.values], 1 - decay)
        for name, value in self.values.items():
            if not self.parameters[name].requires_grad:
                value.copy_(self.parameters[name])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the average into the parameters inside the `with`."""
        own = {name: self.parameters[name].detach().clone() for name in self.values}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(own)

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return {**self.values, "updates": torch.tensor(self.updates)} if self.decay else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(state[name])
        self.updates = int(state["updates"]) if self.decay else 0

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)


def averaged_checkpoint(
    path: Path,
    every: int,
    weights: Mapping[str, Tensor],
    average: EMA,
    optimizers: Sequence[torch.optim.Optimizer],
    clock: Clock,
    about: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Return the state of a training with a moving average and a clock.

    Args:
        path: folder of the states.
        every: steps between them.
        weights: trained weights, as `state_dict` gives them; written to in place.
        average: of it.
        optimizers: of it.
        clock: of the training.
        about: settings a training goes on only with.
    """
    settings = dict(about or {})

    def state() -> dict[str, Any]:
        return {
            "about": json.dumps(settings),
            "weights": {name: value.detach() for name, value in weights.items()},
            "average": average.state(),
            "optimizers": [one.state_dict() for one in optimizers],
            "seconds": clock.seconds,
        }

    def restore(kept: dict[str, Any]) -> None:
        require_same(json.loads(kept["about"]), settings, path)
        with torch.no_grad():
            for name, value in kept["weights"].items():
                weights[name].copy_(value)
        average.restore(kept["average"])
        for one, old in zip(optimizers, kept["optimizers"], strict=True):
            one.load_state_dict(old)
        clock.resume(float(kept["seconds"]))

    return Checkpoint(path, every, state, restore)
