"""Optimisers of a training: fused AdamW of torch, Muon, and those of packages that may be installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.errors import ConfigError
from trainers.distributed import Processes
from trainers.loop.muon import Muon
from trainers.method import Trainable
from trainers.settings import TrainConfig


def optimizers_of(pace: TrainConfig, trainable: Trainable, processes: Processes) -> list[torch.optim.Optimizer]:
    """Return the optimisers over the trained parameters: one, or Muon for hidden matrices and AdamW for the rest.

    Raises:
        ConfigError: if a package is not installed.
    """
    rate, parameters = pace.rate * (processes.count if pace.scale_lr else 1), dict(trainable.parameters)
    if pace.optimizer != "muon":
        return [_by_element(pace, trainable, parameters, rate)]
    inner = [name for name, one in parameters.items() if one.ndim >= 2 and not name.startswith(("conv_in", "conv_out"))]
    hidden = [parameters.pop(name) for name in inner]
    rest = [_by_element(pace, trainable, parameters, rate)] if parameters else []
    return [*([Muon(hidden, rate, weight_decay=pace.weight_decay)] if hidden else []), *rest]


def _by_element(
    pace: TrainConfig, trainable: Trainable, parameters: Mapping[str, torch.nn.Parameter], rate: float
) -> torch.optim.Optimizer:
    """Return an optimiser of single numbers, with a group for each rate; lone numbers, such as gates, do not decay."""
    by_kind: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_kind.setdefault((trainable.rates.get(name, 1.0), parameter.numel() > 1), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": own, "lr": rate * factor} | ({} if decays else {"weight_decay": 0.0})
        for (factor, decays), own in by_kind.items()
    ]
    if pace.optimizer == "adamw8bit":
        return _adamw_8bit()(groups, rate, weight_decay=pace.weight_decay)
    if pace.optimizer == "schedule-free":
        optimizer = _schedule_free()(groups, rate, weight_decay=pace.weight_decay)
        optimizer.train()
        return optimizer
    # One kernel for all numbers: four times as quick as one for each operation, on a CPU too.
    return torch.optim.AdamW(groups, rate, weight_decay=pace.weight_decay, fused=True)


def _adamw_8bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "bitsandbytes is not installed, which keeps the optimizer in 8 bits.",
            "Install it (pip install bitsandbytes) on a machine with a GPU, or use --optimizer adamw.",
        ) from None
    return AdamW8bit


def _schedule_free() -> Any:
    try:
        from schedulefree import AdamWScheduleFree  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "schedulefree is not installed, which has the optimizer that needs no schedule.",
            "Install it (pip install schedulefree), or use --optimizer adamw.",
        ) from None
    return AdamWScheduleFree


@contextmanager
def at_the_result(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let the parameters be the result inside the `with`; schedule-free ones take gradients elsewhere."""
    either: Any = optimizer
    if not hasattr(either, "eval"):
        yield
        return
    either.eval()
    try:
        yield
    finally:
        either.train()
