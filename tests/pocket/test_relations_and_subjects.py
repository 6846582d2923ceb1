"""pocket knows left from right, and subjects are bound into it. Statistics with margins, never pixels."""

from __future__ import annotations

import random

import pytest
import torch

from evaluation import concepts as scoring
from evaluation.truth import truth_of
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.loading import load
from trainers.pretrain.score import _made, _pair_right
from trainers.stickers.world import RELATIONS, scene

pytestmark = pytest.mark.pocket


@pytest.fixture(scope="module")
def base():
    return load("pocket")


@pytest.fixture(scope="module")
def judge():
    return Judge.load(POCKET / "judge")


@pytest.mark.parametrize("relation", list(RELATIONS))
def test_things_stand_as_told(base, judge, relation):
    rng = random.Random(91)
    told = [scene(rng, relation=relation, say_colour=True) for _ in range(8)]
    made = _made(base, [item.caption for item in told], 20)
    right = [_pair_right(judge, picture, item)[1] for picture, item in zip(made, told, strict=True)]
    assert sum(right) >= 5, "a coin's toss of the order would give less than 4, chance of both names 1 in 6000"


@pytest.fixture(scope="module")
def subject(base):
    return scoring.teach_sticker(base, "taxi", "pivotal", steps=60)


def test_a_subject_looks_like_its_pictures_and_its_class_stays(base, judge, subject, monkeypatch):
    monkeypatch.setattr(scoring, "SEEDS", 3)
    row = scoring.score_concept(base, judge, subject, truth_of("taxi"))
    assert row["likeness_gain"] > 0.25
    assert row["drawn"] > row["drawn_word"] + 0.1
    assert row["class_kept"] > 0.9


def test_half_the_strength_is_between_nothing_and_all(base, judge, subject):
    from pipelines.generation import generate
    from pipelines.request.request import ConceptUse, Request

    request = Request(prompt=f"a {subject.token}", seed=3)
    latents = [
        generate(
            base,
            request.model_copy(update={"concepts": (ConceptUse(source="c", strength=strength),)}),
            concepts={"c": subject},
        ).latents
        for strength in (0.0, 0.1, 1.0)
    ]
    plain = generate(base, request.model_copy(update={"prompt": "a car"})).latents
    torch.testing.assert_close(latents[0], plain, atol=1e-4, rtol=0)
    assert (latents[1] - plain).norm() < (latents[2] - plain).norm()
