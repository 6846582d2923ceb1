"""Masks from prompts: a click, a box, strokes of a brush.

Without weights, things are told from the background by its colour at the rim of the picture, and from each other by
the necks between them; good enough for stickers, drawings and flat pictures. For photographs `pipelines.masks.sam` does
it with a Segment Anything model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import label
from skimage.morphology import h_maxima
from skimage.segmentation import felzenszwalb, watershed

from pipelines.errors import RequestError
from pipelines.request.inpaint import Selection, Stroke

Mask = NDArray[np.bool_]

VISIBLE = 6.0
"""Distance in CIELAB from which a colour is another than the background's."""
HOLE = 0.004
"""Share of the picture below which a gap in a thing is not background: an eye, a window."""
NECK = 2.0
"""Pixels a waist must be narrower than what it joins to part two things."""
LEAST = 0.002
"""Share of the picture from which something is a thing, where all of them are asked for."""
EVERYWHERE = 0.9
"""Share of the picture from which a "thing" only says that the background was not found."""


@dataclass(frozen=True)
class Guess:
    """A mask with an estimate of its quality.

    Attributes:
        mask: grey, of the picture's size; white is what was pointed at.
        quality: 0 to 1; the share of the outline that runs along an edge, or what the model predicts of its own IoU.
    """

    mask: Image.Image
    quality: float


def selected(picture: Image.Image, selection: Selection) -> list[Guess]:
    """Return the masks a selection may stand for, likeliest first; one click is ambiguous and gives several.

    Args:
        picture: RGB.
        selection: click, box or strokes, and the model that reads them.

    Raises:
        RequestError: if nothing was pointed at.
        ModelError: if the model cannot be read.
    """
    if selection.empty:
        raise RequestError("Nothing was pointed at.", "Give a click, a box or a stroke.")
    if selection.strokes:
        drawn = brushed(picture.size, selection.strokes)
        return [Guess(drawn, _on_edges(_contrast(picture), np.asarray(drawn) > 0))]
    if selection.sam is not None:
        from pipelines.masks.sam import Sam  # transformers takes seconds, and only photographs need it

        return Sam.load(Path(selection.sam))(picture, selection)
    masks = _meant(picture, selection)
    contrast = _contrast(picture)
    return [Guess(Image.fromarray(mask.astype(np.uint8) * 255), _on_edges(contrast, mask)) for mask in masks]


def pieces(picture: Image.Image) -> list[Guess]:
    """Return a mask for each thing of a picture, the largest first: what is no background, parted at its necks.

    Raises:
        RequestError: if all of it is background.
    """
    things, contrast = foreground(picture), _contrast(picture)
    depth = ndimage.gaussian_filter(np.asarray(ndimage.distance_transform_edt(things)), 1.0)
    parted = np.asarray(watershed(-depth, label(h_maxima(depth, NECK)), mask=things))
    masks = [parted == number for number in range(1, int(parted.max(initial=0)) + 1)]
    masks = [mask for mask in masks if mask.sum() >= LEAST * mask.size]
    if not masks:
        raise RequestError(
            "Nothing in the picture differs from its background.", "Give a Segment Anything model: --sam FOLDER"
        )
    masks.sort(key=lambda mask: int(mask.sum()), reverse=True)
    return [Guess(Image.fromarray(mask.astype(np.uint8) * 255), _on_edges(contrast, mask)) for mask in masks]


def brushed(size: tuple[int, int], strokes: tuple[Stroke, ...]) -> Image.Image:
    """Return strokes of a round brush as a mask."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for stroke in strokes:
        width = max(1, round(stroke.width * min(size)))
        points = [(x * size[0], y * size[1]) for x, y in stroke.points]
        draw.line(points, fill=255, width=width)
        for x, y in points:
            draw.circle((x, y), width / 2, fill=255)
    return mask


def foreground(picture: Image.Image) -> Mask:
    """Return the pixels of things, (H, W): of another colour than most of the rim; mixed ones by their larger half."""
    away = _from_background(picture)
    visible = away > VISIBLE
    near_background = np.asarray(ndimage.binary_dilation(~visible), dtype=np.bool_)
    things = visible & ~(near_background & (away <= 0.5 * ndimage.maximum_filter(away, 3)))
    filled = np.asarray(ndimage.binary_fill_holes(things), dtype=np.bool_)
    gaps = np.asarray(label(filled & ~things, connectivity=1))
    sizes = np.bincount(gaps.ravel())
    small = sizes < HOLE * things.size
    small[0] = False
    return things | small[gaps]


def _from_background(picture: Image.Image) -> NDArray[np.float64]:
    """Return the distance of every pixel from the background's colour, in units that are visible from `VISIBLE`.

    Where the rim itself varies, that much more is needed.
    """
    lab = rgb2lab(np.asarray(picture))
    rim = np.concatenate((lab[0], lab[-1], lab[:, 0], lab[:, -1]))
    ground = np.median(rim, axis=0)
    spread = 3 * 1.48 * np.median(np.linalg.norm(rim - ground, axis=-1))
    return np.linalg.norm(lab - ground, axis=-1) * VISIBLE / max(VISIBLE, spread)


def _meant(picture: Image.Image, selection: Selection) -> list[Mask]:
    """Return masks a selection may stand for, likeliest first; none is empty, none comes twice."""
    things = foreground(picture)
    allowed = np.ones_like(things)
    if selection.box is not None:
        left, top, right, bottom = (round(e * s) for e, s in zip(selection.box, picture.size * 2, strict=True))
        allowed[:] = False
        allowed[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    segments = felzenszwalb(np.asarray(picture), scale=50, sigma=0, min_size=max(8, things.size // 400))
    if selection.clicks:
        readings = [_readings(things, segments, _pixel(picture, click)) for click in selection.clicks]
        guesses = [np.logical_or.reduce(choice) & allowed for choice in zip(*readings, strict=True)]
    else:
        guesses = [things & allowed, allowed]
    for click in selection.without:
        not_meant = _readings(things, segments, _pixel(picture, click))[1]
        guesses = [guess & ~not_meant for guess in guesses]
    listed: list[Mask] = []
    for guess in guesses:
        if guess.any() and not any(np.array_equal(guess, other) for other in listed):
            listed.append(guess)
    if not listed:
        raise RequestError("Nothing is left of what was pointed at.", "Point elsewhere, or paint the mask.")
    return listed


def _pixel(picture: Image.Image, click: tuple[float, float]) -> tuple[int, int]:
    """Return the row and column of a position in fractions."""
    return tuple(min(int(share * side), side - 1) for share, side in zip(click[::-1], picture.size[::-1], strict=True))  # pyright: ignore[reportReturnType]


def _readings(things: Mask, segments: NDArray[np.int_], at: tuple[int, int]) -> tuple[Mask, Mask, Mask]:
    """Return three masks for a click: the thing and what touches it, the thing to its necks, the part of one colour."""
    part = segments == segments[at]
    joined = np.asarray(label(things if things[at] else ~things))
    whole = joined == joined[at]
    if whole.mean() > EVERYWHERE:
        return part, part, whole
    if not things[at]:
        return whole, whole, part
    depth = ndimage.gaussian_filter(np.asarray(ndimage.distance_transform_edt(whole)), 1.0)
    pieces = watershed(-depth, label(h_maxima(depth, NECK)), mask=whole)
    return whole, pieces == pieces[at], part


def _contrast(picture: Image.Image) -> NDArray[np.float64]:
    """Return the change of colour around each pixel, (H, W), in CIELAB."""
    lab = rgb2lab(np.asarray(picture))
    return np.max(
        [ndimage.maximum_filter(c, 3) - ndimage.minimum_filter(c, 3) for c in np.moveaxis(lab, -1, 0)], axis=0
    )


def _on_edges(contrast: NDArray[np.float64], mask: Mask) -> float:
    """Return the share of a mask's outline along which the colour changes visibly."""
    outline = mask & ~np.asarray(ndimage.binary_erosion(mask), dtype=np.bool_)
    return float((contrast[outline] > 2 * VISIBLE).mean()) if outline.any() else 0.0
