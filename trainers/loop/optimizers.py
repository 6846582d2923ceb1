"""Optimisers of a training: fused AdamW of torch, and those of packages that may be installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.errors import ConfigError
from trainers.distributed import Processes
from trainers.method import Trainable
from trainers.settings import TrainConfig


def optimizer_of(pace: TrainConfig, trainable: Trainable, processes: Processes) -> torch.optim.Optimizer:
    """Return the optimiser over the trained parameters, each group at its own rate.

    Raises:
        ConfigError: if its package is not installed.
    """
    rate = pace.rate * (processes.count if pace.scale_lr else 1)
    by_rate: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in trainable.parameters.items():
        by_rate.setdefault(trainable.rates.get(name, 1.0), []).append(parameter)
    groups = [{"params": parameters, "lr": rate * factor} for factor, parameters in by_rate.items()]
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
