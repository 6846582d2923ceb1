"""The gain of captions: one training under templates and under captions, of pictures that show another thing too."""

from __future__ import annotations

import pytest
import torch

from evaluation.captions.gain import Learned, busy_scenes, captioned, mean, measured, table, taught
from evaluation.truth import composed
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.loading import load
from studio.cli import main


def test_something_else_stands_beside_the_thing_in_every_picture():
    scenes = busy_scenes("tiger")
    assert len({one.colour for one in scenes}) == len(scenes) == 4
    names = [{placed.name for placed in one.stickers} for one in scenes]
    assert all("tiger" in one and len(one) == 2 for one in names) and len(set.union(*names)) == 5


def test_a_thing_is_learned_under_the_captions_that_are_read_from_its_pictures():
    base, judge = load("pocket"), Judge.load(POCKET / "judge")
    told = captioned(judge, composed(busy_scenes("wolf")), "<my-wolf>")
    assert all(one.count("wolf") == one.count("<my-wolf>") == 1 for one in told)
    others = [placed.name for one in busy_scenes("wolf") for placed in one.stickers if placed.name != "wolf"]
    assert sum(other in text for other, text in zip(others, told, strict=True)) >= 3  # one may be misread
    plain, said = (taught(base, "wolf", captions, steps=2) for captions in ([""] * 4, told))
    assert plain.token == said.token == "<my-wolf>"
    assert not torch.equal(plain.rows[0], said.rows[0])  # from the same noise
    found = measured(base, judge, said, "wolf", 1)
    assert 0 <= found.alone <= 1 and -1 <= found.drawn <= 1 and 0 < found.likeness <= 1


def test_figures_are_averaged_and_told():
    rows = {"wolf": {"captions": Learned(0.5, 0.8, 1.0)}, "mean": {"captions": mean([Learned(0.5, 0.8, 1.0)] * 2)}}
    assert table(rows).splitlines()[2].split() == ["mean", "captions", "0.500", "0.800", "1.00"]
    found = mean([Learned(0.2, 0.4, 0), Learned(0.4, 0.8, 1)])
    assert (found.drawn, found.likeness, found.alone) == pytest.approx((0.3, 0.6, 0.5))


def test_what_cannot_be_taught_is_said(capsys):
    assert main(["score", "--captions", "--taught", "--only", "koala"]) == 2
    assert "'koala' is no held-out sticker" in capsys.readouterr().err
