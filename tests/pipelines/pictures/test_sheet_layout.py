"""Contact sheets to the pixel: where each picture stands, how it is enlarged, where captions go."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.pictures.sheet import FAINT, GAP, INK, PAPER, TEXT, Sheet


def colour(row, column):
    return (20 + 30 * row, 60 + 40 * column, 200)


def pixels(sheet):
    return np.asarray(sheet.draw()).astype(int)


def text_in(area, ink=INK):
    """Pixels of an area that are nearer to the ink than to the paper."""
    return (np.abs(area - np.array(ink)).sum(-1) < np.abs(area - np.array(PAPER)).sum(-1)).sum()


@pytest.mark.parametrize("cell", [16, 33])
@pytest.mark.parametrize("label", [0, 50])
@pytest.mark.parametrize("title", ["", "A title"])
@pytest.mark.parametrize("counts", [(1,), (3, 1, 2), (0, 2)])
def test_every_picture_stands_in_its_cell_and_nothing_beside(cell, label, title, counts):
    sheet = Sheet(cell, label, title)
    for row, count in enumerate(counts):
        sheet.row("", [Image.new("RGB", (cell, cell), colour(row, column)) for column in range(count)])
    drawn = pixels(sheet)
    top = GAP + (TEXT + 3 * GAP if title else 0)
    assert drawn.shape[:2] == (top + len(counts) * (cell + GAP), label + max(counts) * (cell + GAP) + GAP)
    rest = np.ones(drawn.shape[:2], bool)
    for row, count in enumerate(counts):
        for column in range(count):
            x, y = label + column * (cell + GAP), top + row * (cell + GAP)
            assert (drawn[y : y + cell, x : x + cell] == colour(row, column)).all()
            rest[y : y + cell, x : x + cell] = False
    rest[: top - GAP if title else 0] = False
    assert (drawn[rest] == PAPER).all()


def test_the_title_is_written_above_everything():
    named, unnamed = (Sheet(32, 100, title) for title in ("Seeds 1 to 4", ""))
    for sheet in (named, unnamed):
        sheet.row("", [Image.new("RGB", (32, 32), "red")])
    extra = TEXT + 3 * GAP
    assert np.array_equal(pixels(named)[extra:], pixels(unnamed))
    assert text_in(pixels(named)[: extra + GAP]) > 50


def test_the_first_line_of_a_caption_is_ink_and_the_others_are_faint():
    sheet = Sheet(64, 200)
    sheet.row("first\nsecond\nthird", [])
    lines = [pixels(sheet)[GAP + k * (TEXT + 3) : GAP + (k + 1) * (TEXT + 3), :200] for k in range(3)]
    darkest = [line.sum(-1).min() for line in lines]
    assert abs(darkest[0] - sum(INK)) < 30
    assert all(abs(dark - sum(FAINT)) < 60 for dark in darkest[1:])


@pytest.mark.parametrize("lines", [1, 3, 4, 50])
def test_a_caption_never_runs_into_the_row_below(lines):
    sheet = Sheet(cell=60, label=120)
    sheet.row("\n".join(["words"] * lines), [])
    sheet.row("", [])
    drawn = pixels(sheet)
    below = drawn[GAP + 60 + GAP :]
    assert (below == PAPER).all()
    written = sum(
        text_in(drawn[GAP + k * (TEXT + 3) : GAP + (k + 1) * (TEXT + 3)], INK if k == 0 else FAINT) > 20
        for k in range(3)
    )
    assert written == min(lines, 3)  # 60 pixels hold three lines of 18


def test_long_captions_stay_in_their_column():
    sheet = Sheet(cell=120, label=90)
    sheet.row("many short words that have to be wrapped again and again", [Image.new("RGB", (8, 8), PAPER)])
    assert text_in(pixels(sheet)[:, :84]) > 50
    assert (pixels(sheet)[:, 90:] == PAPER).all()


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 32])
def test_small_pictures_keep_hard_edges_whatever_the_factor(side):
    stored = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sheet = Sheet(cell=32, label=0)
    sheet.row("", [Image.fromarray(stored)])
    factor = 32 // side
    assert np.array_equal(pixels(sheet)[GAP : GAP + 32, :32], stored.repeat(factor, 0).repeat(factor, 1))


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (200, 10), (3, 300), (1000, 1)])
def test_pictures_that_are_not_square_are_centred_on_paper(width, height):
    sheet = Sheet(cell=64, label=0)
    sheet.row("", [Image.new("RGB", (width, height), "red")])
    cell = pixels(sheet)[GAP : GAP + 64, :64]
    red = (cell == (255, 0, 0)).all(-1)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    scale = 64 / max(width, height)
    assert len(columns) == max(1, round(width * scale)) and len(rows) == max(1, round(height * scale))
    assert abs(int(rows[0]) - (63 - int(rows[-1]))) <= 1 and abs(int(columns[0]) - (63 - int(columns[-1]))) <= 1
    assert red.sum() == len(rows) * len(columns) and (cell[~red] == PAPER).all()


def test_drawing_again_after_another_row_gives_the_rows_before_unchanged(tmp_path):
    sheet = Sheet(32, 60)
    sheet.row("one", [Image.new("RGB", (16, 16), "blue")])
    before = pixels(sheet)
    sheet.row("two", [])
    assert np.array_equal(pixels(sheet)[: len(before)], before)
    assert np.array_equal(np.asarray(Image.open(sheet.save(tmp_path / "s.png"))), pixels(sheet))


def test_a_long_head_wraps_in_its_column_and_is_cut_where_it_does_not_fit():
    cell = 80
    for caption, lines in (("one", 1), ("two words that wrap", 2), ("so many words that " * 9, 3), ("x" * 300, 1)):
        sheet = Sheet(cell, 20)
        sheet.head([caption, "b"])
        sheet.row("", [Image.new("RGB", (8, 8), PAPER)] * 2)
        drawn = pixels(sheet)
        top = len(drawn) - cell - GAP
        assert top == GAP + lines * (TEXT + 3) - 3 + GAP
        assert text_in(drawn[:top, 20 : 20 + cell], FAINT) > 20
        assert (drawn[:, 20 + cell : 20 + cell + GAP] == PAPER).all(), "nothing runs into the next column"


def test_heads_that_are_alike_span_their_columns():
    sheet = Sheet(40, 0)
    sheet.head(["exemplars of a relation"] * 4 + ["b"])
    sheet.row("", [Image.new("RGB", (8, 8), PAPER)] * 5)
    drawn = pixels(sheet)
    assert len(drawn) == GAP + TEXT + GAP + 40 + GAP
    assert text_in(drawn[:, 46 : 3 * 46], FAINT) > 20


def test_a_title_is_no_wider_than_its_sheet():
    sheet = Sheet(32, 10, "a title that is longer than this small sheet is wide")
    sheet.row("", [Image.new("RGB", (32, 32), PAPER)] * 2)
    assert (pixels(sheet)[:, -GAP:] == PAPER).all()
