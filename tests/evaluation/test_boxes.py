"""The benchmark of boxes: its arithmetic on pictures made by hand, and one small run of it on pocket."""

from __future__ import annotations

import pytest
import torch

from evaluation import boxes as scoring
from evaluation.boxes import GROUP, Layout, PictureCheck, Sighting, average_precision, figures, layouts, look, overlap
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.loading import load
from pipelines.pictures.tensors import to_pictures
from trainers.stickers.world import Placed, Scene, Stickers

pytestmark = pytest.mark.usefixtures("one_thread", "few_steps")
LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.6, 0.0, 1.0, 0.4)


@pytest.fixture(scope="module")
def judge():
    return Judge.load(POCKET / "judge")


def seen(*found, inside=("fox", "car")):
    return PictureCheck(tuple(Sighting(*one) for one in found), inside)


def test_overlap_is_intersection_over_union():
    assert overlap(LEFT, LEFT) == pytest.approx(1) and overlap(LEFT, RIGHT) == 0
    assert overlap((0, 0, 0.4, 0.4), (0.2, 0, 0.6, 0.4)) == pytest.approx(1 / 3)


def test_average_precision_is_the_area_under_the_curve():
    assert average_precision([(0.9, True), (0.8, True)], 2) == 1
    assert average_precision([(0.9, True)], 2) == 0.5
    assert average_precision([(0.9, False), (0.8, True)], 1) == 0.5
    # Right, wrong, right of 2: precision 1 at recall 1/2, 2/3 at recall 1.
    assert average_precision([(0.5, True), (0.9, True), (0.7, False)], 2) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([], 3) == 0


def test_pictures_are_counted_by_what_is_in_them():
    asked = [Layout(("fox", "car"), (LEFT, RIGHT))] * 3
    looks = [
        seen(("fox", LEFT, 0.9), ("car", RIGHT, 0.8)),  # as told
        seen(("fox", RIGHT, 0.9), ("car", LEFT, 0.8), inside=("car", "fox")),  # both there, the other way round
        seen(("fox", LEFT, 0.9), ("fox", RIGHT, 0.8), inside=("fox", "fox")),  # one of them twice
    ]
    row = figures(asked, looks)
    assert row["iou"] == pytest.approx(3 / 6) and row["in_place"] == pytest.approx(3 / 6)
    assert row["named"] == pytest.approx(3 / 6)
    assert row["leakage"] == pytest.approx(2 / 3)
    assert row["both"] == pytest.approx(2 / 3) and row["both_in_place"] == pytest.approx(1 / 3)
    # Surest first: right, wrong, right, right, wrong, wrong; 6 to find.
    assert row["ap50"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 6)


def test_of_two_of_one_name_each_fills_one_box():
    layout = Layout(("fox", "fox"), (LEFT, RIGHT))
    row = figures([layout], [seen(("fox", LEFT, 0.9), ("fox", LEFT, 0.8), inside=("fox", "owl"))])
    assert row["ap50"] == pytest.approx(0.5) and row["iou"] == 0.5 and row["leakage"] == 0


def test_layouts_are_the_same_for_a_seed_and_their_things_stand_apart():
    listed = layouts(5 * GROUP)
    assert listed == layouts(5 * GROUP)
    assert [len(one.things) for one in listed[::GROUP]] == [1, 2, 3, 1, 2]
    for layout in listed:
        assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in layout.boxes)
        assert all(overlap(a, b) == 0 for a in layout.boxes for b in layout.boxes if a != b)
    assert len({one.boxes for one in listed}) == len(listed)
    assert {one.things for one in layouts(3, things=[("wolf",)])} == {("wolf",)}


def test_composed_pictures_are_seen_to_be_what_they_are(judge):
    scene = Scene("", (Placed("fox", 4, 6, 24), Placed("house", 36, 30, 24)), "blue")
    rendered = Stickers(64, names=("fox", "house")).render([scene])
    layout = Layout(("fox", "house"), tuple(tuple(box) for box in rendered.boxes[0, :2].tolist()))
    looked = look(judge, to_pictures(rendered.images)[0], layout)
    row = figures([layout], [looked])
    assert row["iou"] > 0.9 and row["named"] == row["both_in_place"] == row["ap50"] == 1 and row["leakage"] == 0
    empty = look(judge, to_pictures(torch.zeros(1, 3, 64, 64))[0], layout)
    assert not empty.found and figures([layout], [empty])["iou"] == 0


def test_boxes_are_drawn_where_they_are(judge):
    picture = to_pictures(torch.zeros(1, 3, 64, 64))[0]
    shown = scoring.outlined(picture, Layout(("fox",), ((0.25, 0.25, 0.75, 0.5),)))
    assert shown.size == (128, 128)
    red = [(x, y) for x in range(128) for y in range(128) if shown.getpixel((x, y)) == (214, 39, 40)]
    assert (min(red), max(red)) == ((32, 32), (95, 63))


def test_a_small_run_scores_every_way_and_draws_its_sheet(judge, tmp_path):
    components = load("pocket")
    heard = []
    asked, ways = scoring.score_boxes(components, judge, 2, say=heard.append)
    assert list(ways) == ["text alone", "boxes, beta 0.3", "boxes, beta 0.5", "boxes, beta 1.0"] and len(heard) == 4
    assert all(0 <= value <= 1 for one in ways.values() for value in one.figures.values())
    assert scoring.box_sheet(asked, ways).save(tmp_path / "boxes.png").stat().st_size > 1000
