"""Memory that a training takes, for each choice that saves some, by arithmetic from the sizes of the networks.

Weights may be on the meta device: nothing but their shapes is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from pipelines.models.components import Components
from pipelines.models.memory.quantised import BITS, QuantisedLinear, quantisable
from pipelines.request.settings import Quantised
from trainers.run import Run

PER_TRAINED = {"adamw": 16, "adamw8bit": 10, "schedule-free": 16, "muon": 12}
"""Bytes for a trained number: itself, its gradient and two moments, of Muon one; in float32, or moments in 8 bits."""


@dataclass(frozen=True)
class MemoryChoice:
    """Settings that decide how much memory a training takes.

    Attributes:
        precision: of what is frozen.
        quantise: what frozen weights are kept in instead.
        checkpointing: whether activations are computed twice.
    """

    precision: str
    quantise: Quantised | None = None
    checkpointing: bool = False

    @property
    def flags(self) -> str:
        """Return the choice as flags of the command line."""
        said = [f"--precision {self.precision}"] if self.precision != "no" else []
        said += [f"--quantise {self.quantise}"] if self.quantise else []
        said += ["--gradient-checkpointing"] if self.checkpointing else []
        return " ".join(said) or "float32"


@dataclass(frozen=True)
class Kept:
    """Bytes kept for the backward pass of one batch, as they were measured.

    Attributes:
        plain: with all activations kept.
        checkpointed: with gradient checkpointing.
        precision: that they were measured in.
    """

    plain: int
    checkpointed: int
    precision: str = "no"

    def bytes(self, choice: MemoryChoice) -> int:
        """Return the bytes under a choice; those in 16 bits take half."""
        factor = _width(choice.precision) / _width(self.precision)
        return round((self.checkpointed if choice.checkpointing else self.plain) * factor)


def _width(precision: str) -> int:
    return 4 if precision == "no" else 2


def weights(components: Components, run: Run, choice: MemoryChoice) -> int:
    """Return the bytes of all networks on the device while the steps of a training are computed.

    Networks that are trained, or trained through to a word, are float32; frozen text encoders and the autoencoder leave
    a GPU once everything is encoded, and are not counted there, unless they encode at every step.
    """
    denoiser = choice if not run.config.trains_weights else MemoryChoice("no")
    total = _bytes(components.denoiser, denoiser)
    stays = components.device.type == "cpu" or not run.config.encodes_once
    if run.config.trains_text or stays:
        encoders = MemoryChoice("no") if run.config.trains_text else choice
        total += sum(_bytes(encoder, encoders) for encoder in components.text_encoders)
    return total + (_bytes(components.vae, MemoryChoice(choice.precision)) if stays else 0)


def _bytes(network: nn.Module, choice: MemoryChoice) -> int:
    """Return the bytes of a network whose linear layers may be quantised, whatever they are stored in now."""
    packed = [module for module in network.modules() if isinstance(module, QuantisedLinear)]
    form = choice.quantise
    linear = sum(one.in_features * one.out_features for one in packed)
    linear += sum(network.get_parameter(f"{name}.weight").numel() for name in quantisable(network, form or "int8"))
    stored = sum(one.weight.numel() for one in packed)
    numbers = (
        sum(one.numel() for one in network.parameters())
        - stored
        + sum(one.in_features * one.out_features for one in packed)
    )
    width = _width(choice.precision)
    return round((numbers - linear) * width + linear * (BITS[form] / 8 if form else width))


def choices(run: Run, device: torch.device) -> Iterator[MemoryChoice]:
    """Return the run's own choice, then those that take less, from the least to the most that is given up for it.

    On a CPU 16 bits are far slower, and are not among them.
    """
    own = MemoryChoice(run.train.precision, run.train.quantise, run.train.gradient_checkpointing)
    yield own
    precision = own.precision if device.type == "cpu" or own.precision != "no" else "bf16"
    forms: tuple[Quantised | None, ...] = (None, "int8", "nf4") if own.quantise is None else (own.quantise, "nf4")
    for form in forms if not run.config.trains_weights else (None,):
        for checkpointing in (False, True):
            if (one := MemoryChoice(precision, form, checkpointing or own.checkpointing)) != own:
                yield one


def needed(
    components: Components, run: Run, trained: int, latents: int, kept: Kept | None
) -> Mapping[MemoryChoice, int]:
    """Return the bytes of a training for each choice, its own first.

    Args:
        components: the base.
        run: method and settings.
        trained: number of trained values.
        latents: bytes of what the pictures were encoded to.
        kept: activations of a batch; None leaves them out.
    """
    fixed = trained * (PER_TRAINED[run.train.optimizer] + (4 if run.train.ema else 0)) + latents
    return {
        one: weights(components, run, one) + fixed + (kept.bytes(one) if kept else 0)
        for one in choices(run, components.device)
    }


def room(device: torch.device) -> int:
    """Return the bytes that a training may take on a device: all of a GPU, or what is free of the machine's.

    On a CPU what this process has already, the base above all, is among them.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def latents(components: Components, run: Run, count: int) -> int:
    """Return the bytes of means and spreads of `count` encoded pictures, float32, mirrored ones too."""
    side = (run.data.resolution or components.defaults.size) // components.factor
    kinds = (2 if run.data.flip > 0 else 1) * (1 + run.data.smaller_copies)
    return count * components.channels * side**2 * 4 * 2 * kinds


def sentences(found: Mapping[MemoryChoice, int], room: int) -> list[str]:
    """Return what a training takes, what other choices take, and if it does not fit one that does.

    Args:
        found: bytes for each choice, the run's own first.
        room: bytes there are.
    """
    (own, takes), *others = found.items()
    less = [(one, count) for one, count in others if count < 0.95 * takes]
    said = [f"About {in_words(takes)} of memory; there are {in_words(room)}."]
    if less:
        said.append(f"Less with {'; '.join(f'{one.flags}: {in_words(count)}' for one, count in less)}.")
    if takes > room:
        fits = next((one.flags for one, count in others if count <= room), None)
        way = f"{fits} does" if fits else "nor does any other choice here; take a smaller --resolution or base"
        said.append(f"Warning: it does not fit as it is set ({own.flags}); {way}.")
    return said


def in_words(count: int) -> str:
    """Return bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"


class Saved:
    """Count the bytes that autograd keeps inside the `with`, parameters left out.

    Attributes:
        bytes: so far; storages that several tensors share count once.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.bytes = 0
        self._known = {one.untyped_storage().data_ptr() for one in parameters}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda saved: saved)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
