"""Labelled contact sheets: rows of pictures with a caption, for looking rather than reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipelines.files import whole_file

INK, PAPER, FAINT = (30, 30, 34), (250, 250, 248), (110, 110, 116)
GAP, TEXT = 6, 15


class Sheet:
    """Rows are added and laid out when the sheet is drawn.

    Args:
        cell: side of a picture on the sheet, in pixels; small pictures are enlarged in whole steps.
        label: width of the column of captions.
        title: line above everything.
    """

    def __init__(self, cell: int = 128, label: int = 230, title: str = "") -> None:
        self.cell, self.label, self.title = cell, label, title
        self.rows: list[tuple[str, list[Image.Image]]] = []
        self.heads: list[str] = []

    def row(self, caption: str, pictures: Sequence[Image.Image]) -> None:
        """Add a row; its caption wraps."""
        self.rows.append((caption, list(pictures)))

    def head(self, captions: Sequence[str]) -> None:
        """Say what the columns are; a caption that is repeated spans its columns."""
        self.heads = list(captions)

    def draw(self) -> Image.Image:
        """The sheet as a picture."""
        columns = max((len(pictures) for _, pictures in self.rows), default=0)
        top = GAP + (TEXT + 3 * GAP if self.title else 0) + (TEXT + GAP if self.heads else 0)
        size = (self.label + columns * (self.cell + GAP) + GAP, top + len(self.rows) * (self.cell + GAP))
        sheet = Image.new("RGB", size, PAPER)
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
        if self.title:
            pen.text((GAP, GAP), self.title, INK, font)
        for column, caption in enumerate(self.heads):
            if not column or self.heads[column - 1] != caption:
                pen.text((self.label + column * (self.cell + GAP), top - TEXT - GAP), caption, FAINT, font)
        for index, (caption, pictures) in enumerate(self.rows):
            y = top + index * (self.cell + GAP)
            lines = _wrapped(caption, pen, font, self.label - 2 * GAP)
            for k, line in enumerate(lines[: max(1, self.cell // (TEXT + 3))]):
                pen.text((GAP, y + k * (TEXT + 3)), line, INK if k == 0 else FAINT, font)
            for column, picture in enumerate(pictures):
                place = (self.label + column * (self.cell + GAP), y)
                sheet.paste(_sized(picture, self.cell), place)
        return sheet

    def save(self, path: Path, colours: int | None = None) -> Path:
        """Write the sheet as PNG, with no more than so many colours (up to 256) if given."""
        drawn = self.draw()
        with whole_file(path) as temporary:
            (drawn if colours is None else drawn.quantize(colours)).save(temporary, format="PNG", optimize=True)
        return path


def _sized(picture: Image.Image, cell: int) -> Image.Image:
    # Enlarged pixels stay pixels: a smooth enlargement would hide what the model really made.
    way = (
        Image.Resampling.NEAREST
        if max(picture.size) <= cell and cell % max(picture.size) == 0
        else Image.Resampling.LANCZOS
    )
    scale = cell / max(picture.size)
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), way)
    square = Image.new("RGB", (cell, cell), PAPER)
    square.paste(small, ((cell - small.width) // 2, (cell - small.height) // 2))
    return square


def _wrapped(
    text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and pen.textlength(longer, font) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines
