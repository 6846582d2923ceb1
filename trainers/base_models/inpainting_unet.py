"""Inpainting UNets: a base of 4 channels becomes one of 9, with mask and surroundings as inputs.

The first convolution gets five more inputs with weights of zero, so that training starts from what the base paints;
then the whole UNet is trained on masked pictures. Latents, mask and latents of the masked picture follow each other
as in Stable Diffusion's inpainting models (Rombach et al., arXiv:2112.10752), mask 1 = repaint. Visual prompts are
trained by the same code: a grid is a picture whose mask is a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from pipelines.errors import ModelError
from pipelines.events import OnEvent, ignore
from pipelines.models.components import Components, encode
from pipelines.models.fingerprint import is_gated
from pipelines.models.inpainting_unet import has_inpainting_unet, inpainting_components, widened_shape
from pipelines.models.noise import DDPM
from trainers.loop.cuda_graphs import CudaGraphUNet

OUTSIDE = 0.1
"""Weight of what lies outside the mask in the loss: it can be copied, so it teaches little."""


class MaskedBatch(NamedTuple):
    """Pictures with masks to inpaint.

    Attributes:
        pictures: (B, 3, H, W) in [-1, 1].
        masks: (B, 1, H, W) or (1, 1, H, W), 1 = repaint.
        conditioning: UNet arguments made from the captions: `encoder_hidden_states` and, for SDXL, more.
    """

    pictures: Tensor
    masks: Tensor
    conditioning: Mapping[str, Any]


Source = Callable[[int, torch.Generator], MaskedBatch]
"""Gives the batch of a step by its index; the generator is that of the device."""


def widened(base: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of a UNet with 9 channels whose output equals the base's, whatever the mask is.

    Layers for boxes are left out: they stay those of the base.
    """
    unet = widened_shape(base)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items() if not is_gated(name)}
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = F.pad(first, (0, 0, 0, 0, 0, unet.conv_in.in_channels - first.shape[1]))
    unet.load_state_dict(weights)
    torch.nn.Module.to(unet, base.device, torch.float32)
    if base.device.type == "cuda":  # as its tensor cores read convolutions
        torch.nn.Module.to(unet, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return unet


def start_from(components: Components, start: Path | None) -> UNet2DConditionModel:
    """Return the UNet that training starts from: one given, the one beside the base, or the base widened; float32.

    Raises:
        ModelError: if what is given is none for this base, or the base has 9 channels itself.
    """
    if has_inpainting_unet(components):
        raise ModelError(
            f"{components.name} is an inpainting model already.", "Give the 4-channel base, and this one with --start."
        )
    unet = widened(components.unet)
    try:
        found = inpainting_components(components, start).unet
    except ModelError:
        if start is not None:
            raise
        return unet
    unet.load_state_dict({name: tensor for name, tensor in found.state_dict().items() if not is_gated(name)})
    return unet


def inputs_beside(components: Components, pictures: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return latents of the pictures, mask (B, 1, h, w) on their grid, and latents of the masked pictures.

    As in `StableDiffusionInpaintPipeline`: masked pixels are mid-grey, the mask on the latents takes the nearest pixel.
    """
    seen = pictures * (masks < 0.5)
    both = encode(components, torch.cat((pictures, seen))).mean.float()
    latents, around = both.chunk(2)
    mask = F.interpolate(masks, size=latents.shape[-2:]).expand(len(latents), -1, -1, -1)
    return latents, mask, around


Loss = Callable[[MaskedBatch, torch.Generator], Tensor]
"""The loss of a batch; the generator is that of the device."""


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a generator of the device, seeded by one number of the step's, so that nothing waits for the device."""
    return torch.Generator(device).manual_seed(int(torch.randint(1 << 62, (), generator=generator)))


def masked_loss(unet: UNet2DConditionModel, components: Components, on_event: OnEvent = ignore) -> Loss:
    """Return the loss of a batch: squared error inside the mask, and a little outside it.

    Timesteps are spread evenly over each batch, which calms the gradient.
    """
    device = unet.device
    process, call = DDPM.of(components.scheduler_config, device), CudaGraphUNet(unet, on_event=on_event)

    def loss(batch: MaskedBatch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            # Large autoencoders overflow in float16; a tiny one is quicker and as exact.
            with _half(device, torch.float16) if isinstance(components.vae, AutoencoderTiny) else nullcontext():
                clean, mask, around = inputs_beside(components, batch.pictures, batch.masks)
            timesteps = process.draw(len(clean), True, generator)
            noise = torch.randn(clean.shape, generator=generator, device=device)
            noisy, wanted = process.noised(clean, noise, timesteps), process.target(clean, noise, timesteps)
            weight = mask + OUTSIDE * (1 - mask)
        inputs = torch.cat((noisy, mask, around), 1)
        if set(batch.conditioning) == {"encoder_hidden_states"}:
            guess = call(inputs, timesteps, batch.conditioning["encoder_hidden_states"])
        else:
            with _half(device, torch.bfloat16):
                guess = unet(inputs, timesteps, **batch.conditioning).sample
        error = (guess.float() - wanted).square().mean(1, keepdim=True)
        return (error * weight).sum() / weight.sum()

    return loss


def _half(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", dtype) if device.type == "cuda" else nullcontext()
