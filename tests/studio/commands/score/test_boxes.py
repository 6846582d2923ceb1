"""Scores of boxes from the command line."""

from __future__ import annotations

import json

import pytest

from studio.cli import main

pytestmark = pytest.mark.usefixtures("few_steps")


def test_ways_are_told_and_drawn(tmp_path, capsys):
    sheet = tmp_path / "boxes.png"
    assert main(["score", "--boxes", "--pictures", "1", "--sheet", str(sheet), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows)[:4] == ["text alone", "boxes, beta 0.3", "boxes, beta 0.5", "boxes, beta 1.0"]
    levels = ("touching", "a quarter covered", "half covered")
    assert list(rows)[4:] == [f"{way}, {level}" for level in levels for way in ("boxes", "real")]
    assert rows["real, touching"]["both_in_place"] == 1
    assert set(rows["text alone"]) == {"iou", "in_place", "ap50", "drawn", "named", "leakage"} and sheet.exists()


@pytest.mark.parametrize(
    ("more", "said"), [(("--base", "other"), "Layouts are composed for pocket"), (("--only", "fox"), "no held-out")]
)
def test_what_cannot_be_scored_is_said(more, said, capsys):
    assert main(["score", "--boxes", *more]) == 2
    assert said in capsys.readouterr().err
