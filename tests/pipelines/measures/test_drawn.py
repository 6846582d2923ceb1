"""Drawn likeness says what the eye says: a real picture 1, blur less, another drawing little."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from pipelines.measures.drawn import Sprite, cut_out, likeness, likeness_at, likenesses, luminance, ssim
from trainers.stickers.art import sprite
from trainers.stickers.world import COLOURS, Placed, Scene, Stickers

NAMES = ("fox", "house", "taxi", "lemon")


def picture(*things, colour="blue"):
    listed = Scene("", tuple(Placed(*thing) for thing in things), colour)
    return Stickers(names=NAMES).render([listed]).images[0]


def drawing(name):
    return Sprite(sprite(name))


def blurred(image, times):
    kernel = torch.ones(3, 1, 3, 3) / 9
    for _ in range(times):
        padded = torch.nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")
        image = torch.nn.functional.conv2d(padded, kernel, groups=3)[0]
    return image


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("left", "top", "side"), [(10, 12, 40), (1, 1, 50), (30, 20, 24)])
def test_a_real_picture_scores_one_wherever_the_thing_stands(name, left, top, side):
    measured = likeness(picture((name, left, top, side)), drawing(name))
    assert measured.likeness > 0.999 and measured.explained > 0.999
    assert measured.box == pytest.approx((left / 64, top / 64, (left + side) / 64, (top + side) / 64))


def test_a_thing_in_the_colour_of_its_background_is_found():
    """A grey wolf on grey: what differs plainly are its cheeks, each a region of its own."""
    placed = [Placed("wolf", 10, 12, 40), Placed("wolf", 30, 20, 24)]
    for ground in COLOURS:
        for one in placed:
            image = Stickers(names=("wolf",)).render([Scene("", (one,), ground)]).images[0]
            assert likeness(image, Sprite(sprite("wolf"))).likeness > 0.99, ground
    two = Scene("", (Placed("wolf", 2, 20, 28), Placed("house", 34, 20, 28)), "gray")
    image = Stickers(names=("wolf", "house")).render([two]).images[0]
    assert min(one.likeness for one in likenesses(image, [Sprite(sprite(n)) for n in ("wolf", "house")])) > 0.9


def test_a_thing_in_the_colour_of_its_background_is_cut_out_whole():
    listed = [Scene("", (Placed("wolf", 10, 12, 40),), ground) for ground in COLOURS]
    images = Stickers(names=("wolf",)).render(listed).images
    blue = images[list(COLOURS).index("blue")]
    for ground, image in zip(COLOURS, images, strict=True):
        cut = cut_out(image)
        assert max(cut.picture.size) >= 39, ground
        assert likeness(blue, cut).likeness > 0.7, ground  # its rim has some of the colour it was cut from


def test_a_blurred_picture_falls_with_the_blur():
    image = picture(("fox", 10, 12, 40))
    scores = [likeness(blurred(image, times), drawing("fox")).likeness for times in (0, 1, 2, 4, 8)]
    assert all(later < earlier - 0.03 for earlier, later in itertools.pairwise(scores))
    assert scores[-1] < 0.6


def test_the_colours_alone_in_the_right_shape_are_no_likeness():
    """The smear that a judge of names accepts: each pixel of the shape has the thing's mean colour."""
    image = picture(("fox", 10, 12, 40))
    shape = (image - image[:, :1, :1]).abs().amax(0) > 0.05
    smear = torch.where(shape, image[:, shape].mean(1)[:, None, None], image)
    measured = likeness(smear, drawing("fox"))
    assert measured.likeness < 0.5 < measured.explained


def test_another_sprite_is_far_below():
    for name, other in itertools.permutations(NAMES[:3], 2):
        assert likeness(picture((name, 10, 12, 40)), drawing(other)).likeness < 0.4


def test_a_shift_of_two_pixels_changes_nothing():
    here, there = (likeness(blurred(picture(("fox", x, x, 40)), 2), drawing("fox")).likeness for x in (10, 12))
    assert here == pytest.approx(there, abs=1e-4)


def test_wrong_colours_show_in_what_is_explained():
    image = picture(("lemon", 10, 12, 40), colour="black")
    measured = likeness(image[[2, 1, 0]], drawing("lemon"))
    assert measured.explained < 0.6 < likeness(image, drawing("lemon")).explained


def test_nothing_is_like_nothing():
    measured = likeness(picture(), drawing("fox"))
    assert (measured.likeness, measured.explained, measured.box) == (0.0, 0.0, None)


def test_each_of_two_things_is_measured_at_its_own_place():
    image = picture(("fox", 2, 20, 26), ("house", 34, 20, 26))
    fox, house = likenesses(image, [drawing("fox"), drawing("house")])
    assert fox.likeness > 0.99 and house.likeness > 0.99
    assert fox.box is not None and house.box is not None and fox.box[2] < house.box[0]
    fox, taxi = likenesses(image, [drawing("fox"), drawing("taxi")])
    assert fox.likeness > 0.9 and taxi.likeness < 0.4, "a thing that is not there does not borrow the other's place"


def test_two_things_that_touch_are_both_found():
    image = picture(("fox", 4, 20, 28), ("house", 30, 20, 28))
    assert min(one.likeness for one in likenesses(image, [drawing("fox"), drawing("house")])) > 0.9


def test_a_drawing_is_cut_out_of_a_picture():
    image = picture(("taxi", 6, 8, 50))
    cut = cut_out(image)
    assert cut.picture.width == pytest.approx(50, abs=2) and cut.picture.getpixel((0, 0))[3] == 0
    assert likeness(picture(("taxi", 10, 12, 40), colour="pink"), cut).likeness > 0.8
    assert likeness(picture(("fox", 10, 12, 40), colour="pink"), cut).likeness < 0.4
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:58, 6:56] = True
    assert cut_out(image, mask).picture.size == (50, 50)
    with pytest.raises(ValueError, match="no thing"):
        cut_out(picture())


def test_at_a_known_place_nothing_is_searched():
    image = picture(("fox", 10, 12, 40))
    here, other = likeness_at(image, [drawing("fox"), drawing("taxi")], 40, 10, 12)
    assert here > 0.999 and other < 0.4
    assert likeness_at(image, [drawing("fox")], 40, 14, 12)[0] < 0.6


def test_coarse_search_finds_the_same_place():
    image = picture(("fox", 10, 12, 40))
    assert likeness(image, drawing("fox"), refine=False) == likeness(image, drawing("fox"))


def test_ssim_is_that_of_scikit_image():
    one, other = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = ssim(luminance(one)[None], luminance(other)[None])[0]
    theirs = structural_similarity(
        luminance(one).numpy(),
        luminance(other).numpy(),
        data_range=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_a_sprite_keeps_its_transparency_at_every_size():
    square = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    colours, opacity = Sprite(square).at(4)
    assert colours.shape == (3, 4, 4) and opacity.shape == (4, 4) and float(opacity.max()) == 0
