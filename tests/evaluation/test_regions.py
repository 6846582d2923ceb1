"""Several learned things in one picture: every kind is taught, drawn in each way and told."""

from __future__ import annotations

import pytest

from evaluation.regions import KINDS, WAYS, groups, score_regions
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.loading import load

pytestmark = pytest.mark.usefixtures("few_steps")


def test_things_stand_beside_those_that_follow_in_a_ring():
    assert groups(("a", "b", "c", "d"), 3)[-1] == ("d", "a", "b")
    assert groups(("a",), 1) == [("a",)] and groups(("a",), 2) == []
    assert groups(("a", "b", "c"), 3) == [("a", "b", "c")]


def test_a_small_run_scores_every_kind_with_and_without_regions():
    said = []
    rows = score_regions(
        load("pocket"), Judge.load(POCKET / "judge"), ("wolf", "kiwi"), count=1, say=said.append, steps=1
    )
    kinds = [kind for kind, ways in KINDS.items() if len(ways) < 3]
    assert list(rows) == [f"{kind}, {way}" for kind in kinds for way in WAYS]
    assert len(said) == len(rows) and all("drawn" in row and "leakage" in row for row in rows.values())
    assert all("both_in_place" in row for name, row in rows.items() if not name.startswith("one"))
