"""Accuracy of masks from clicks and boxes against the exact masks of composed pictures, by kind of picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from scipy.ndimage import distance_transform_edt

from pipelines.masks.selection import selected
from pipelines.pictures.tensors import to_pictures
from pipelines.request.inpaint import Selection
from trainers.stickers.world import KINDS, Stickers, scenes

SMALLEST = 60
"""Visible pixels of 64 x 64 from which a thing is asked for."""


@dataclass
class MaskTally:
    """Intersections over union with the exact mask, one for each thing.

    Attributes:
        click: of the first answer to a click into its middle.
        offered: of the best answer offered to that click.
        box: of the first answer to its box.
    """

    click: list[float] = field(default_factory=list)
    offered: list[float] = field(default_factory=list)
    box: list[float] = field(default_factory=list)


def score_masks(count: int = 40, seed: int = 3, sam: str | None = None) -> dict[str, MaskTally]:
    """Point at every thing of `count` pictures of each kind.

    Args:
        count: pictures.
        seed: of the scenes.
        sam: folder of a Segment Anything model to measure instead of colours and edges.
    """
    stickers, tallies = Stickers(), {kind: MaskTally() for kind in KINDS}
    for kind, tally in tallies.items():
        rendered = stickers.render(scenes(count, seed, kind=kind))
        for picture, masks, boxes in zip(to_pictures(rendered.images), rendered.masks, rendered.boxes, strict=True):
            for mask, box in zip(masks.numpy(), boxes.tolist(), strict=True):
                if mask.sum() < SMALLEST:
                    continue
                depth = np.asarray(distance_transform_edt(mask))
                row, column = np.unravel_index(int(depth.argmax()), depth.shape)
                place = ((float(column) + 0.5) / mask.shape[1], (float(row) + 0.5) / mask.shape[0])
                answers = selected(picture, Selection(clicks=(place,), sam=sam))
                fits = [overlap(np.asarray(answer.mask) > 0, mask) for answer in answers]
                tally.click.append(fits[0])
                tally.offered.append(max(fits))
                inside = selected(picture, Selection(box=tuple(box), sam=sam))[0]
                tally.box.append(overlap(np.asarray(inside.mask) > 0, mask))
    return tallies


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def figures(tallies: Mapping[str, MaskTally]) -> dict[str, dict[str, float]]:
    """Return the means of each kind of picture."""
    return {
        kind: {"click": fmean(t.click), "offered": fmean(t.offered), "box": fmean(t.box), "things": len(t.click)}
        for kind, t in tallies.items()
    }


def mask_table(tallies: Mapping[str, MaskTally]) -> str:
    """Return the figures as text."""
    lines = [f"{'mean IoU':<12}{'click':>10}{'offered':>10}{'box':>10}{'things':>10}"]
    for kind, row in figures(tallies).items():
        lines.append(f"{kind:<12}{row['click']:>10.3f}{row['offered']:>10.3f}{row['box']:>10.3f}{row['things']:>10.0f}")
    return "\n".join(lines)
