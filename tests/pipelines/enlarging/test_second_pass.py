"""The second pass: nothing changes without it, it has no seams, and it is said when it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pipelines.condition import Step, least_strength
from pipelines.enlarging.second_pass import larger, second_steps
from pipelines.enlarging.tiles import Tiles, starts
from pipelines.errors import RequestError
from pipelines.events import StepDone
from pipelines.generation import generate
from pipelines.models.loading import load
from pipelines.pictures.tensors import to_pictures, to_tensor
from pipelines.request.enlarge import Enlarge
from pipelines.request.request import Request
from tests import tiny, tiny_flows


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def drawn(base, **fields):
    events = []
    given = {"prompt": "a cat", "steps": 4, "seed": 3, "count": 2, "scheduler": "ddim", **fields}
    return generate(base, Request.read(given), on_event=events.append), events


def test_a_factor_of_one_changes_nothing(base):
    plain, _ = drawn(base)
    for enlarge in ({}, {"factor": 1}, {"factor": 1, "strength": 1, "by": "latents"}):
        again, _ = drawn(base, enlarge=enlarge)
        assert torch.equal(plain.latents, again.latents)
        assert [one.tobytes() for one in plain.pictures] == [one.tobytes() for one in again.pictures]


def test_strength_zero_is_a_bicubic_enlargement(base):
    plain, _ = drawn(base)
    result, _ = drawn(base, enlarge={"factor": 2, "strength": 0})
    size = result.pictures[0].size
    assert size == tuple(2 * side for side in plain.pictures[0].size)
    expected = to_pictures(larger(torch.stack([to_tensor(one) for one in plain.pictures]), size))
    for one, other in zip(expected, result.pictures, strict=True):
        difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
        assert difference.max() <= 2  # the first pass was rounded to pixels for `expected`


@pytest.mark.parametrize("by", ["pixels", "latents"])
def test_pictures_are_drawn_larger_and_the_same_again(base, by):
    enlarge = {"factor": 2, "strength": 0.5, "by": by}
    plain, _ = drawn(base)
    result, events = drawn(base, enlarge=enlarge)
    width, height = plain.pictures[0].size
    assert [one.size for one in result.pictures] == [(2 * width, 2 * height)] * 2
    steps = [(one.step, one.steps) for one in events if isinstance(one, StepDone)]
    assert steps == [(i, 6) for i in range(1, 7)]  # four, and half of them again
    assert second_steps(result.request) == 2 and result.request.enlarge.by == by
    again, _ = drawn(base, enlarge=enlarge)
    assert torch.equal(result.latents, again.latents)
    alone, _ = drawn(base, enlarge=enlarge, count=1, seed=4)  # the second picture, by itself
    assert torch.allclose(alone.latents, result.latents[1:], atol=1e-4)
    other, _ = drawn(base, enlarge={**enlarge, "strength": 0})
    assert other.pictures[0].tobytes() != result.pictures[0].tobytes()


@pytest.mark.parametrize("family", ["sdxl", "sd3", "z-image"])
def test_every_kind_of_base_has_a_second_pass(family):
    base = tiny.sdxl() if family == "sdxl" else tiny_flows.base(family)
    side = base.multiple * 4
    fields = {"scheduler": base.defaults.scheduler, "width": side, "height": side, "count": 1}
    result, _ = drawn(base, **fields, enlarge={"factor": 1.5, "strength": 0.5})
    assert result.pictures[0].size == (side * 3 // 2, side * 3 // 2)


def test_a_picture_of_ones_own_is_enlarged(base, tmp_path):
    Image.new("RGB", (base.defaults.size,) * 2, "red").save(tmp_path / "red.png")
    begun = {"image": str(tmp_path / "red.png"), "strength": 0.25}
    result, events = drawn(base, inpaint=begun, enlarge={"factor": 2, "strength": 0.25})
    assert result.pictures[0].size == (2 * base.defaults.size,) * 2
    steps = [(event.step, event.steps) for event in events if isinstance(event, StepDone)]
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]


@pytest.mark.parametrize("steps", range(1, 61))
def test_the_strength_that_is_offered_is_a_step(steps):
    assert int(least_strength(steps) * steps + 1e-9) == 1


def test_the_strength_is_the_bases_own_unless_it_is_given(base):
    result, _ = drawn(base, enlarge={"factor": 2})
    assert result.request.enlarge.strength == base.defaults.redrawn == 0.3
    assert Request(prompt="x", enlarge=Enlarge(factor=2)).resolved(load("pocket").defaults).enlarge.strength == 0
    assert Request(prompt="x").resolved(base.defaults).enlarge == Enlarge()


def test_tiles_cover_everything_and_are_averaged_without_seams():
    tiles = Tiles((8, 8), starts(20, 8), starts(16, 8))
    seen = torch.zeros(20, 16)
    for rows, columns in tiles.places():
        assert seen[rows, columns].shape == (8, 8)
        seen[rows, columns] += 1
    assert seen.min() >= 1
    sample = torch.randn(2, 4, 20, 16, generator=torch.Generator().manual_seed(0))
    step = Step(0, 1, torch.tensor(1), None)
    same = tiles.over(lambda part, time, step: 2 * part)(sample, torch.tensor(1.0), step)
    assert torch.allclose(same, 2 * sample, atol=1e-5)  # where tiles agree, nothing is changed
    shifts = iter(range(100))
    mixed = tiles.over(lambda part, time, step: torch.full_like(part, next(shifts)))(sample, torch.tensor(1.0), step)
    jumps = (mixed[..., 1:] - mixed[..., :-1]).abs().max()
    assert jumps < 0.5, "a seam"  # neighbours differ by 1, and fade into one another
    one = Tiles((8, 8), (0,), (0,))
    assert one.over(max) is max


def test_what_cannot_be_enlarged_is_said(base, tmp_path):
    with pytest.raises(RequestError, match="4096 along a side"):
        drawn(base, width=2048, height=2048, enlarge={"factor": 4, "strength": 0.5})
    with pytest.raises(RequestError, match="less than one step of the second"):
        drawn(base, enlarge={"factor": 2, "strength": 0.1})
    with pytest.raises(RequestError, match="enlarge 2 would draw all of a picture of which a part is kept"):
        drawn(base, inpaint={"image": "x.png", "click": [0.5, 0.5]}, enlarge={"factor": 2})
    with pytest.raises(RequestError, match="factor"):
        drawn(base, enlarge={"factor": 5})
    with pytest.raises(RequestError, match="repaints, and draws no tiles"):
        drawn(tiny.sd_inpaint(), enlarge={"factor": 2})
    with pytest.raises(ValidationError):
        Request(prompt="a cat", enlarge={"unknown": 1})
