"""UNet calls of training recorded as CUDA graphs, once for each shape of batch.

A small UNet spends most of a step on a GPU waiting for a thousand launches by Python; a graph is one. Forward and
backward are recorded with autocast to bfloat16 where that is wanted. On a CPU, and where recording fails or does not
give what the UNet gives, calls go to the UNet itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.events import Note, OnEvent, ignore

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Tensors(nn.Module):
    """A UNet whose call takes and gives tensors alone."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return self.unet(sample, timesteps, context).sample


class Recorded:
    """Call it as the UNet: (B, C, h, w), timesteps (B,), text states (B, L, dim); gives the prediction.

    The parameters may change between calls, but only in place; the set of them must not.

    Args:
        unet: in training mode, all its parameters on one device.
        half: whether to compute in bfloat16, on a GPU.
        on_event: is told if recording fails.
    """

    def __init__(self, unet: UNet2DConditionModel, half: bool = True, on_event: OnEvent = ignore) -> None:
        self.unet, self.half, self.on_event = unet, half, on_event
        self.calls: dict[torch.Size, Call] = {}

    def _own(self, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        with torch.autocast(sample.device.type, torch.bfloat16, enabled=self.half and sample.is_cuda):
            return self.unet(sample, timesteps, context).sample

    def __call__(self, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The prediction, with gradients for the parameters alone."""
        if not sample.is_cuda:
            return self._own(sample, timesteps, context)
        if sample.shape not in self.calls:
            self.calls[sample.shape] = self._record(sample, timesteps, context)
        return self.calls[sample.shape](sample, timesteps, context)

    def _record(self, *given: Tensor) -> Call:
        try:
            static = tuple(one.detach().clone() for one in given)
            with torch.autocast("cuda", torch.bfloat16, enabled=self.half, cache_enabled=False):
                recorded: Any = torch.cuda.make_graphed_callables(
                    _Tensors(self.unet).train(), static, allow_unused_input=True
                )
            again, own = recorded(*given).float(), self._own(*given).float()
            apart = float((again - own).detach().abs().max() / own.detach().abs().max())
            if apart < 0.1:
                return recorded
            said = f"a recorded call differs by {apart:.2f}"
        except RuntimeError as error:
            said = str(error).splitlines()[0]
        self.on_event(Note(f"not recorded as a CUDA graph: {said}"))
        return self._own
