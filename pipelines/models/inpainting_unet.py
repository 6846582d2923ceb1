"""The 9-channel UNet of a base: latents, mask, and latents of the masked picture; mask 1 = repaint.

It lies in `unet_inpainting/` beside the base's own parts, in the diffusers layout. Layers that boxes are placed with
(GLIGEN) are left out of its file: they are those of the base, and put back here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent, ignore
from pipelines.models import POCKET
from pipelines.models.components import Components
from pipelines.models.fingerprint import is_gated
from pipelines.models.memory.quantised import form_of, quantise
from pipelines.request.inpaint import BLEND, Inpaint

FOLDER = "unet_inpainting"
CHANNELS = 9
"""4 noisy latents, 1 mask, 4 latents of the masked picture, in this order."""

WEIGHTS = "diffusion_pytorch_model.safetensors"


def has_inpainting_unet(components: Components) -> bool:
    """Return whether the UNet in place has 9 channels already."""
    return components.has_unet and components.input_channels == CHANNELS


def inpainting_components(components: Components, source: str | Path | None = None) -> Components:
    """Return the base with a 9-channel UNet in place of its own, same device, same precision.

    A base whose UNet has 9 channels is given back as it is.

    Args:
        components: the base.
        source: folder of the UNet (or a folder that holds `unet_inpainting/`); by default the one beside the base.

    Raises:
        ModelError: if there is none, or it is none for this base; says how to get one.
    """
    if source is None and has_inpainting_unet(components):
        return components
    folder = found(components, source)
    if folder is None:
        named = f"There is no inpainting UNet in {source}." if source else f"{components.name} has no inpainting UNet."
        raise ModelError(named, NEXT)
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"The inpainting UNet in {folder} cannot be read: {str(error)[:200]}", "Get the folder anew."
        ) from None
    if config.get("in_channels") != CHANNELS:
        raise ModelError(
            f"The UNet in {folder} has {config.get('in_channels')} channels; one for inpainting has {CHANNELS}.", NEXT
        )
    return replace(components, denoiser=with_layers_of(components.unet, stored, str(folder)))


NEXT = (
    "Train one (studio train inpainting --base BASE), take a base that has 9 channels (such as an -inpainting model), "
    "or have latents blended with the base as it is (--inpaint-unet blend)."
)


def found(components: Components, source: str | Path | None = None) -> Path | None:
    """Return the folder of the inpainting UNet that `inpainting_components` would read, or None."""
    place = Path(source) if source is not None else POCKET if components.name == "pocket" else Path(components.name)
    for folder in (place / FOLDER, place):
        if (folder / "config.json").is_file() and (folder / WEIGHTS).is_file():
            return folder
    return None


def with_inpainting_unet(components: Components, asked: Inpaint | None, on_event: OnEvent = ignore) -> Components:
    """Return the base with its inpainting UNet if the request has a mask and there is such a UNet, else the base.

    Image-to-image goes with any UNet, and the base's own is the better one for it. Without an inpainting UNet the
    latents of the base's own are blended, and a note says how to get one.

    Raises:
        ModelError: if the UNet the request names is none for this base, or cannot be read.
    """
    if asked is None or asked.whole or asked.unet == BLEND or (asked.unet is None and has_inpainting_unet(components)):
        return components
    if asked.unet is None and not components.has_unet:
        return components  # a transformer's latents are always blended
    if asked.unet is None and found(components) is None:
        said = f"{components.name} has no inpainting UNet, so its latents are blended."
        on_event(Note(f"{said} studio train inpainting --base {components.name} makes one, which sees more."))
        return components
    return inpainting_components(components, asked.unet)


def with_layers_of(base: UNet2DConditionModel, stored: Mapping[str, Tensor], said: str) -> UNet2DConditionModel:
    """Return a UNet of 9 channels with stored weights, and the base's own layers for boxes.

    Args:
        base: the UNet of 4 channels.
        stored: weights by their names.
        said: where they come from, for errors.

    Raises:
        ModelError: if they are none for this base.
    """
    unet = widened_shape(base, base.config["attention_type"])
    weights = {name: tensor for name, tensor in base.state_dict().items() if is_gated(name)}
    try:
        unet.load_state_dict(weights | {name: tensor.to(base.dtype) for name, tensor in stored.items()})
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"The inpainting UNet in {said} is none for this base: {line[:200]}", NEXT) from None
    torch.nn.Module.to(unet, dtype=base.dtype).eval().requires_grad_(False)
    if form := form_of(base):
        quantise(unet, form)
    torch.nn.Module.to(unet, base.device)
    return unet


def widened_shape(base: UNet2DConditionModel, attention_type: str = "default") -> UNet2DConditionModel:
    """Return a UNet like the base with 9 channels, its weights still to be filled in."""
    config = {key: value for key, value in dict(base.config).items() if not key.startswith("_")}
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(  # pyright: ignore[reportAssignmentType]
        config | {"in_channels": CHANNELS, "attention_type": attention_type}
    )
    return unet
