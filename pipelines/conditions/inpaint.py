"""Inpainting: a part of a given picture is generated anew. Image-to-image is the same without a mask.

An inpainting UNet (9 channels: latents 4, mask 1, latents of the picture without what is to be repainted 4) sees the
rest of the picture; under any other UNet the latents outside the mask are put back after every step, at the noise
level they should have, as diffusers' `StableDiffusionInpaintPipeline` does. Either way the untouched pixels are pasted
over the result, so they stay as they are to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from pipelines.condition import Branch, Step, least_strength
from pipelines.errors import RequestError
from pipelines.events import Note, OnEvent, ignore
from pipelines.masks.files import require_mask, softened
from pipelines.masks.selection import selected
from pipelines.models.components import CONCAT, Components, Conditioning, encode
from pipelines.pictures.files import decoded, grey, laid_on, open_mask, upright_rgb
from pipelines.pictures.tensors import fit, to_tensor
from pipelines.request.inpaint import Inpaint
from pipelines.request.request import Request


@dataclass(frozen=True)
class _Run:
    """State of one run.

    Attributes:
        scheduler: of the run.
        clean: (B, C, h, w), latents of the picture.
        noise: (B, C, h, w), the unit noise of the start.
        cells: (1, 1, h, w), 1 where latents are repainted.
        told: what shows the denoiser the picture: channels for an inpainting UNet, whatever else the family reads.
        region: left, top, right, bottom in pixels of the picture, which is generated.
    """

    scheduler: Any
    clean: Tensor
    noise: Tensor
    cells: Tensor
    told: Conditioning
    region: tuple[int, int, int, int]


class Inpainting:
    """Repaints the masked part of a picture, or changes the whole picture.

    The result has the picture's own size if there is a mask, whatever size is generated at.

    Args:
        image: the picture; transparency is laid on white.
        mask: of the picture's size, 1 (white) to repaint, 0 to keep; grey fades. None for image-to-image.
        strength: share of the steps that are carried out, in (0, 1]. 1 starts from noise alone, which with no mask
            leaves nothing of the picture (`StableDiffusionImg2ImgPipeline` leaves what the last noise level does).
        grow: pixels by which the mask is widened.
        feather: pixels over which it fades, outside.
        only_masked: generate the surroundings of the mask at the request's size.
        padding: pixels of context around the mask then.

    Raises:
        RequestError: if the mask is of another size, or empty.
    """

    def __init__(
        self,
        image: Image.Image,
        mask: Image.Image | None = None,
        *,
        strength: float = 1.0,
        grow: int = 0,
        feather: int = 0,
        only_masked: bool = False,
        padding: int = 32,
    ) -> None:
        self.image = upright_rgb(image)
        self.mask: Image.Image | None = None
        if mask is not None:
            require_mask(mask := grey(mask), self.image)
            self.mask = softened(mask, grow, feather)
        self.strength, self.only_masked, self.padding = strength, only_masked, padding
        self.digests: tuple[str, ...] = ()
        self._components: Components | None = None
        self._run: _Run | None = None

    @classmethod
    def asked(cls, settings: Inpaint, on_event: OnEvent = ignore) -> Inpainting:
        """Return the condition of a request, its files read.

        Raises:
            RequestError: if a file is missing, or the mask does not suit the picture.
            DataError: if a file is no picture, or damaged.
        """
        settings.require_files()
        if settings.name:
            raise RequestError(
                f"Nobody has looked for {settings.name!r:.60} in {Path(settings.image).name} yet.",
                "Give the box of what is repainted; the studio finds it by its name before it draws.",
            )
        files = [Path(path) for path in (settings.image, settings.mask) if path is not None]
        digests = tuple(sha256(path.read_bytes()).hexdigest() for path in files)
        if settings.digests not in ((), digests):
            raise RequestError(
                f"{settings.image} or its mask has changed since this was painted.",
                f"It cannot be repeated exactly; give --inpaint-image {settings.image} to use it nonetheless.",
            )
        stored = decoded(Path(settings.image), Path(settings.image).name)
        if stored.mode == "RGBA":
            on_event(Note(f"{Path(settings.image).name} is transparent in places; it is laid on white."))
        image = laid_on(stored, "white")
        mask = None if settings.mask is None else open_mask(Path(settings.mask))
        if not settings.selection.empty:
            mask = selected(image, settings.selection)[0].mask
        shaped = settings.model_dump(include={"strength", "grow", "feather", "only_masked", "padding"})
        condition = cls(image, mask, **shaped)
        condition.digests = digests
        return condition

    def sized(self, request: Request, components: Components) -> Request:
        """Return the request with the size to generate at, where it leaves that open.

        That is the base's own size for the surroundings of a mask; else the picture's size if that suits the base, or
        the picture's proportions in the base's own number of pixels.
        """
        if request.inpaint is not None:
            inpaint = request.inpaint.model_copy(update={"digests": self.digests})
            request = request.model_copy(update={"inpaint": inpaint})
        if (request.width and request.height) or (self.only_masked and self.mask is not None):
            return request
        width, height, usual = *self.image.size, components.defaults.size
        if request.width or request.height:
            factor = request.width / width if request.width else int(request.height or 0) / height
        elif width % components.multiple or height % components.multiple or not 1 <= width * height / usual**2 <= 1.5:
            factor = math.sqrt(usual**2 / (width * height))
        else:
            factor = 1.0
        near = [max(1, round(side * factor / components.multiple)) * components.multiple for side in (width, height)]
        return request.model_copy(update={"width": request.width or near[0], "height": request.height or near[1]})

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Paint on the picture with this base; `begin` reads it at the size of the run.

        Raises:
            RequestError: if a UNet reads neither 4 nor 9 channels.
        """
        into, out = components.input_channels, components.channels
        if into not in (out, 2 * out + 1):
            raise RequestError(
                f"The UNet of {components.name} reads {into} channels; inpainting needs {out} or {2 * out + 1}.",
                "Use a text-to-image or an inpainting model.",
            )
        self._components = components
        try:
            yield
        finally:
            self._components = self._run = None

    def begin(self, noise: Tensor, scheduler: Any) -> tuple[Tensor, Tensor]:
        """Return start latents (B, C, h, w) and the timesteps left: all for strength 1, else its last share.

        Raises:
            RequestError: if the strength is less than one step, or the mask vanishes at the size of the run.
        """
        self._run = run = self._prepared(noise, scheduler)
        timesteps: Tensor = scheduler.timesteps
        kept = int(self.strength * len(timesteps) + 1e-9)
        if not kept:
            raise RequestError(
                f"Strength {self.strength:g} of {len(timesteps)} steps is less than one step.",
                f"Use a strength of at least {least_strength(len(timesteps)):g}, or more steps.",
            )
        if self.strength == 1:
            return noise * scheduler.init_noise_sigma, timesteps
        if hasattr(scheduler, "set_begin_index"):  # DDIM finds its place by the timestep alone
            scheduler.set_begin_index(len(timesteps) - kept)
        timesteps = timesteps[-kept:]
        return scheduler.add_noise(run.clean, noise, timesteps[:1].expand(len(noise))), timesteps

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return what shows the denoiser the picture, alike in every branch."""
        return {} if self._run is None else self._run.told

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Put the picture's latents back outside the mask, unless the UNet takes the picture as an input."""
        run = self._run
        if run is None or CONCAT in run.told or self.mask is None:
            return latents
        known = run.clean
        if step.following is not None:
            known = run.scheduler.add_noise(known, run.noise, step.following.reshape(1).expand(len(known)))
        return (1 - run.cells) * known + run.cells * latents

    def finish(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Return the given picture with the repainted part in it; where the mask is 0 it is equal to the bit."""
        if self.mask is None or self._run is None:
            return pictures
        left, top, right, bottom = region = self._run.region
        fade, below = self.mask.crop(region), self.image.crop(region)
        done: list[Image.Image] = []
        for picture in pictures:
            whole = self.image.copy()
            part = picture.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
            whole.paste(Image.composite(part, below, fade), (left, top))
            done.append(whole)
        return done

    def _prepared(self, noise: Tensor, scheduler: Any) -> _Run:
        """Return the picture and the mask at the size of the run."""
        components = self._components
        if components is None:
            raise ValueError("the condition is not attached")
        factor = components.factor
        width, height = size = noise.shape[-1] * factor, noise.shape[-2] * factor
        region = (0, 0, *self.image.size)
        if self.mask is None:
            picture, cells = fit(self.image, width, height), torch.ones(1, 1, *noise.shape[-2:])
        else:
            if self.only_masked:
                region = VaeImageProcessor.get_crop_region(self.mask, width, height, self.padding)
            picture, cells = (
                self.image.crop(region).resize(size, Image.Resampling.LANCZOS),
                self._cells(region, size, factor),
            )
        images = to_tensor(picture)[None]
        # The mean, not a draw, of what the autoencoder knows: what is kept needs no noise of its own.
        clean = encode(components, images).mean.to(noise).expand_as(noise)
        told: Conditioning = {}
        if components.input_channels != components.channels:
            seen = encode(components, images * (1 - interpolate(cells, scale_factor=factor))).mean.to(noise)
            told = {CONCAT: torch.cat([cells.to(noise), seen], dim=1).expand(len(noise), -1, -1, -1)}
        elif self.mask is not None:
            told = components.family.beside(components, clean)
        return _Run(scheduler, clean, noise, cells.to(noise), told, region)

    def _cells(self, region: tuple[int, int, int, int], size: tuple[int, int], factor: int) -> Tensor:
        """Return the latents to repaint, (1, 1, h, w) of 0 and 1: all that contain a pixel to repaint.

        diffusers looks at the first pixel of each alone, so that thin strokes are lost and rims shine through.
        """
        if self.mask is None:
            raise ValueError("there is no mask")
        mask = self.mask.crop(region).resize(size, Image.Resampling.LANCZOS)
        cells = max_pool2d(torch.from_numpy(np.asarray(mask) >= 128)[None, None].float(), factor)
        if not cells.any():
            raise RequestError(
                f"Nothing is left of the mask at {size[0]} x {size[1]}, the size that is generated.",
                "Widen it, or give less padding."
                if self.only_masked
                else "Widen it, or generate its surroundings alone (--inpaint-only-masked).",
            )
        return cells
