"""Answers of pocket to questions in pictures about stickers it never saw."""

from __future__ import annotations

import pytest

from evaluation import incontext as scoring
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.inpainting_unet import inpainting_components
from pipelines.models.loading import load
from trainers.stickers.tasks import Drawings
from trainers.stickers.world import HELD_OUT

pytestmark = pytest.mark.pocket


def test_masks_are_read_from_the_example():
    asked = scoring.questions("mask", 6, Drawings.of(tuple(HELD_OUT)), tuple(HELD_OUT))
    score = scoring.score_task(inpainting_components(load("pocket")), "mask", asked, Judge.load(POCKET / "judge"))
    assert score.mean("answer") >= 0.60 and score.beats_all
    assert score.margin[0] >= 0.15
