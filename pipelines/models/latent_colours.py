"""Colours of latents without the autoencoder: a linear map of each latent to one pixel, for previews.

The map is fitted by least squares to what the base's own autoencoder makes of one small picture of many colours, so
that there are no numbers for it to ship and any base has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.models.components import Components, encode

CELLS = 32
"""Side of the picture of colours in latents: a thousand of them, for up to 128 channels."""

GROUNDS, PATCHES, SHARE = 4, 12, 0.35
"""Plain grounds and patches along its side, and the share of places that have a patch."""

RIDGE = 1e-3
"""Weight that keeps the map small where channels say the same."""


@dataclass(frozen=True)
class LatentColours:
    """A linear map.

    Attributes:
        weight: (3, C).
        bias: (3,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the colours (B, 3, h, w) of latents (B, C, h, w), in [-1, 1]."""
        found = torch.einsum("rc,bchw->brhw", self.weight, latents.float()) + self.bias[:, None, None]
        return found.clamp(-1, 1)


_FITTED: WeakKeyDictionary[torch.nn.Module, LatentColours] = WeakKeyDictionary()


def latent_colours(components: Components) -> LatentColours:
    """Return the map of a base; it is fitted once for each autoencoder, by encoding one picture."""
    vae = components.vae
    if vae not in _FITTED:
        _FITTED[vae] = _fitted(components)
    return _FITTED[vae]


@torch.no_grad()
def _fitted(components: Components) -> LatentColours:
    picture = chart(CELLS * components.factor)
    latents = encode(components, picture).mean.float()[0].flatten(1).T  # (n, C)
    colours = F.interpolate(picture, size=(CELLS, CELLS), mode="area")[0].flatten(1).T.to(latents)
    inputs = torch.cat([latents, torch.ones(len(latents), 1).to(latents)], dim=1)
    squares = inputs.T @ inputs + RIDGE * len(inputs) * torch.eye(inputs.shape[1]).to(latents)
    found = torch.linalg.solve(squares.cpu(), (inputs.T @ colours).cpu()).to(latents)
    return LatentColours(found[:-1].T.contiguous(), found[-1])


def chart(side: int) -> Tensor:
    """Return a picture (1, 3, side, side) in [-1, 1] of plain grounds with patches on them, always the same."""
    generator = torch.Generator().manual_seed(0)

    def laid_out(one: Tensor) -> Tensor:
        return F.interpolate(one, size=(side, side), mode="nearest")

    ground, patch = (laid_out(torch.rand(1, 3, n, n, generator=generator) * 2 - 1) for n in (GROUNDS, PATCHES))
    there = laid_out((torch.rand(1, 1, PATCHES, PATCHES, generator=generator) < SHARE).float())
    return ground * (1 - there) + patch * there
