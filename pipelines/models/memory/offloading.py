"""Networks that wait in the machine's memory and come to the device only while they work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import apply_group_offloading

from pipelines.models.components import Components

Offload = Literal["none", "parts", "layers"]


def offloaded(components: Components, device: torch.device | str, how: Offload) -> Components:
    """Let networks wait in the machine's memory; return the base, which computes on `device`.

    Args:
        components: the base, on the CPU; its networks get hooks, for good.
        device: that computes.
        how: "parts" brings text encoders, denoiser and autoencoder there one after the other, as the pipelines of
            diffusers do; "layers" brings the denoiser's and the text encoders' layers one by one (group offloading),
            which is slower and takes next to no memory. "none" brings all of it there at once.
    """
    place = torch.device(device)
    if how == "none":
        return components.to(place)
    before: Any = None
    waiting: list[Any] = [*components.text_encoders, components.denoiser]
    if how == "layers":
        for network in waiting:
            apply_group_offloading(network, place, torch.device("cpu"), offload_type="leaf_level")
        waiting = []
    for network in (*waiting, components.vae):
        _, before = cpu_offload_with_hook(network, place, before)
    return replace(components, place=place)


@contextmanager
def leaving(components: Components, parts: Sequence[Any]) -> Iterator[None]:
    """Let parts leave the device whenever the denoiser works, inside the `with`; each comes back when it is called.

    For trainings: what encodes pictures and captions works before the first steps, and then for previews alone.

    Args:
        components: the base, on the device.
        parts: of its networks, frozen; not the denoiser.
    """
    device = components.device
    hooks = [cpu_offload_with_hook(part, device)[1] for part in parts]

    def leave(*_: Any) -> None:
        for part, hook in zip(parts, hooks, strict=True):
            if next(part.parameters()).device == device:
                hook.offload()

    handle = components.denoiser.register_forward_pre_hook(leave)
    try:
        yield
    finally:
        handle.remove()
        for part in parts:
            remove_hook_from_module(part)
            vars(part).pop("forward", None)  # the hook's own, in the place of the class's
            part.to(device)
