"""Training pictures on the page: their words, shapes and masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from pipelines.errors import RequestError, StudioError
from studio.jobs.jobs import Jobs
from studio.library.datasets import Datasets
from studio.web.components import mask_painter, records, told_by
from studio.web.panels.following import told
from studio.web.panels.painted import SHOWN, decoded, fitted, marks, png
from studio.web.panels.watching import picture_uri

SMALL = 96  # pixels of the longer side in a row
LEAST = 8
"""Pixels a side that a crop leaves at least; a click beside the thing leaves fewer."""

HINT = (
    '<p class="hint">Mark the thing to learn. A mask lets what is around it count a tenth; '
    "a crop cuts the picture down to what is marked.</p>"
)

Change = Callable[[Image.Image], Image.Image]


def rows_of(datasets: Datasets, dataset: str) -> list[dict[str, Any]]:
    """Return pictures of a dataset as values of `picture_rows`."""
    if not dataset:
        return []
    return [
        {
            "name": entry.name,
            "picture": picture_uri(datasets.picture(dataset, entry.name), SMALL),
            "caption": entry.caption,
            "left": entry.pair[0] if entry.pair else "",
            "right": entry.pair[1] if entry.pair else "",
            "mask": entry.mask,
        }
        for entry in datasets.entries(dataset)
    ]


def keep_words(datasets: Datasets, dataset: str, rows: Sequence[Any] | None) -> None:
    """Save captions, names and repeats of the pictures."""
    there = {entry.name: entry for entry in datasets.entries(dataset)}
    for row in records(rows):
        entry = there.get(str(row.get("name", "")))
        if entry is None:
            continue
        caption, pair = str(row.get("caption") or ""), (str(row.get("left") or ""), str(row.get("right") or ""))
        if caption != entry.caption:
            datasets.set_caption(dataset, entry.name, caption)
        if all(pair) and pair != entry.pair:
            datasets.set_pair(dataset, entry.name, *pair)


def turned(picture: Image.Image) -> Image.Image:
    """Return a picture a quarter turned clockwise."""
    return picture.transpose(Image.Transpose.ROTATE_270)


def squared(picture: Image.Image) -> Image.Image:
    """Return the middle square of a picture."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def reshape(datasets: Datasets, dataset: str, name: str, change: Change) -> None:
    """Change a picture of a dataset, and its mask alike; a mask without white left is removed.

    Raises:
        Unknown: if there is no such picture.
    """
    mask = datasets.mask(dataset, name)
    kept = None if mask is None else _changed(mask, change)
    datasets.replace(dataset, name, png(_changed(datasets.picture(dataset, name), change)))
    if kept is not None:
        datasets.set_mask(dataset, name, png(kept) if marks(kept) else b"")


def _changed(path: Path, change: Change) -> Image.Image:
    with Image.open(path) as picture:
        return change(picture)


class Marking:
    """A panel that marks the thing in one picture, for a mask or a crop; made inside `gr.Blocks`.

    What it is given by the browser are ids, which `Datasets` checks.
    """

    def __init__(self, jobs: Jobs) -> None:
        self.datasets = jobs.datasets
        with gr.Column(visible=False, elem_id="marking") as self.panel:
            gr.HTML(HINT, js_on_load=None)
            self.painter = mask_painter("Choose a picture above.", elem_id="marker")
            with gr.Row(elem_classes="examples"):
                self.keep = gr.Button("Keep as mask", size="sm", variant="primary", min_width=110, elem_id="keep-mask")
                self.crop = gr.Button("Crop to it", size="sm", min_width=100, elem_id="crop-to-it")
                self.none = gr.Button("No mask", size="sm", min_width=90, elem_id="no-mask")
                self.close = gr.Button("Close", size="sm", min_width=80, elem_id="close-marking")

    def wire(self, dataset: gr.Textbox, rows: gr.HTML) -> None:
        """Open from a row of the pictures; changes appear in the rows."""
        own = [self.panel, self.painter]
        rows.act(self.open, dataset, own, api_visibility="private")  # pyright: ignore[reportAttributeAccessIssue]
        dataset.change(self.closed, None, own, api_visibility="private")  # an open picture is one of the former dataset
        self.close.click(self.closed, None, own, api_visibility="private")
        for button, act in ((self.keep, self.keep_mask), (self.crop, self.crop_to), (self.none, self.no_mask)):
            button.click(act, [dataset, rows, self.painter], [rows, *own], api_visibility="private")

    @staticmethod
    def closed() -> tuple[Any, None]:
        """Return the closed panel."""
        return gr.update(visible=False), None

    def open(self, dataset: str, asked: gr.EventData) -> tuple[Any, Any]:
        """Show a picture, with its mask if it has one; anything else asked of a picture closes the panel."""
        if told_by(asked, "what") != "mark":
            return self.closed()
        name = told_by(asked, "name")
        try:
            picture, mask = self.datasets.picture(dataset, name), self.datasets.mask(dataset, name)
        except StudioError as error:
            raise told(error) from None
        shown = {"id": name, "picture": picture_uri(picture, SHOWN), "mask": picture_uri(mask, SHOWN) if mask else ""}
        return gr.update(visible=True), shown

    def _done(self, dataset: str, rows: Any, painted: Any, act: Callable[[str, str], None]) -> tuple[Any, ...]:
        """Save the words, change the picture that is open, and return the result."""
        painted = painted if isinstance(painted, Mapping) else {}
        try:
            keep_words(self.datasets, dataset, rows)
            act(str(painted.get("id") or ""), str(painted.get("mask") or ""))
            return rows_of(self.datasets, dataset), *self.closed()
        except StudioError as error:
            raise told(error) from None

    def _marked(self, dataset: str, name: str, mask: str) -> Image.Image:
        entry = self.datasets.entry(dataset, name)
        if not mask:
            raise RequestError("Nothing in the picture is marked.", "Click a thing in it, or paint over it.")
        return fitted(decoded(mask), (entry.width, entry.height))

    def keep_mask(self, dataset: str, rows: Any, painted: Any) -> tuple[Any, ...]:
        """Save the marks as the mask of the picture."""

        def keep(name: str, mask: str) -> None:
            self.datasets.set_mask(dataset, name, png(self._marked(dataset, name, mask)))

        return self._done(dataset, rows, painted, keep)

    def crop_to(self, dataset: str, rows: Any, painted: Any) -> tuple[Any, ...]:
        """Crop the picture, and its mask if it has one, to the marks."""

        def crop(name: str, mask: str) -> None:
            left, top, right, bottom = box = self._marked(dataset, name, mask).getbbox() or (0, 0, 0, 0)
            if min(right - left, bottom - top) < LEAST:
                raise RequestError(
                    f"What is marked is {right - left} x {bottom - top} pixels; a crop has at least {LEAST} a side.",
                    "Mark more of the picture.",
                )
            reshape(self.datasets, dataset, name, lambda picture: picture.crop(box))

        return self._done(dataset, rows, painted, crop)

    def no_mask(self, dataset: str, rows: Any, painted: Any) -> tuple[Any, ...]:
        """Remove the mask of the picture."""

        def forget(name: str, _: str) -> None:
            self.datasets.set_mask(dataset, name, b"")

        return self._done(dataset, rows, painted, forget)
