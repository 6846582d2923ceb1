"""Drawn likeness: the similarity of a picture to the drawing it should show, on pixels and without a network.

A judge that was trained to tell things apart is content with the right colours in the right place. Here the true
drawing itself is laid over the picture, at the side and place that fit best, and the two are compared inside its shape
by structural similarity of the luminance (SSIM; Wang et al., "Image quality assessment", IEEE TIP 13, 2004) and by the
share of its energy, colours included, that the picture explains. A picture of the drawing scores 1 and 1, a smear of
its colours far less in the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold
from torch import Tensor
from torch.nn import functional as F

from pipelines.measures.stickers import FOREGROUND, background, detect

SHAPE = 0.5
"""Opacity from which a pixel belongs to the shape."""
SIDES = (0.75, 1.3)
"""Sides that are tried, as shares of the longer side of the thing that was found."""
MERGED = 0.4
"""Smallest side tried where fewer things were found than should be there: some stand in one region."""
LEAST_SIDE = 12
"""Pixels below which a drawing is too small to be compared: SSIM's window would see little but smooth ground."""
FAINT = 0.06
"""Difference from the background from which a thing in its colour is looked for: a grey wolf on grey."""
REACH = 0.25
"""Largest distance between the centres of the drawing and of the thing, as a share of the thing's longer side."""
NEARBY = 2
"""Pixels by which side and place may move from the least squared error for a better SSIM."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue (ITU-R BT.601)."""
WINDOW = 1.5
"""Standard deviation of SSIM's Gaussian window in pixels, cut off at 5 px."""
STEADY = ((0.01 * 2) ** 2, (0.03 * 2) ** 2)
"""SSIM's constants for values in [-1, 1]."""


@dataclass(frozen=True)
class Sprite:
    """A drawing cut out of its surroundings: RGBA, a square that the visible part touches on two sides."""

    picture: Image.Image

    def at(self, side: int) -> tuple[Tensor, Tensor]:
        """Return its colours (3, side, side) in [-1, 1] and its opacity (side, side) in [0, 1]."""
        pixels = np.asarray(self.picture.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
        table = torch.from_numpy(pixels).permute(2, 0, 1)
        return table[:3] * 2 - 1, table[3]


@dataclass(frozen=True)
class Likeness:
    """The similarity of a picture and a drawing.

    Attributes:
        likeness: SSIM of the luminance averaged inside the drawing's shape, at most 1; 0 where no thing was found.
        explained: share of the drawing's energy against the background that the picture explains: 1 at best, 0 for the
            bare background, negative for what is farther from the drawing than the background is.
        box: box of the drawing, x0 y0 x1 y1 in fractions; None where no thing was found.
    """

    likeness: float
    explained: float
    box: tuple[float, float, float, float] | None = None


NOTHING = Likeness(0.0, 0.0)


@dataclass(frozen=True)
class _Place:
    sprite: int
    side: int
    left: int
    top: int
    gain: float

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return x0 y0 x1 y1 in fractions of a picture of this size."""
        right, bottom = self.left + self.side, self.top + self.side
        return self.left / width, self.top / height, right / width, bottom / height


def cut_out(picture: Tensor, mask: Tensor | None = None) -> Sprite:
    """Cut the thing out of a picture on a plain background, so that anybody's drawing can be measured.

    Args:
        picture: (3, H, W) in [-1, 1].
        mask: (H, W) bool, the thing; by default the largest region that differs from the background, holes filled: from
            where it differs plainly to where it differs faintly, so that a thing in the background's colour is whole.

    Raises:
        ValueError: if there is no thing.
    """
    if mask is None:
        far = (picture - background(picture)[:, None, None]).abs().amax(0).cpu().numpy()
        shape = torch.from_numpy(apply_hysteresis_threshold(far, FAINT, FOREGROUND))
        found = detect(picture, FAINT) if bool(shape.any()) else []
        if found:
            height, width = shape.shape
            x0, y0, x1, y1 = found[0].box
            near = torch.zeros_like(shape)
            near[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = True
            shape &= near
        mask = torch.from_numpy(np.asarray(ndimage.binary_fill_holes(shape.numpy())))
    if not bool(mask.any()):
        raise ValueError("the picture shows no thing that differs from its background")
    rows, columns = torch.nonzero(mask.any(1))[:, 0], torch.nonzero(mask.any(0))[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    colours = ((picture[:, top:bottom, left:right] + 1) * 127.5).round().clamp(0, 255)
    opacity = mask[top:bottom, left:right].float()[None] * 255
    pixels = torch.cat((colours.cpu(), opacity)).permute(1, 2, 0).to(torch.uint8).numpy()
    side = max(pixels.shape[:2])
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    cut = Image.fromarray(pixels, "RGBA")
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return Sprite(square)


def likeness(picture: Tensor, sprite: Sprite, refine: bool = True) -> Likeness:
    """Compare a picture (3, H, W) in [-1, 1] with the one thing that it should show; `refine` as in `likenesses`."""
    return likenesses(picture, [sprite], refine)[0]


@torch.no_grad()
def likenesses(picture: Tensor, sprites: Sequence[Sprite], refine: bool = True) -> list[Likeness]:
    """Compare a picture with all things that it should show; each of them takes a place of its own.

    Args:
        picture: (3, H, W) in [-1, 1].
        sprites: the things, each once; up to four.
        refine: search for the best SSIM near the least squared error; ten times slower, about 0.02 higher.

    Returns:
        One likeness a thing, in their order.
    """
    image = picture.detach().float().cpu()
    ground = background(image)
    plain = ground[:, None, None].expand_as(image)
    places = _assigned(image - plain, ground, sprites)
    for index in range(len(places) if refine else 0):
        others = _composed(plain, sprites, [place for place in places if place is not places[index]])
        places[index] = _refined(image, others, sprites[places[index].sprite], places[index])
    whole = _composed(plain, sprites, places)
    similar = ssim(luminance(image)[None], luminance(whole)[None])[0]
    result = [NOTHING] * len(sprites)
    covered = torch.zeros(image.shape[1:], dtype=torch.bool)
    for place in reversed(places):  # those in front first
        inside = _laid(plain, sprites[place.sprite], place)[1] & ~covered
        covered |= inside
        if bool(inside.any()):
            wrong = (image - whole).square().sum(0)[inside].sum()
            energy = (plain - whole).square().sum(0)[inside].sum().clamp(min=1e-6)
            result[place.sprite] = Likeness(
                float(similar[inside].mean()), float(1 - wrong / energy), place.box(*image.shape[1:])
            )
    return result


@torch.no_grad()
def likeness_at(picture: Tensor, sprites: Sequence[Sprite], side: int, left: int, top: int) -> list[float]:
    """Return the likeness of a picture to each of several drawings laid at a known place, in pixels."""
    image = picture.detach().float().cpu()
    plain = background(image)[:, None, None].expand_as(image)
    laid = [_laid(plain, sprite, _Place(0, side, left, top, 0.0)) for sprite in sprites]
    similar = ssim(luminance(image)[None], luminance(torch.stack([whole for whole, _ in laid])))
    return [float(one[shape].mean()) for one, (_, shape) in zip(similar, laid, strict=True)]


def luminance(images: Tensor) -> Tensor:
    """Return the luminance (..., H, W) of pictures (..., 3, H, W)."""
    return (images * torch.tensor(LUMINANCE, device=images.device)[:, None, None]).sum(-3)


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Return the SSIM (N, H, W) at each pixel of two batches (N, H, W) in [-1, 1], as `skimage.metrics` computes it.

    Gaussian windows, population covariance; beyond the rim the picture is mirrored.
    """
    images, others = torch.broadcast_tensors(images, others)
    moments = (images, others, images * images, others * others, images * others)
    a, b, aa, bb, ab = _smoothed(torch.stack(moments)).unbind()
    c1, c2 = STEADY
    top = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
    return top / ((a * a + b * b + c1) * (aa - a * a + bb - b * b + c2))


def _smoothed(maps: Tensor) -> Tensor:
    """Return maps (..., H, W) filtered with the Gaussian window."""
    reach = int(3.5 * WINDOW + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=maps.device) / WINDOW) ** 2)
    taps = taps / taps.sum()
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        axis = 3 if shape[3] == -1 else 2
        length = flat.shape[axis]
        mirrored = torch.arange(-reach, length + reach, device=maps.device) % (2 * length)
        flat = flat.index_select(axis, torch.where(mirrored < length, mirrored, 2 * length - 1 - mirrored))
        flat = F.conv2d(flat, taps.view(shape))
    return flat.reshape(maps.shape)


def _refined(image: Tensor, others: Tensor, sprite: Sprite, place: _Place) -> _Place:
    """Return the place near `place` with the best SSIM inside the shape; `others` has all else drawn."""
    seen = luminance(image)[None]
    for _ in range(NEARBY):
        tried = [
            replace(place, side=place.side + more, left=place.left + across, top=place.top + down)
            for more, across, down in itertools.product((0, -1, 1), repeat=3)
            if place.side + more >= LEAST_SIDE
        ]
        laid = [_laid(others, sprite, one) for one in tried]
        inside = torch.stack([shape for _, shape in laid])
        similar = ssim(seen, luminance(torch.stack([picture for picture, _ in laid])))
        means = (similar * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        best = tried[int(means.argmax())]
        if best == place:
            break
        place = best
    return place


def _composed(plain: Tensor, sprites: Sequence[Sprite], places: Sequence[_Place]) -> Tensor:
    """Return the background with the sprites drawn over it in turn."""
    for place in places:
        plain, _ = _laid(plain, sprites[place.sprite], place)
    return plain


def _laid(whole: Tensor, sprite: Sprite, place: _Place) -> tuple[Tensor, Tensor]:
    """Return the picture with the sprite drawn over it, and the sprite's shape (H, W) in it, cut at the rim."""
    colours, opacity = sprite.at(place.side)
    height, width = whole.shape[1:]
    rows = slice(max(0, place.top), min(height, place.top + place.side))
    columns = slice(max(0, place.left), min(width, place.left + place.side))
    part = (
        slice(rows.start - place.top, rows.stop - place.top),
        slice(columns.start - place.left, columns.stop - place.left),
    )
    covered = opacity[part]
    result = whole.clone()
    result[:, rows, columns] = result[:, rows, columns] * (1 - covered) + colours[:, part[0], part[1]] * covered
    shape = torch.zeros(height, width, dtype=torch.bool)
    shape[rows, columns] = covered > SHAPE
    return result, shape


def _assigned(difference: Tensor, ground: Tensor, sprites: Sequence[Sprite]) -> list[_Place]:
    """Return the best place of each sprite, no two around one thing unless there are too few; rearmost first.

    Things are looked for twice, plainly and in the colour of their background, and the look that explains more counts.
    """
    picture, most = difference + ground[:, None, None], max(2, len(sprites))
    looks = [[one.box for one in detect(picture, least)][:most] for least in (FOREGROUND, FAINT)]
    enough = [boxes for boxes in looks if len(boxes) >= len(sprites)]
    placed = [_placed(difference, ground, sprites, boxes) for boxes in enough or looks[:1] if boxes]
    best = max(placed, key=lambda places: sum(place.gain for place in places), default=[])
    return sorted(best, key=lambda place: -place.side)


def _placed(
    difference: Tensor, ground: Tensor, sprites: Sequence[Sprite], boxes: Sequence[tuple[float, float, float, float]]
) -> list[_Place]:
    """Return the best place of each sprite around boxes."""
    merged = len(boxes) < len(sprites)
    table = [
        [_best(difference, ground, sprite, index, box, merged) for box in boxes] for index, sprite in enumerate(sprites)
    ]
    if merged:
        return [max(row, key=lambda place: place.gain) for row in table]
    orders = itertools.permutations(range(len(boxes)), len(sprites))
    best = max(orders, key=lambda order: sum(table[i][j].gain for i, j in enumerate(order)))
    return [table[i][j] for i, j in enumerate(best)]


def _best(
    difference: Tensor,
    ground: Tensor,
    sprite: Sprite,
    index: int,
    box: tuple[float, float, float, float],
    merged: bool,
) -> _Place:
    """Return the side and place near a box with the least squared error of the sprite (correlation, by FFT)."""
    height, width = difference.shape[1:]
    x0, x1, y0, y1 = box[0] * width, box[2] * width, box[1] * height, box[3] * height
    extent = max(x1 - x0, y1 - y0)
    least = MERGED if merged else SIDES[0]
    first = max(LEAST_SIDE, round(least * extent))
    sides = range(first, max(first, min(round(SIDES[1] * extent), 2 * max(height, width))) + 1)
    reach = extent / 2 if merged else REACH * extent
    pad = max(sides)
    size = (height + 2 * pad, width + 2 * pad)
    padded = torch.zeros(3, *size)
    padded[:, pad : pad + height, pad : pad + width] = difference
    spectrum = torch.fft.rfft2(padded)
    best = _Place(index, sides[0], round(x0), round(y0), float("-inf"))
    for side in sides:
        colours, opacity = sprite.at(side)
        kernel = (colours - ground[:, None, None]) * opacity
        matched = torch.fft.irfft2((spectrum * torch.fft.rfft2(kernel, s=size).conj()).sum(0), s=size)
        gains = 2 * matched - kernel.square().sum()
        middle_x, middle_y = (x0 + x1 - side) / 2 + pad, (y0 + y1 - side) / 2 + pad
        left, right = max(0, round(middle_x - reach)), round(middle_x + reach) + 1
        top, bottom = max(0, round(middle_y - reach)), round(middle_y + reach) + 1
        window = gains[top:bottom, left:right]
        if window.numel() and float(window.max()) > best.gain:
            row, column = divmod(int(window.argmax()), window.shape[1])
            best = _Place(index, side, left + column - pad, top + row - pad, float(window.max()))
    return best
