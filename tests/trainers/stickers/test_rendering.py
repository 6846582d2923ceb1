"""Composed pictures against compositions made another way: with Pillow, one sticker at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.stickers.art import SIDE, sprite
from trainers.stickers.world import BOX_THRESHOLD, COLOURS, UNIT, Placed, Scene, Stickers, scenes

NAMES = ("fox", "house", "crown", "banana")


@pytest.fixture(scope="module")
def stickers():
    return Stickers(names=NAMES)


def drawn_by_pillow(item, scale=1):
    """The picture and the visible opacity of each sticker, by alpha compositing on a full canvas."""
    size = UNIT * scale
    canvas = np.broadcast_to(np.array(COLOURS[item.colour], np.float64), (size, size, 3)).copy()
    seen = []
    for thing in item.stickers:
        side = thing.side * scale
        picture = sprite(thing.name, item.style).resize((side, side), Image.Resampling.BOX)
        layer = Image.new("RGBA", (size, size), (0, 0, 0, 0))
        layer.paste(picture, (thing.left * scale, thing.top * scale))
        rgba = np.asarray(layer, np.float64)
        alpha = rgba[..., 3:] / 255
        canvas = canvas * (1 - alpha) + rgba[..., :3] * alpha
        seen = [one * (1 - alpha[..., 0]) for one in seen] + [alpha[..., 0]]
    return canvas, seen


@pytest.mark.parametrize("kind", ["one", "relation", "two", "three"])
def test_pictures_and_masks_are_those_of_another_compositor(stickers, kind):
    listed = scenes(6, 41, names=NAMES, kind=kind)
    rendered = stickers.render(listed)
    for row, item in enumerate(listed):
        canvas, seen = drawn_by_pillow(item)
        ours = ((rendered.images[row].permute(1, 2, 0) + 1) * 127.5).numpy()
        assert np.abs(ours - canvas).max() < 0.01
        for slot, opacity in enumerate(seen):
            assert np.array_equal(rendered.masks[row, slot].numpy(), opacity > BOX_THRESHOLD)


@pytest.mark.parametrize("relation", ["inside", "on top of"])
def test_also_where_one_covers_another(stickers, relation):
    item = scenes(1, 42, names=NAMES, relation=relation)[0]
    rendered = stickers.render([item])
    canvas, seen = drawn_by_pillow(item)
    assert np.abs(((rendered.images[0].permute(1, 2, 0) + 1) * 127.5).numpy() - canvas).max() < 0.01
    assert np.array_equal(rendered.masks[0, 0].numpy(), seen[0] > BOX_THRESHOLD)


def test_twice_the_size_is_the_same_drawing_in_more_pixels():
    item = scenes(1, 43, names=("fox",), kind="one")[0]
    large = Stickers(128, names=("fox",)).render([item])
    canvas, _ = drawn_by_pillow(item, 2)
    assert large.images.shape == (1, 3, 128, 128)
    assert np.abs(((large.images[0].permute(1, 2, 0) + 1) * 127.5).numpy() - canvas).max() < 0.01
    small = Stickers(names=("fox",)).render([item])
    torch.testing.assert_close(large.boxes, small.boxes, atol=1 / 64, rtol=0)


def test_boxes_are_pillows_bounding_boxes_in_fractions(stickers):
    listed = scenes(20, 44, names=NAMES)
    rendered = stickers.render(listed)
    for row, item in enumerate(listed):
        for slot in range(3):
            box = Image.fromarray(rendered.masks[row, slot].numpy().astype(np.uint8) * 255).getbbox()
            assert (box is None) == (slot >= len(item.stickers))
            assert (rendered.boxes[row, slot] * UNIT).tolist() == list(box or (0, 0, 0, 0))


def test_masks_of_one_picture_never_share_a_pixel(stickers):
    masks = stickers.render(scenes(60, 45, names=NAMES)).masks
    assert masks.sum(1).max() == 1


def test_a_sticker_wholly_covered_has_no_mask_and_no_box(stickers):
    # The same sticker, in the same place: the first is not seen where the second is opaque.
    item = Scene("", (Placed("fox", 5, 5, 40), Placed("fox", 5, 5, 40)), "blue")
    rendered = stickers.render([item])
    assert not rendered.masks[0, 0].any() and not rendered.boxes[0, 0].any()
    assert rendered.masks[0, 1].any()


def test_a_batch_is_its_pictures_one_by_one(stickers):
    listed = scenes(7, 46, names=NAMES)
    together = stickers.render(listed)
    for row, item in enumerate(listed):
        alone = stickers.render([item])
        assert torch.equal(alone.images[0], together.images[row])
        assert torch.equal(alone.masks[0], together.masks[row]) and torch.equal(alone.boxes[0], together.boxes[row])


@pytest.mark.parametrize("colour", list(COLOURS))
def test_away_from_the_stickers_the_background_is_exactly_its_colour(stickers, colour):
    item = Scene("", (Placed("fox", 20, 20, 24),), colour)
    corner = stickers.render([item]).images[0, :, :19, :]
    expected = torch.tensor(COLOURS[colour])[:, None, None] / 127.5 - 1
    torch.testing.assert_close(corner, expected.expand_as(corner), atol=1e-6, rtol=0)


def test_moving_a_sticker_moves_its_pixels_and_nothing_else(stickers):
    here = Scene("", (Placed("crown", 4, 9, 30),), "teal")
    there = replace(here, stickers=(Placed("crown", 24, 19, 30),))
    images = stickers.render([here, there]).images
    assert torch.equal(images[0, :, 9:39, 4:34], images[1, :, 19:49, 24:54])
    assert torch.equal(torch.roll(images[0], (10, 20), (1, 2)), images[1])


def test_a_sticker_that_was_not_prepared_or_does_not_exist_is_a_mistake_of_the_caller(stickers):
    with pytest.raises(KeyError, match="pear"):
        stickers.render([Scene("", (Placed("pear", 5, 5, 20),), "blue")])
    with pytest.raises(KeyError, match="sphinx"):
        sprite("sphinx")


@pytest.mark.parametrize("size", [0, 32, 65, 96])
def test_sizes_that_stickers_would_not_fit_exactly_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size} is not a multiple of 64"):
        Stickers(size, names=("fox",))


@pytest.mark.parametrize("name", ["fox", "banana", "wolf", "rocket"])
@pytest.mark.parametrize("style", ["fluent", "flat"])
def test_a_sprite_fills_its_square_along_the_longer_side_and_is_centred_along_the_other(name, style):
    picture = sprite(name, style)
    assert picture.mode == "RGBA" and picture.size == (SIDE, SIDE)
    box = picture.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    assert box is not None
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    assert max(width, height) >= picture.width - 1
    assert abs(left - (picture.width - right)) <= 2 and abs(top - (picture.height - bottom)) <= 2
