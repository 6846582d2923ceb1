"""Masks from prompts, measured against composed pictures."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.masks import figures, mask_table, overlap, score_masks


def test_things_that_stand_apart_are_found_by_a_click_and_by_a_box():
    tallies = score_masks(3)
    rows = figures(tallies)
    for kind in ("one", "relation", "two", "three", "group"):
        assert rows[kind]["click"] > 0.9 and rows[kind]["box"] > 0.9
    assert all(row["offered"] >= row["click"] > 0.2 for row in rows.values())
    assert len(mask_table(tallies).splitlines()) == 7


def test_overlap_is_intersection_over_union():
    one, other = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    one[:2], other[1:3] = True, True
    assert overlap(one, other) == pytest.approx(1 / 3) and overlap(one, one) == 1 and overlap(one, ~one) == 0
