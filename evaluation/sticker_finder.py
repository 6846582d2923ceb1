"""A detector of stickers by their drawings: touching, overlapping and nested ones too.

The detector of `pipelines.measures.stickers` tells things apart by the background between them, which relations like
"inside" do not leave. Here a picture is explained step by step (matching pursuit, Mallat and Zhang 1993): of all
stickers at all places and sizes, in front of or behind what was found before, the one that explains most of what is
left is taken, as long as it explains most of its own pixels. Sticker pictures have few things, so three or four steps
do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.measures.stickers import background
from trainers.stickers.art import sprite
from trainers.stickers.relations import RELATED, Box, PlacedThing
from trainers.stickers.world import HELD_OUT, UNIT

GRID = 32
"""Side of the pictures that are searched; places are refined at `UNIT` afterwards."""
SIDES = tuple(range(14, 57, 4))
"""Sides of stickers that are searched, in 64ths; refined by 2 afterwards."""
EXPLAINED = 0.5
"""Share of what differs from the picture so far that a sticker must explain of its own pixels."""
LEAST = 6.0
"""Energy (squared difference summed over `GRID` pixels and channels) a sticker must explain at least."""
SHOWING = 0.25
"""Share of a sticker's pixels that must show."""
TRIED = 40
"""Shapes that are looked at closely, best first."""
SPECTRUM = 48
"""Side of the padded search grid: only stickers that reach far beyond the rim would wrap around."""


@dataclass(frozen=True)
class _Drawing:
    """A sticker at a size: premultiplied colours (3, s, s) in [-1, 1] and opacity (s, s)."""

    colours: Tensor
    opacity: Tensor


@cache
def _drawing(name: str, pixels: int) -> _Drawing:
    drawn = np.asarray(sprite(name).resize((pixels, pixels), Image.Resampling.BOX), dtype=np.float32) / 255
    table = torch.from_numpy(drawn).permute(2, 0, 1)
    return _Drawing((table[:3] * 2 - 1) * table[3:], table[3])


@dataclass(frozen=True)
class _Guess:
    name: str
    side: int
    left: int
    top: int
    behind: bool
    gain: float = 0.0


class Finder:
    """A detector of stickers by name.

    Args:
        names: stickers to look for.
    """

    def __init__(self, names: Sequence[str] = (*RELATED, *HELD_OUT)) -> None:
        self.names = tuple(names)
        self.shapes = [(name, side) for name in self.names for side in SIDES]
        opacity = torch.zeros(len(self.shapes), SPECTRUM, SPECTRUM)
        colours = torch.zeros(len(self.shapes), 3, SPECTRUM, SPECTRUM)
        for index, (name, side) in enumerate(self.shapes):
            pixels = side * GRID // UNIT
            one = _drawing(name, pixels)
            opacity[index, :pixels, :pixels] = one.opacity
            colours[index, :, :pixels, :pixels] = one.colours
        squares = (colours.square() / opacity[:, None].clamp(min=1e-4)).sum(1, keepdim=True)
        # (shapes, 5, S, S / 2 + 1); conjugated, so that a product is a correlation.
        self.spectra = torch.fft.rfft2(torch.cat((opacity[:, None], colours, squares), 1)).conj().resolve_conj()

    def __call__(self, image: Tensor, most: int = 4) -> list[PlacedThing]:
        """Return the things in a picture (3, H, W) in [-1, 1], the hindmost first."""
        return self.explained(image, most)[0]

    @torch.no_grad()
    def explained(self, image: Tensor, most: int = 4) -> tuple[list[PlacedThing], float]:
        """Return the things in a picture as `__call__`, and the share of what is no background that they leave open."""
        full = F.interpolate(image[None].float(), (UNIT, UNIT), mode="area")[0]
        behind_all = background(full)[:, None, None].expand_as(full).clone()
        found: list[_Guess] = []
        for _ in range(most):
            guess = self._best(full, self._compose(behind_all, found), self._covered(found))
            if guess is None:
                break
            found.insert(0, guess) if guess.behind else found.append(guess)
        seen = [PlacedThing(guess.name, _visible(guess), layer) for layer, guess in enumerate(found)]
        left = (full - self._compose(behind_all, found)).square().sum()
        return seen, float(left / (full - behind_all).square().sum().clamp(min=1e-6))

    def _compose(self, ground: Tensor, found: Sequence[_Guess]) -> Tensor:
        picture = ground.clone()
        for guess in found:
            colours, opacity = _laid(guess)
            picture = picture * (1 - opacity) + colours
        return picture

    def _covered(self, found: Sequence[_Guess]) -> Tensor:
        covered = torch.zeros(UNIT, UNIT)
        for guess in found:
            covered = torch.maximum(covered, _laid(guess)[1])
        return covered

    def _best(self, full: Tensor, so_far: Tensor, covered: Tensor) -> _Guess | None:
        """Return the sticker that explains most of the residual, or None if none explains enough."""
        small = F.interpolate(torch.stack((full, so_far)), (GRID, GRID), mode="area")
        if float((small[0] - small[1]).square().sum()) < LEAST:
            return None
        free = 1 - F.interpolate(covered[None, None], (GRID, GRID), mode="area")[0, 0]
        guesses: list[_Guess] = []
        for behind, weight in ((False, torch.ones_like(free)), (True, free)):
            if behind and not bool((free < 0.5).any()):
                continue
            # What a sticker explains: weighted (picture - so far)^2 - (picture - sticker)^2, summed over its pixels.
            constant = weight * (small[1].square() - 2 * small[0] * small[1]).sum(0)
            maps = torch.cat((constant[None], 2 * weight * small[0], -weight[None]))
            gain = self._correlate(maps)
            tops, places = gain.flatten(1).max(1)
            for index in tops.argsort(descending=True)[:TRIED].tolist():
                if float(tops[index]) < LEAST:
                    break
                name, side = self.shapes[index]
                place = divmod(int(places[index]), SPECTRUM)
                top, left = ((value - SPECTRUM if value > GRID else value) * UNIT // GRID for value in place)
                guess = _Guess(name, side, left, top, behind)
                if _explains(guess, full, so_far, covered):
                    guesses.append(replace(guess, gain=float(tops[index])))
                    break
        if not guesses:
            return None
        return _refined(max(guesses, key=lambda guess: guess.gain), full, so_far, covered)

    def _correlate(self, maps: Tensor) -> Tensor:
        """Return the correlation of (5, g, g) with every shape's opacity, colours and squares, summed: (N, S, S)."""
        padded = torch.fft.rfft2(maps, s=(SPECTRUM, SPECTRUM))
        return torch.fft.irfft2(torch.einsum("cyx,ncyx->nyx", padded, self.spectra), s=(SPECTRUM, SPECTRUM))


def _laid(guess: _Guess) -> tuple[Tensor, Tensor]:
    """Return premultiplied colours (3, 64, 64) and opacity (64, 64) of a guess in its place."""
    side, left, top = guess.side, guess.left, guess.top
    one = _drawing(guess.name, side)
    colours, opacity = torch.zeros(3, UNIT, UNIT), torch.zeros(UNIT, UNIT)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, UNIT), min(top + side, UNIT)
    if x1 > x0 and y1 > y0:
        rows, columns = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        colours[:, y0:y1, x0:x1] = one.colours[:, rows, columns]
        opacity[y0:y1, x0:x1] = one.opacity[rows, columns]
    return colours, opacity


def _energies(guess: _Guess, full: Tensor, so_far: Tensor, covered: Tensor) -> tuple[float, float, float]:
    """Return the residual energy of a guess's pixels before it and with it, and its visible share of pixels."""
    colours, opacity = _laid(guess)
    weight = opacity * (1 - covered) if guess.behind else opacity
    drawn = colours / opacity.clamp(min=1e-4)
    before, after = (float((weight * (full - other).square().sum(0)).sum()) for other in (so_far, drawn))
    return before, after, float(weight.sum() / _drawing(guess.name, guess.side).opacity.sum())


def _explains(guess: _Guess, full: Tensor, so_far: Tensor, covered: Tensor) -> bool:
    before, after, showing = _energies(guess, full, so_far, covered)
    return after < (1 - EXPLAINED) * before and showing > SHOWING


def _refined(guess: _Guess, full: Tensor, so_far: Tensor, covered: Tensor) -> _Guess:
    """Return the best of the neighbouring sizes and places at full resolution."""
    best, most = guess, -1.0
    for wider in (-2, 0, 2):
        for x in range(-3, 4):
            for y in range(-3, 4):
                moved = replace(
                    guess,
                    side=guess.side + wider,
                    left=guess.left + x - wider // 2,
                    top=guess.top + y - wider // 2,
                )
                before, after, _ = _energies(moved, full, so_far, covered)
                if before - after > most:
                    best, most = moved, before - after
    return best


def _visible(guess: _Guess) -> Box:
    """Return the box of the visible part of a sticker with nothing in front of it."""
    from trainers.stickers.relations import extent

    wide, high = (share * guess.side for share in extent(guess.name))
    x, y = guess.left + guess.side / 2, guess.top + guess.side / 2
    return (x - wide / 2) / UNIT, (y - high / 2) / UNIT, (x + wide / 2) / UNIT, (y + high / 2) / UNIT
