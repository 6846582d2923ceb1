"""Trainable weights of a network, made ready and put back: low-rank layers beside them, or copies of them.

Both give the same three things: the parameters, a way to switch what was learned off for a moment (the base itself, for
prior preservation without a second model), and the changes as a concept stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelines.concepts.weight_deltas import Change, Difference, LowRank
from pipelines.errors import ConfigError
from pipelines.models.components import Components
from pipelines.models.memory.quantised import QuantisedLinear
from trainers.settings import LowRankConfig

BOXES = ("fuser", "position_net")  # layers for boxes: another training's business
ADAPTER = "learned"

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Trained:
    """Weights of one network in training.

    Attributes:
        parameters: name -> what is trained.
        off: the network as the base has it, while the `with` lasts; call backward outside.
        changes: what was learned so far.
        scale: of low-rank changes, alpha / rank.
    """

    parameters: dict[str, nn.Parameter]
    off: Callable[[], AbstractContextManager[None]]
    changes: Callable[[], dict[str, Change]]
    scale: float = 1.0


def layers(module: nn.Module, ends: tuple[str, ...]) -> list[str]:
    """Names of the linear and convolution layers whose name ends so, those for boxes left out."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and any(name == end or name.endswith(f".{end}") for end in ends)
        and not any(part in name.split(".") for part in BOXES)
    ]


@contextmanager
def low_rank(
    part: str, module: nn.Module, names: list[str], config: LowRankConfig, generator: torch.Generator
) -> Iterator[Trained]:
    """Low-rank layers beside the named ones (peft), for as long as the `with` lasts.

    Args:
        part: the network's name in a concept: unet, text_encoder, text_encoder_2.
        module: the network.
        names: which layers.
        config: rank, alpha and DoRA.
        generator: draws the initial down-projections, normal with deviation 1/rank as the official scripts do.

    Raises:
        ConfigError: if there is no such layer.
    """
    if not names:
        raise ConfigError(f"The {part} has no layer to adapt.", "Choose other --targets.")
    if config.dora and any(isinstance(module.get_submodule(name), QuantisedLinear) for name in names):
        raise ConfigError(
            "DoRA reads the lengths of the weights themselves, which --quantise keeps in few bits.",
            "Leave --dora or --quantise out.",
        )
    alpha = config.rank if config.alpha is None else config.alpha
    before = {name: module.get_submodule(name) for name in names}
    _inject(module, names, config, alpha)
    adapted: dict[str, Any] = {name: module.get_submodule(name) for name in names}
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in adapted.items():
        # peft gives them the precision of the layer; in bfloat16 AdamW's small steps would be lost.
        for side in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            side.float()
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        with torch.no_grad():
            down.copy_(torch.randn(down.shape, generator=generator) / config.rank)
        parameters |= {f"{part}.{name}.down": down, f"{part}.{name}.up": up}
        if config.dora:
            parameters[f"{part}.{name}.magnitude"] = layer.lora_magnitude_vector[ADAPTER].weight

    @contextmanager
    def off() -> Iterator[None]:
        _place(module, before)
        try:
            yield
        finally:
            _place(module, adapted)

    def changes() -> dict[str, Change]:
        return {f"{part}.{name}.weight": _low_rank_of(layer, alpha / config.rank) for name, layer in adapted.items()}

    try:
        yield Trained(parameters, off, changes, alpha / config.rank)
    finally:
        _place(module, before)
        for extra in [name for name in vars(module) if "peft" in name]:  # peft leaves its configuration behind
            delattr(module, extra)


@contextmanager
def mirrored(module: nn.Module) -> Iterator[None]:
    """Let low-rank layers act with strength -1 on the second half of each batch that gradients are taken of.

    Without gradients, in pictures drawn on the way say, they act with strength 1 on all of it. Tied to gradients
    rather than to a switch, so that activations that are computed again in the backward pass are the same.

    Args:
        module: a network with `low_rank` layers, whose first dimension is the batch everywhere.
    """

    def turned(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return output
        first, second = output.chunk(2)
        return torch.cat((first, -second))

    adapted: list[Any] = [one for one in module.modules() if hasattr(one, "lora_B")]
    ups: list[nn.Module] = [one.lora_B[ADAPTER] for one in adapted]
    handles = [up.register_forward_hook(turned) for up in ups]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def denoiser_low_rank(
    components: Components, config: LowRankConfig, generator: torch.Generator
) -> AbstractContextManager[Trained]:
    """Low-rank layers in the denoiser: beside those that the family lists for the chosen targets."""
    names = layers(components.denoiser, components.family.targets[config.targets])
    return low_rank(components.family.network, components.denoiser, names, config, generator)


def _inject(module: nn.Module, names: list[str], config: LowRankConfig, alpha: float) -> None:
    """Let peft put its layers around the named ones."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        target_modules=names,
        use_dora=config.dora,  # pyright: ignore[reportArgumentType]
    )
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(devices=[]):  # peft draws from the global state
        inject_adapter_in_model(settings, module, ADAPTER)
    for parameter in trained:  # peft freezes everything else, a new word's rows too
        parameter.requires_grad_(True)


def _low_rank_of(layer: Any, scale: float) -> LowRank:
    down, up = (side[ADAPTER].weight.detach().cpu().float().clone() for side in (layer.lora_A, layer.lora_B))
    magnitudes = layer.lora_magnitude_vector
    magnitude = magnitudes[ADAPTER].weight.detach().cpu().float().flatten().clone() if ADAPTER in magnitudes else None
    return LowRank(down, up, scale, magnitude)


def _place(module: nn.Module, placed: Mapping[str, nn.Module]) -> None:
    for name, layer in placed.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, layer)


@contextmanager
def whole(part: str, module: nn.Module, names: list[str]) -> Iterator[Trained]:
    """Copies of the named parameters in the place of the originals, for as long as the `with` lasts.

    Args:
        part: the network's name in a concept.
        module: the network, in float32.
        names: which parameters.

    Raises:
        ConfigError: if there is no such parameter, or the network is not in float32.
    """
    chosen = {name: module.get_parameter(name) for name in names}
    if not chosen:
        raise ConfigError(f"The {part} has no such weights to train.", "Use another base or method.")
    if any(parameter.dtype != torch.float32 for parameter in chosen.values()):
        raise ConfigError(
            "Weights themselves are trained in float32 only.", "Use --precision no, or train low-rank changes."
        )
    originals = {name: parameter.data for name, parameter in chosen.items()}

    def place(tensors: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in chosen.items():
            parameter.data = tensors[name]

    copies = {name: original.clone() for name, original in originals.items()}
    place(copies)
    for parameter in chosen.values():
        parameter.requires_grad_(True)

    @contextmanager
    def off() -> Iterator[None]:
        place(originals)
        try:
            yield
        finally:
            place(copies)

    def changes() -> dict[str, Change]:
        # Half precision keeps a difference to one part in two thousand, and halves the file.
        return {
            f"{part}.{name}": Difference((copies[name] - original).half().cpu()) for name, original in originals.items()
        }

    try:
        yield Trained({f"{part}.{name}": parameter for name, parameter in chosen.items()}, off, changes)
    finally:
        place(originals)
        for parameter in chosen.values():
            parameter.requires_grad_(False)
            parameter.grad = None
