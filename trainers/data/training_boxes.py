"""Boxes of training pictures as annotators write them: clipped and counted, where a request would refuse them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.request.box_files import SLOTS, Coco, Row, coco_rows, of_picture, one_box, rows_of
from pipelines.request.request import Box
from pipelines.request.yolo import holds_labels
from trainers.data.caption_files import read_text

COCO = "annotations.json"
COCO_LIMIT = 512 << 20
"""Largest `annotations.json`: the lists of COCO itself have up to 450 MB."""


IMAGES, LABELS, TRAIN = "images", "labels", "train"


def yolo_tree(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of pictures and of label files of a YOLO data set; None if a folder is none.

    Known are `images/` beside `labels/`, of which `train/` alone is read if they have it, the same in `train/`, and a
    folder of pictures for which the last `images` of its path may be read as `labels`.
    """
    for pictures, labels in (
        (folder / IMAGES / TRAIN, folder / LABELS / TRAIN),
        (folder / IMAGES, folder / LABELS),
        (folder / TRAIN / IMAGES, folder / TRAIN / LABELS),
    ):
        if pictures.is_dir() and labels.is_dir():
            return pictures, labels
    parts = folder.absolute().parts
    if IMAGES not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index(IMAGES)
    labels = Path(*parts[:last], LABELS, *parts[last + 1 :])
    return (folder, labels) if labels.is_dir() else None


@dataclass
class TrainingBoxes:
    """The boxes of a folder's pictures: `fox.bbox` beside `fox.png`, or one `annotations.json`, or YOLO's label files.

    Attributes:
        folder: folder of the pictures.
        labels: folder with a label file for each, by the same name; None if they are beside the pictures.
        counts: changes: edges "clipped", boxes "empty", pictures "crowded", "unlabelled" and "unlisted".
    """

    folder: Path
    labels: Path | None = None
    counts: Counter[str] = field(default_factory=Counter)
    _coco: Coco | None = None

    def __post_init__(self) -> None:
        if (self.folder / COCO).is_file():
            self._coco = coco_rows(self.folder / COCO, COCO_LIMIT)

    def of(self, name: str) -> tuple[Box, ...]:
        """Return the boxes of a picture, the largest first; none if it has none.

        Raises:
            RequestError: for a file that cannot be read, corners that are swapped, or pixels instead of fractions.
        """
        path = (self.folder / name).with_suffix(".bbox")
        if path.is_file():
            return self._fitted(rows_of(path), path.name, False)
        label = ((self.labels or self.folder) / name).with_suffix(".txt")
        if label.is_file() and (self.labels is not None or holds_labels(read_text(label, label.name))):
            return self._fitted(rows_of(label), label.name, False)
        if self.labels is not None:
            self.counts["unlabelled"] += 1
        if self._coco is None:
            return ()
        rows = of_picture(name, self._coco)
        if rows is None:
            self.counts["unlisted"] += 1
            return ()
        return self._fitted(rows, COCO, True)

    def _fitted(self, rows: Sequence[Row], source: str, pixels: bool) -> tuple[Box, ...]:
        """Return boxes within the picture, no more than there is room for.

        What was told in `pixels` may lie anywhere; fractions above 2 are taken for pixels, and refused.
        """
        boxes: list[Box] = []
        for number, (phrase, edges) in enumerate(rows, 1):
            where = f"{source}, box {number}"
            within = [min(max(edge, 0.0), 1.0) for edge in edges]
            usual = len(edges) == 4 and edges[0] <= edges[2] and edges[1] <= edges[3] and (pixels or max(edges) <= 2)
            if not usual:  # said as a request says it
                boxes.append(one_box(phrase, edges, where))
            elif within[0] == within[2] or within[1] == within[3]:
                self.counts["empty"] += 1
            else:
                self.counts["clipped"] += any(abs(a - b) > 1e-6 for a, b in zip(within, edges, strict=True))
                boxes.append(one_box(phrase, within, where))
        self.counts["crowded"] += len(boxes) > SLOTS
        return tuple(sorted(boxes, key=_area, reverse=True)[:SLOTS])

    def notes(self) -> Iterator[str]:
        """Return the changes made, a sentence each."""
        said = {
            "clipped": "Boxes that reach over the edge of their picture, clipped: {}.",
            "empty": "Boxes without area, left out: {}.",
            "crowded": f"Pictures with more than {SLOTS} boxes, of which the largest are used: {{}}.",
            "unlabelled": "Pictures without a label file, shown without boxes: {}.",
            "unlisted": f"Pictures that {COCO} does not list, shown without boxes: {{}}.",
        }
        for what, sentence in said.items():
            if self.counts[what]:
                yield sentence.format(self.counts[what])


def _area(one: Box) -> float:
    return (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])
