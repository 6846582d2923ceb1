"""Labelled contact sheets: rows of pictures with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipelines.files import whole_file

INK, PAPER, FAINT = (30, 30, 34), (250, 250, 248), (110, 110, 116)
GAP, TEXT, LINE = 6, 15, 18
HEAD_LINES = 3  # of the caption of a column; what is longer is cut short
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Sheet:
    """Rows of pictures, laid out when the sheet is drawn.

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
        """Set the captions of the columns; a caption that is repeated spans its columns, a long one wraps."""
        self.heads = list(captions)

    def draw(self) -> Image.Image:
        """Return the sheet as a picture."""
        columns = max((len(pictures) for _, pictures in self.rows), default=0)
        width, font = self.label + columns * (self.cell + GAP) + GAP, ImageFont.load_default(TEXT)
        heads = self._heads(font)
        deep = max((len(lines) for _, lines in heads), default=0) * LINE
        top = GAP + (TEXT + 3 * GAP if self.title else 0) + (deep - LINE + TEXT + GAP if heads else 0)
        sheet = Image.new("RGB", (width, top + len(self.rows) * (self.cell + GAP)), PAPER)
        pen = ImageDraw.Draw(sheet)
        if self.title:
            pen.text((GAP, GAP), _fitted(self.title, pen, font, width - 2 * GAP, 1)[0], INK, font)
        for x, lines in heads:
            for k, line in enumerate(lines):
                pen.text((x, top - GAP - TEXT - deep + (k + 1) * LINE), line, FAINT, font)
        for index, (caption, pictures) in enumerate(self.rows):
            y = top + index * (self.cell + GAP)
            lines = _wrapped(caption, pen, font, self.label - 2 * GAP)
            for k, line in enumerate(lines[: max(1, self.cell // LINE)]):
                pen.text((GAP, y + k * LINE), line, INK if k == 0 else FAINT, font)
            for column, picture in enumerate(pictures):
                place = (self.label + column * (self.cell + GAP), y)
                sheet.paste(_sized(picture, self.cell), place)
        return sheet

    def _heads(self, font: Font) -> list[tuple[int, list[str]]]:
        """Return the left edge and the lines of each caption of columns."""
        pen, column = ImageDraw.Draw(Image.new("RGB", (1, 1))), 0
        found: list[tuple[int, list[str]]] = []
        for caption, same in groupby(self.heads):
            span = len(list(same))
            lines = _fitted(caption, pen, font, span * (self.cell + GAP) - GAP, HEAD_LINES)
            found.append((self.label + column * (self.cell + GAP), lines))
            column += span
        return found

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


def _fitted(text: str, pen: ImageDraw.ImageDraw, font: Font, width: int, most: int) -> list[str]:
    """Return at most so many lines that fit the width in pixels; text that is cut ends in dots."""
    lines = _wrapped(text, pen, font, width)
    cut = len(lines) > most
    lines = lines[:most]
    for k, line in enumerate(lines):
        shown = line + "..." if cut and k == most - 1 else line
        while len(shown) > 3 and pen.textlength(shown, font) > width:
            line = line[:-1]
            shown = line.rstrip() + "..."
        lines[k] = shown
    return lines


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: Font, width: int) -> list[str]:
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
