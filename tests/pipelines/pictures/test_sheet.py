from __future__ import annotations

import numpy as np
from PIL import Image

from pipelines.pictures.sheet import GAP, PAPER, Sheet


def test_pictures_stand_beside_their_caption_in_order():
    sheet = Sheet(cell=32, label=100)
    sheet.row("first", [Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")])
    sheet.row("second", [Image.new("RGB", (16, 16), "lime")])
    drawn = sheet.draw()
    assert drawn.size == (100 + 2 * (32 + GAP) + GAP, GAP + 2 * (32 + GAP))
    middle = GAP + 16
    assert drawn.getpixel((100 + 16, middle)) == (255, 0, 0)
    assert drawn.getpixel((100 + 32 + GAP + 16, middle)) == (0, 0, 255)
    assert drawn.getpixel((100 + 16, middle + 32 + GAP)) == (0, 255, 0)
    label = np.asarray(drawn)[GAP : GAP + 32, :100]
    assert (label != np.array(PAPER)).any(), "the caption is drawn"


def test_small_pictures_are_enlarged_in_whole_pixels():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    sheet = Sheet(cell=32, label=10)
    sheet.row("", [picture])
    cut = np.asarray(sheet.draw())[GAP : GAP + 32, 10:42]
    assert np.array_equal(cut[::4, ::4], np.asarray(picture))


def test_other_shapes_keep_their_proportions():
    sheet = Sheet(cell=32, label=0)
    sheet.row("", [Image.new("RGB", (64, 32), "red")])
    drawn = sheet.draw()
    assert drawn.getpixel((16, GAP + 16)) == (255, 0, 0)
    assert drawn.getpixel((16, GAP + 2)) == PAPER


def test_long_captions_wrap_and_an_empty_sheet_draws(tmp_path):
    sheet = Sheet(cell=64, label=90, title="A title")
    assert sheet.draw().size[0] >= 90
    sheet.row("a rather long caption that cannot stand on one line", [])
    path = sheet.save(tmp_path / "deep" / "sheet.png")
    ink = (np.asarray(Image.open(path)).sum(2) < 500).any(1)
    assert ink[:30].any() and ink[60:].any()
