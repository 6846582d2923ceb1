"""Figures of an answer to a visual prompt against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.color import rgb2lab
from torch import Tensor
from torch.nn import functional as F

from pipelines.measures.drawn import luminance, ssim
from pipelines.measures.judge import Judge
from pipelines.measures.stickers import FOREGROUND, background


def white(pictures: Tensor) -> Tensor:
    """Return where pictures (B, 3, H, W) in [-1, 1] are nearer to white than to black, (B, H, W) bool."""
    return pictures.mean(1) > 0


def mask_iou(answers: Tensor, truths: Tensor) -> Tensor:
    """Return the intersection over union (B,) of the white parts; 1 where both are empty."""
    made, true = white(answers), white(truths)
    both, either = (made & true).sum((1, 2)), (made | true).sum((1, 2))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def largest_box(shown: Tensor) -> tuple[int, int, int, int] | None:
    """Return the box x0 y0 x1 y1 in pixels of the largest connected part of a mask (H, W); None if it is empty."""
    labelled: Any = ndimage.label(shown.numpy())
    regions, count = labelled
    if not count:
        return None
    sizes = np.bincount(regions.ravel())[1:]
    rows, columns = ndimage.find_objects(regions)[int(sizes.argmax())]
    return columns.start, rows.start, columns.stop, rows.stop


def box_iou(answers: Tensor, truths: Tensor) -> Tensor:
    """Return the intersection over union (B,) of the boxes around the largest white parts; 0 where there is none."""
    figures: list[float] = []
    for made, true in zip(white(answers).cpu(), white(truths).cpu(), strict=True):
        a, b = largest_box(made), largest_box(true)
        if a is None or b is None:
            figures.append(0.0)
            continue
        both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        figures.append(both / (sum(areas) - both))
    return torch.tensor(figures)


def lab_error(answers: Tensor, truths: Tensor) -> Tensor:
    """Return the mean squared difference (B,) in CIE L*a*b*, over pixels and channels."""
    a, b = (rgb2lab(((one.cpu().double() + 1) / 2).permute(0, 2, 3, 1).numpy()) for one in (answers, truths))
    return torch.from_numpy(np.square(a - b).mean((1, 2, 3))).float()


def pixel_error(answers: Tensor, truths: Tensor) -> Tensor:
    """Return the root of the mean squared difference (B,) as a share of the range."""
    return (answers - truths).square().mean((1, 2, 3)).sqrt().cpu() / 2


def direction(answers: Tensor, truths: Tensor, queries: Tensor) -> Tensor:
    """Return the cosine (B,) of the ways from query to answer and from query to truth, in embeddings (B, D).

    The measure of Analogist (arXiv:2405.10316); 0 for an answer that is the query.
    """
    return F.cosine_similarity(answers - queries, truths - queries, dim=1)


def drawn_likeness(answers: Tensor, truths: Tensor) -> Tensor:
    """Return the drawn likeness (B,): SSIM of the luminance inside the things of the truth, where they should stand.

    1 where the truth shows none.
    """
    figures: list[float] = []
    for answer, truth in zip(answers.float().cpu(), truths.float().cpu(), strict=True):
        shape = (truth - background(truth)[:, None, None]).abs().amax(0) > FOREGROUND
        similar = ssim(luminance(answer)[None], luminance(truth)[None])[0]
        figures.append(float(similar[shape].mean()) if bool(shape.any()) else 1.0)
    return torch.tensor(figures)


@dataclass(frozen=True)
class Measure:
    """A figure of an answer against the truth.

    Attributes:
        name: with its unit.
        take: of answers, truths and queries (B, 3, H, W) in [-1, 1], figures (B,).
        higher: whether more is better.
    """

    name: str
    take: Callable[[Tensor, Tensor, Tensor], Tensor]
    higher: bool = False

    def better(self, a: float, b: float) -> bool:
        """Return whether the figure `a` is better than `b`."""
        return a > b if self.higher else a < b


def measures(judge: Judge) -> dict[str, Measure]:
    """Return all measures by a short name."""

    def plain(take: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda answers, truths, queries: take(answers, truths)

    @torch.no_grad()
    def likeness(answers: Tensor, truths: Tensor) -> Tensor:
        return (judge.embed_pictures(answers.cpu()) * judge.embed_pictures(truths.cpu())).sum(1)

    @torch.no_grad()
    def style(answers: Tensor, truths: Tensor, queries: Tensor) -> Tensor:
        a, b, c = (judge.embed_pictures(one.cpu()) for one in (answers, truths, queries))
        return direction(a, b, c)

    return {
        "mask": Measure("mIoU", plain(mask_iou), higher=True),
        "box": Measure("box mIoU", plain(box_iou), higher=True),
        "lab": Measure("Lab error", plain(lab_error)),
        "style": Measure("direction", style, higher=True),
        "judge": Measure("likeness", plain(likeness), higher=True),
        "pixel": Measure("pixel error", plain(pixel_error)),
        "drawn": Measure("drawn likeness", plain(drawn_likeness), higher=True),
    }


MAIN: Mapping[str, str] = {
    "mask": "mask",
    "outline": "mask",
    "box": "box",
    "grey": "lab",
    "colour": "lab",
    "recolour": "lab",
    "style": "style",
}
"""The measure a task is judged by; pixel error for the others."""
