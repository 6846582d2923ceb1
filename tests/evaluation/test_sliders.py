"""Figures of sliders on composed pictures, whose truth is known."""

from __future__ import annotations

import pytest

from evaluation import sliders
from pipelines.pictures.tensors import to_pictures
from studio.cli import main
from trainers.stickers.world import NAMES, Placed, Scene, Stickers


def composed(*things, colour="blue"):
    scene = Scene("", tuple(Placed(*thing) for thing in things), colour)
    return Stickers(names=("penguin", "tree")).render([scene]).images[0]


def test_sides_counts_and_colours_are_those_of_the_picture():
    small, large = (composed(("penguin", 6, 6, long)) for long in (20, 50))
    extent = sliders.side(large, "penguin")
    assert extent == pytest.approx(50 / 64, abs=0.1) and sliders.side(small, "penguin") < 0.45 * extent
    two = composed(("penguin", 3, 20, 24), ("penguin", 36, 20, 24))
    assert [sliders.count(one, "penguin") for one in (large, two)] == [1, 2]
    assert sliders.count(two, "tree") == sliders.side(two, "tree") == 0
    places = [sliders.blueness(composed(("tree", 9, 9, 40), colour=colour)) for colour in ("orange", "gray", "blue")]
    assert places == pytest.approx([0, places[1], 1], abs=0.02) and 0.1 < places[1] < 0.9


def test_ends_differ_in_size_alone():
    small, large = (sliders.end_scenes(sides) for sides in (sliders.SMALL, sliders.LARGE))
    assert [one.stickers[0].name for one in small] == [one.stickers[0].name for one in large]
    assert max(one.stickers[0].side for one in small) < min(one.stickers[0].side for one in large)
    used = {one.stickers[0].name for one in small} | set(sliders.TAUGHT)
    assert not used & set(sliders.THINGS) and used <= set(NAMES)
    assert all("small" not in one.caption and one.stickers[0].name in one.caption for one in small)


def test_the_table_and_the_sheet_show_each_strength():
    picture = to_pictures(composed(("penguin", 6, 6, 40))[None])[0]
    strengths = (-1.0, 0.0, 1.0)
    one = sliders.Tried(
        "size",
        strengths,
        [[picture] * len(sliders.THINGS)] * 3,
        [0.2, 0.5, 0.8],
        [0.5] * 3,
        [{"found": 1.0}] * 3,
        0.9,
        0.75,
        60,
    )
    said = sliders.table({"size": one})
    assert "0.20    0.50    0.80" in said and "rank correlation 0.90" in said and "75%" in said
    drawn = sliders.sheet({"size": one}).draw()
    assert drawn.width > 3 * 96 and drawn.height > sliders.SHOWN * 96


@pytest.mark.parametrize(("words", "said"), [(["--only", "hue"], "colour, count, size"), (["--base", "x/y"], "pocket")])
def test_what_cannot_be_measured_is_refused(words, said, capsys):
    assert main(["score", "--sliders", *words]) == 2
    assert said in capsys.readouterr().err
