"""Captions of composed scenes, whose truth is known."""

from __future__ import annotations

import pytest
from PIL import Image

from evaluation.captions.stickers import SceneCaption, StickerCaptioner, accuracy, said, table, true_caption
from pipelines.errors import DataError
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.pictures.tensors import to_pictures
from studio.cli import main
from trainers.stickers.world import ALL_NAMES, Placed, Scene, Stickers, scenes


@pytest.fixture(scope="module")
def captioner():
    return StickerCaptioner(Judge.load(POCKET / "judge"))


def test_scenes_are_told_exactly(captioner):
    composed = [
        Scene("", (Placed("wolf", 10, 10, 40),), "teal"),
        Scene("", (Placed("fox", 4, 20, 26), Placed("house", 36, 20, 26)), "yellow", "relation", "left of"),
        Scene("", (Placed("owl", 20, 36, 24), Placed("tree", 20, 3, 26)), "pink", "relation", "below"),
        Scene("", (Placed("mouse", 3, 20, 24), Placed("mouse", 36, 20, 24)), "gray", "two"),
    ]
    pictures = to_pictures(Stickers(names=ALL_NAMES).render(composed).images)
    assert [captioner(one) for one in pictures] == [
        "a wolf on a teal background",
        "a fox to the left of a house on a yellow background",
        "a tree above an owl on a pink background",
        "two mice on a gray background",
    ]
    assert [true_caption(one) for one in composed] == [captioner(one) for one in pictures]


def test_what_shows_no_stickers_gets_no_caption(captioner):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    for picture in (Image.new("RGB", (64, 64), "red"), noise):
        with pytest.raises(DataError, match="no stickers"):
            captioner(picture)


def test_words_follow_the_places():
    a, b, c = (0.1, 0.1, 0.3, 0.3), (0.5, 0.12, 0.9, 0.5), (0.2, 0.15, 0.6, 0.5)
    assert said([("fox", b), ("owl", a)], "blue") == "an owl to the left of a fox on a blue background"
    assert said([("fox", c), ("owl", a)], "blue") == "a fox and an owl on a blue background"
    assert said([("fox", a), ("fox", b), ("owl", c)], "blue") == "two foxes and an owl on a blue background"
    assert said([("fox", a), ("car", b), ("owl", c)], "blue") == "a car, an owl and a fox on a blue background"


def test_the_relation_that_was_composed_is_the_one_that_is_told():
    for scene in scenes(40, 5, kind="relation"):
        ways = {"left of": "to the left of", "right of": "to the left of", "above": "above", "below": "above"}
        assert f" {ways[scene.relation]} " in true_caption(scene)


def test_accuracy_counts_each_kind():
    one, other = (Scene("", (), "blue", kind) for kind in ("one", "two"))
    rows = accuracy([SceneCaption(one, "a", "a"), SceneCaption(one, "a", "b"), SceneCaption(other, "c", "c")])
    assert rows == {"one": (1, 2), "two": (1, 1), "all": (2, 3)}
    assert table(rows).splitlines()[-1].split() == ["all", "2", "3"]


def test_what_cannot_be_measured_is_refused(capsys):
    assert main(["score", "--captions", "--base", "x/y"]) == 2
    assert "not on the base x/y" in capsys.readouterr().err
