"""Sprite sheets are drawn from icon collections: cropped, centred, and refused by name where something is missing."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from pipelines.errors import ModelError
from trainers.pretrain import sheets
from trainers.stickers.art import COLLECTIONS, SIDE, icons

BAR = '<rect x="10" y="4" width="4" height="16" fill="#ff0000"/>'


def collections(folder, leave_out=()):
    """Icon collections in which every thing is a red bar."""
    for style, collection in COLLECTIONS.items():
        (folder / collection).mkdir(parents=True)
        held = {icon: {"body": BAR} for icon in icons(style).values() if icon not in leave_out}
        told = json.dumps({"icons": held, "width": 32, "height": 32})
        (folder / collection / "icons.json").write_text(told, encoding="utf-8")
    return argparse.Namespace(icons=folder)


def test_a_drawing_fills_its_square_along_the_longer_side_in_the_middle_of_the_other():
    pixels = np.asarray(sheets.drawing(BAR, (32, 32)))
    assert pixels.shape == (SIDE, SIDE, 4)
    rows, columns = np.nonzero(pixels[..., 3] > 128)
    assert (rows.min(), rows.max()) == (0, SIDE - 1)
    assert abs(columns.min() - (SIDE - 1 - columns.max())) <= 1 and 25 <= columns.max() - columns.min() <= 28
    assert tuple(pixels[SIDE // 2, SIDE // 2]) == (255, 0, 0, 255)


def test_every_sheet_is_drawn_in_the_order_of_its_names(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "ART", tmp_path)
    events = []
    sheets.sheets_stage(collections(tmp_path / "icons"), events.append)
    assert {path.name for path in tmp_path.glob("*.webp")} == {"fluent.webp", "flat.webp", "noto.webp"}
    told = [event.text.split(": ")[1] for event in events]
    assert told == [f"{len(icons(style))} things" for style in COLLECTIONS]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "ART", tmp_path)
    with pytest.raises(ModelError, match=r"fluent-emoji.icons.json"):
        sheets.sheets_stage(argparse.Namespace(icons=tmp_path), lambda event: None)
    with pytest.raises(ModelError, match=r"no icon 'dog-face' for 'dog'"):
        sheets.sheets_stage(collections(tmp_path / "icons", leave_out=("dog-face",)), lambda event: None)
