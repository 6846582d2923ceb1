"""Training in several processes, started by `accelerate launch` or torchrun.

Every process holds the whole base and draws the same batch, of which it computes its part; the gradients of what is
trained are averaged. So two processes give what one gives with twice the batch. A run in one process passes through
here without a single extra operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


@dataclass(frozen=True)
class BatchShare:
    """The part of a batch that one process computes.

    Attributes:
        index: from 0.
        count: parts in all; of equal size.
    """

    index: int = 0
    count: int = 1

    def of(self, draw: Callable[[int], Tensor], size: int) -> Tensor:
        """Return the rows (size, ...) of this part, out of the `draw` for all parts together.

        Chance is drawn for the whole batch in every process, so that how many there are does not change what is drawn.
        """
        if self.count == 1:
            return draw(size)
        return draw(size * self.count)[self.index * size : (self.index + 1) * size]


WHOLE = BatchShare()


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and this one among them.

    Attributes:
        rank: which this is, from 0.
        count: number of processes.
        accelerator: accelerate's, where there are several.
    """

    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Return whether this process writes and reports."""
        return self.rank == 0

    @property
    def part(self) -> BatchShare:
        """The part of every batch that this process computes."""
        return BatchShare(self.rank, self.count)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by the mean over all processes; one message for all of them."""
        if self.count == 1:
            return
        listed = list(parameters)
        # What has no gradient here has none elsewhere: all processes compute the same terms.
        gradients = [parameter.grad for parameter in listed if parameter.grad is not None]
        if not gradients:
            return
        joined = torch.cat([gradient.flatten().float() for gradient in gradients])
        joined = self.accelerator.reduce(joined, "mean")
        pieces = joined.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.reshape(gradient.shape))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return figures as the mean over all processes, by the same names in the same order everywhere."""
        if self.count == 1 or not values:
            return dict(values)
        figures = torch.tensor(list(values.values()), dtype=torch.float32, device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(figures, "mean").tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether a flag is true in any process."""
        return flag if self.count == 1 else self.mean({"flag": float(flag)})["flag"] > 0

    def broadcast(self, value: Value) -> Value:
        """Return the value of the main process; it must be picklable."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        holder = [value]
        broadcast_object_list(holder)
        return holder[0]

    def main_first(self) -> AbstractContextManager[Any]:
        """Let the main process go through the `with` before the others, which find its results."""
        return nullcontext() if self.count == 1 else self.accelerator.main_process_first()


ALONE = Processes()


def launched() -> Processes:
    """Return the processes that a launcher started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import Accelerator

    accelerator = Accelerator()
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator)
