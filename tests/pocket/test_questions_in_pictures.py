"""Answers of pocket to questions in pictures about stickers it never saw."""

from __future__ import annotations

import pytest

from evaluation import incontext as scoring
from pipelines import incontext
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.inpainting_unet import inpainting_components
from pipelines.models.loading import load
from pipelines.request.request import Request
from trainers.stickers.tasks import Drawings
from trainers.stickers.world import HELD_OUT

pytestmark = pytest.mark.pocket


@pytest.fixture(scope="module")
def base():
    return inpainting_components(load("pocket"))


def test_masks_are_read_from_the_example(base, monkeypatch):
    monkeypatch.setattr(incontext, "DETAILS", (0.0,))  # a mask has none of its query's
    asked = scoring.questions("mask", 6, Drawings.of(tuple(HELD_OUT)), tuple(HELD_OUT))
    score = scoring.score_task(base, "mask", asked, Judge.load(POCKET / "judge"))
    assert score.mean("answer") >= 0.60 and score.beats_all
    assert score.margin[0] >= 0.15


def test_what_stays_is_as_it_was_in_the_query(base):
    asked = scoring.questions("remove", 4, Drawings.of(tuple(HELD_OUT)), tuple(HELD_OUT))
    cells, request = asked.asked("answer"), incontext.settled(base, Request(prompt="", seed=7, steps=10))
    errors = [
        float((incontext.paint(base, cells, request, detail=[share] * 4).answers - asked.truths).abs().mean())
        for share in (0.0, 1.0)
    ]
    assert errors[1] < 0.6 * errors[0]
    assert any(incontext.best_detail(base, cells[:1], request)), "the example says that details are wanted"
