"""Closed forms of guidance."""

from __future__ import annotations

import pytest
import torch

from pipelines.condition import Branch, Step
from pipelines.guidance import active, branches, classifier_free, combine, rescaled
from pipelines.request.request import Guidance

C, U = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.randn(2, 4, 8, 8)


def at(index, count=10):
    return Step(index, count, torch.tensor(1), None)


def test_scale_one_gives_the_conditional_and_zero_the_unconditional():
    torch.testing.assert_close(classifier_free(C, U, 1.0), C)
    torch.testing.assert_close(classifier_free(C, U, 0.0), U)


def test_equal_branches_are_left_alone():
    torch.testing.assert_close(classifier_free(C, C, 9.0), C)


def test_full_rescale_gives_the_spread_of_the_conditional():
    out = rescaled(3 * C + 1, C, 1.0)
    torch.testing.assert_close(out.std(dim=[1, 2, 3]), C.std(dim=[1, 2, 3]))
    assert rescaled(3 * C, C, 0.0).equal(3 * C)


def test_the_spread_is_that_of_a_whole_picture_and_of_each_its_own():
    """Channels and pictures of other spreads, by hand: of (0, 2) twice it is 2 / sqrt(3), of (0, 6) and (0, 2) more."""
    c = torch.tensor([[[[0.0, 2.0]], [[0.0, 2.0]]], [[[0.0, 1.0]], [[0.0, 1.0]]]])
    guided = torch.tensor([[[[0.0, 6.0]], [[0.0, 2.0]]], [[[0.0, 1.0]], [[0.0, 1.0]]]])
    # Of 0, 6, 0, 2 the mean is 2 and the squares sum to 4 + 16 + 4 + 0 = 24; of 0, 2, 0, 2 they sum to 4.
    factors = torch.tensor([(4 / 24) ** 0.5, 1.0])
    torch.testing.assert_close(rescaled(guided, c, 1.0), guided * factors[:, None, None, None])


@pytest.mark.parametrize(("start", "stop", "on"), [(0, 1, range(10)), (0.2, 0.5, range(2, 5)), (1, 1, ()), (0, 0, ())])
def test_the_interval_is_half_open_in_steps(start, stop, on):
    guidance = Guidance(scale=5.0, start=start, stop=stop)
    assert [i for i in range(10) if active(guidance, at(i))] == list(on)


def test_scale_one_asks_for_one_branch_only():
    assert branches(Guidance(scale=1.0), at(0)) == (Branch.POSITIVE,)
    assert branches(Guidance(scale=2.0), at(0)) == (Branch.NEGATIVE, Branch.POSITIVE)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, U), (1.0, C), (None, C)])
def test_the_ends_hold_for_the_whole_combination(scale, expected):
    both = {Branch.POSITIVE: C, Branch.NEGATIVE: U}
    torch.testing.assert_close(combine(Guidance(scale=scale, rescale=0.0), both), expected)


def test_one_prediction_is_passed_through():
    assert combine(Guidance(scale=5.0), {Branch.POSITIVE: C}) is C
