"""Boxes that touch or overlap: the pairs are what their level says, and real pictures are found to be right."""

from __future__ import annotations

import pytest

from evaluation.boxes import overlap
from evaluation.overlapping_boxes import LEVELS, SIDE, figures, pairs
from pipelines.measures.drawn import NOTHING, Likeness
from pipelines.pictures.tensors import to_pictures
from trainers.stickers.drawn import drawn_scene
from trainers.stickers.free_scenes import covered
from trainers.stickers.world import Stickers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("level", list(LEVELS))
def test_the_square_behind_is_covered_as_the_level_says(level):
    asked = pairs(40, LEVELS[level])
    assert asked == pairs(40, LEVELS[level])
    for pair in asked:
        behind, front = ((one.left, one.top, one.side) for one in pair.scene.stickers)
        assert covered(behind, front) == pytest.approx(LEVELS[level], abs=0.5 / SIDE)
        assert all(0 <= edge <= 1 for square in pair.squares for edge in square)
    assert len({pair.scene.stickers[1].left < pair.scene.stickers[0].left for pair in asked}) == 2


def test_real_pictures_are_found_as_they_are_and_swapped_ones_are_not():
    asked = pairs(4, 0.25)
    names = tuple({name for pair in asked for name in pair.layout.things})
    shown = to_pictures(Stickers(64, names=names).render([pair.scene for pair in asked]).images)
    seen = [drawn_scene(picture, pair.layout.things) for picture, pair in zip(shown, asked, strict=True)]
    row = figures(asked, seen)
    assert row["both_in_place"] == row["in_place"] == 1 and row["iou"] > 0.9 and row["drawn"] > 0.9
    others = pairs(4, 0.25, seed=1)
    assert figures(others, seen)["both_in_place"] < 1, "these stand elsewhere"


def test_a_thing_in_place_that_is_not_like_it_does_not_count():
    (pair,) = pairs(1, 0.0)
    there, smear = Likeness(0.9, 0.9, pair.squares[0]), Likeness(0.2, 0.2, pair.squares[1])
    assert overlap(pair.squares[0], pair.squares[1]) == 0
    assert figures([pair], [[there, smear]]) == pytest.approx(
        {"iou": 1.0, "in_place": 0.5, "drawn": 0.55, "both_in_place": 0.0}
    )
    assert figures([pair], [[there, NOTHING]])["iou"] == 0.5
