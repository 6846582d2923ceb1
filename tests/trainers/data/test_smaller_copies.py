"""Smaller copies of training pictures: true ones on plain backgrounds, masked ones elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import concepts as scoring
from evaluation.truth import composed
from pipelines.measures.stickers import detect
from pipelines.pictures.tensors import to_tensor
from tests import tiny
from trainers.data.folders import Example
from trainers.data.smaller_copies import SMALLEST, with_smaller_copies


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def wolf():
    return Example("wolf.png", composed(scoring.teaching_scenes("wolf"))[0], captions=("a {} in blue",), repeats=2)


def test_copies_follow_their_picture_and_keep_what_is_said_of_it(wolf):
    listed = with_smaller_copies([wolf, wolf], 3, seeded())
    assert len(listed) == 8 and listed[0] is wolf and listed[4] is wolf
    assert all(one.captions == wolf.captions and one.repeats == 2 for one in listed)
    assert with_smaller_copies([wolf], 0, seeded()) == [wolf]


def test_on_a_plain_background_the_thing_is_smaller_elsewhere_and_nothing_is_masked(wolf):
    copies = with_smaller_copies([wolf], 20, seeded())[1:]
    (whole,) = detect(to_tensor(wolf.picture))[:1]
    sides, places = [], set()
    for copy in copies:
        assert copy.mask is None and copy.picture.size == wolf.picture.size
        (found,) = detect(to_tensor(copy.picture))
        sides.append((found.box[2] - found.box[0]) / (whole.box[2] - whole.box[0]))
        places.add((round(found.centre[0], 1), round(found.centre[1], 1)))
    assert min(sides) >= SMALLEST - 0.06 and max(sides) <= 1.06
    assert min(sides) < 0.55 and max(sides) > 0.8 and len(places) > 6


def test_elsewhere_what_was_made_up_is_masked():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    (copy,) = with_smaller_copies([Example("noise.png", Image.fromarray(pixels))], 1, seeded(3))[1:]
    inside = np.asarray(copy.mask) > 127
    assert 0 < inside.mean() < 1
    rows, columns = np.nonzero(inside)
    assert inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    assert np.asarray(copy.picture)[~inside].std() > 0


def test_a_mask_is_scaled_with_its_picture(wolf):
    mask = Image.new("L", wolf.picture.size, 0)
    mask.paste(255, (16, 16, 48, 48))
    listed = with_smaller_copies([Example("m.png", wolf.picture, mask_source=mask)], 5, seeded())[1:]
    assert all(0.02 < (np.asarray(one.mask) > 127).mean() < 0.26 for one in listed)


def test_a_training_learns_from_them_and_repeats_itself():
    base = tiny.sd()
    made = [scoring.teach_sticker(base, "wolf", steps=2, batch=2, smaller_copies=copies) for copies in (0, 3, 3)]
    assert not torch.equal(made[0].rows[0], made[1].rows[0])
    assert torch.equal(made[1].rows[0], made[2].rows[0])
    assert made[1].card.recipe["smaller_copies"] == 3
