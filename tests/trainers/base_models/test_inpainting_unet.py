"""The training of a 9-channel UNet, beside the laws of all methods: what goes in, and how errors count."""

from __future__ import annotations

import pytest
import torch

from pipelines.models.components import encode
from tests import tiny
from trainers.base_models.inpainting_unet import OUTSIDE, MaskedBatch, inputs_beside, masked_loss, widened
from trainers.base_models.random_masks import random_masks


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
    loss = masked_loss(unet, base)(one, seeded(3))
    # A UNet that says nothing errs by the target itself: weighed unit noise.
    generator = seeded(3)
    torch.rand((), generator=generator)
    clean, mask, _ = inputs_beside(base, one.pictures, one.masks)
    noise = torch.randn(clean.shape, generator=generator)
    weight = mask + OUTSIDE * (1 - mask)
    wanted = (noise.square().mean(1, keepdim=True) * weight).sum() / weight.sum()
    torch.testing.assert_close(loss, wanted)


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
