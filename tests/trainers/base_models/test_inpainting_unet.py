"""The training of a 9-channel UNet: what goes in, what is learned, and that nothing of a run is lost."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from pipelines.errors import Cancelled, ConfigError
from pipelines.models.components import encode
from tests import tiny
from trainers.base_models.inpainting_unet import (
    OUTSIDE,
    MaskedBatch,
    Plan,
    inputs_beside,
    learning_rate,
    losses_of,
    painted,
    train_unet,
    widened,
)
from trainers.base_models.random_masks import random_masks
from trainers.loop.clock import Clock


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def batch(base, count=2, side=16, seed=0):
    pictures = torch.rand(count, 3, side, side, generator=seeded(seed)) * 2 - 1
    masks = torch.zeros(count, 1, side, side)
    masks[..., : side // 2, :] = 1
    words = torch.randn(count, 5, 32, generator=seeded(seed + 1))
    return MaskedBatch(pictures, masks, {"encoder_hidden_states": words})


def test_what_lies_beside_the_noise_is_the_mask_and_the_picture_without_its_hole(base):
    one = batch(base)
    clean, mask, around = inputs_beside(base, one.pictures, one.masks)
    torch.testing.assert_close(clean, encode(base, one.pictures).mean)
    torch.testing.assert_close(around, encode(base, one.pictures * (1 - one.masks)).mean)
    assert mask.shape == (2, 1, *clean.shape[-2:])
    assert bool((mask[:, :, : mask.shape[2] // 2] == 1).all()) and bool((mask[:, :, mask.shape[2] // 2 :] == 0).all())


def test_a_mask_of_one_serves_all(base):
    one = batch(base)
    own = inputs_beside(base, one.pictures, one.masks)
    shared = inputs_beside(base, one.pictures, one.masks[:1])
    assert all(torch.equal(a, b) for a, b in zip(own, shared, strict=True))


def test_the_loss_is_weighed_by_the_hole(base):
    unet = widened(base.unet)
    with torch.no_grad():
        for parameter in unet.conv_out.parameters():
            parameter.zero_()
    one = batch(base)
    (loss,) = losses_of(unet, base, {"x": lambda index, own: one})(0, seeded(3)).values()
    # A UNet that says nothing errs by the target itself: weighed unit noise.
    generator = torch.Generator().manual_seed(int(torch.randint(1 << 62, (), generator=seeded(3))))
    torch.rand((), generator=generator)
    clean, mask, _ = inputs_beside(base, one.pictures, one.masks)
    noise = torch.randn(clean.shape, generator=generator)
    weight = mask + OUTSIDE * (1 - mask)
    wanted = (noise.square().mean(1, keepdim=True) * weight).sum() / weight.sum()
    torch.testing.assert_close(loss, wanted)


def train(base, state, steps=6, minutes=None, about=None, **more):
    unet = widened(base.unet)
    sources = {"a": lambda index, own: batch(base, seed=index), "b": lambda index, own: batch(base, 1, seed=index + 9)}
    plan = Plan(steps, minutes, about=about or {}, report=2, keep_every=2)
    average = train_unet(base, unet, sources, state, plan, **more)
    return unet.state_dict(), average.values


def equal(one, other):
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def test_what_was_stopped_ends_bit_for_bit_like_what_was_not(base, tmp_path):
    before = tiny.snapshot(base)
    whole = train(base, tmp_path / "whole")
    asked = itertools.count()
    with pytest.raises(Cancelled, match="after step 3 of 6"):
        train(base, tmp_path / "part", should_stop=lambda: next(asked) >= 3)
    assert equal(train(base, tmp_path / "part"), whole)
    assert tiny.same(before, base)


def test_other_settings_do_not_go_on_from_a_state(base, tmp_path):
    train(base, tmp_path, steps=2, about={"batch": 2})
    with pytest.raises(ConfigError, match="begun with batch 2, now 4"):
        train(base, tmp_path, steps=4, about={"batch": 4})


def test_both_optimizers_learn(base, tmp_path):
    one = batch(base)
    for muon in (True, False):
        events = []
        unet = widened(base.unet)
        plan = Plan(12, report=4, rate=3e-3, muon=muon)
        sources = {"fit": lambda index, own: one}
        train_unet(base, unet, sources, tmp_path / f"{muon}", plan, on_event=events.append)
        seen = [event.terms["fit"] for event in events if hasattr(event, "terms")]
        assert seen[-1] < 0.95 * seen[0]


def test_the_clock_ends_a_training_in_order_and_counts_what_was_spent_before(base, tmp_path):
    train(base, tmp_path, steps=1000, minutes=0.02)
    clock = Clock(1)
    rate = partial(learning_rate, clock)
    clock.resume(30)
    assert clock.seconds == pytest.approx(30, abs=1) and not clock.over
    assert rate(500, 10**6) == pytest.approx(1, abs=1e-3)
    clock.resume(54)
    assert rate(500, 10**6) == pytest.approx(0.25, abs=0.02)  # 6 of the last 24 seconds
    clock.resume(61)
    assert clock.over and rate(500, 10**6) == 0
    assert learning_rate(Clock(None), 900, 1000) == pytest.approx(0.25, abs=1e-3)
    assert learning_rate(Clock(None), 0, 1000) == pytest.approx(0.01)


def test_what_is_outside_the_hole_stays_as_it_is(base):
    one = batch(base)
    result = painted(widened(base.unet).eval(), base, one, seeded(), steps=2)
    assert torch.equal(result[:, :, 8:], one.pictures[:, :, 8:])
    assert not torch.equal(result[:, :, :8], one.pictures[:, :, :8])


def test_holes_are_of_all_kinds_and_never_empty():
    things = torch.zeros(300, 3, 32, 32, dtype=torch.bool)
    things[:, 1, 10:20, 12:22] = True
    masks = random_masks(300, (32, 32), seeded(), things)
    assert masks.shape == (300, 1, 32, 32) and set(masks.unique().tolist()) == {0.0, 1.0}
    share = masks.mean((1, 2, 3))
    assert share.min() > 0 and 0.03 < (share == 1).float().mean() < 0.16
    grown = torch.zeros(32, 32)
    grown[9:21, 11:23] = 1
    same = (masks[:, 0] == grown).all(2).all(1).float().mean()
    rest = (masks[:, 0] == 1 - grown).all(2).all(1).float().mean()
    assert 0.12 < same < 0.4 and 0.03 < rest < 0.2
    assert torch.equal(random_masks(9, (16, 24), seeded(5)), random_masks(9, (16, 24), seeded(5)))
    hidden = random_masks(200, (32, 32), seeded(), torch.zeros(200, 3, 32, 32, dtype=torch.bool))
    assert hidden.mean((1, 2, 3)).min() > 0
