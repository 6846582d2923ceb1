"""UNet calls and optimiser steps of training recorded as CUDA graphs.

A small UNet spends most of a step on a GPU waiting for thousands of launches by Python; a graph is one. Calls are
recorded once for each shape of batch, forward and backward, with autocast to bfloat16 where that is wanted. On a CPU,
and where recording fails or does not give what it should, all goes on as without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.events import Note, OnEvent, ignore

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Tensors(nn.Module):
    """A UNet with tensors only as inputs and output."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return self.unet(sample, timesteps, context).sample


class CudaGraphUNet:
    """A UNet call: (B, C, h, w), timesteps (B,), text states (B, L, dim) to the prediction.

    The parameters may change between calls, but only in place; the set of them must not.

    Args:
        unet: in training mode, all its parameters on one device.
        half: whether to compute in bfloat16, on a GPU.
        on_event: receives a note if recording fails.
    """

    def __init__(self, unet: UNet2DConditionModel, half: bool = True, on_event: OnEvent = ignore) -> None:
        self.unet, self.half, self.on_event = unet, half, on_event
        self.calls: dict[torch.Size, Call] = {}

    def _own(self, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        with torch.autocast(sample.device.type, torch.bfloat16, enabled=self.half and sample.is_cuda):
            return self.unet(sample, timesteps, context).sample

    def __call__(self, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Return the prediction, with gradients for the parameters and for each input that wants one."""
        if not sample.is_cuda:
            return self._own(sample, timesteps, context)
        if sample.shape not in self.calls:
            self.calls[sample.shape] = self._record(sample, timesteps, context)
        return self.calls[sample.shape](sample, timesteps, context)

    def _record(self, *given: Tensor) -> Call:
        try:
            static = tuple(one.detach().clone().requires_grad_(one.requires_grad) for one in given)
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


class CudaGraphStep:
    """Clipping and the steps of optimisers, recorded as one CUDA graph after some steps without.

    Learning rates become tensors on the device, which the caller fills; see `set_rate`.

    Args:
        optimizers: Muon and AdamW, with all they train on one GPU.
        clip: largest gradient norm, or None.
        on_event: receives a note if recording fails.
    """

    AFTER = 20
    """Steps before the recording: by then the state of the optimisers is there."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], clip: float | None, on_event: OnEvent = ignore) -> None:
        self.optimizers, self.clip, self.on_event = optimizers, clip, on_event
        self.parameters = [p for one in optimizers for group in one.param_groups for p in group["params"]]
        self.done = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.trained: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def __call__(self) -> None:
        """Clip gradients and step."""
        self.done += 1
        if self.done == self.AFTER:
            self._record()
        given = [p.grad for p in self.trained if p.grad is not None]
        if self.graph is None or len(given) != len(self.gradients):
            self._step()
            return
        torch._foreach_copy_(self.gradients, given)
        self.graph.replay()

    def _step(self) -> None:
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for optimizer in self.optimizers:
            optimizer.step()

    def _record(self) -> None:
        """Record a step on gradients kept in one place; nothing is changed by it."""
        self.trained = [p for p in self.parameters if p.grad is not None]
        own = [cast(Tensor, p.grad) for p in self.trained]
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.gradients = [one.clone() for one in own]
        try:
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = torch.tensor(float(group["lr"]), device=self.trained[0].device)
                    if "capturable" in group:
                        group["capturable"] = True
            for parameter, gradient in zip(self.trained, self.gradients, strict=True):
                parameter.grad = gradient
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self._step()
            self.graph = graph
        except RuntimeError as error:
            self.on_event(Note(f"steps are not recorded as a CUDA graph: {str(error).splitlines()[0]}"))
            for optimizer, kept in zip(self.optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, kept, strict=True):
                    group["lr"] = rate
        for parameter, gradient in zip(self.trained, own, strict=True):
            parameter.grad = gradient


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a parameter group, in place where a recorded step reads it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
