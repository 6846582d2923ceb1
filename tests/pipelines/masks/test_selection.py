"""A thing that is pointed at in a picture becomes its mask."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines.errors import ModelError, RequestError
from pipelines.masks.selection import foreground, pieces, selected
from pipelines.request.inpaint import Selection, Stroke
from tests import tiny


def scene(ground=(120, 170, 240)):
    """A red disc with a yellow eye, a green square beside it, all on one colour."""
    picture = Image.new("RGB", (80, 60), ground)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 10, 38, 40), fill=(200, 30, 30))
    draw.ellipse((16, 18, 24, 26), fill=(250, 240, 90))
    draw.rectangle((50, 20, 69, 39), fill=(30, 140, 60))
    return picture


def drawn(shape, box):
    mask = Image.new("1", (80, 60))
    getattr(ImageDraw.Draw(mask), shape)(box, fill=1)
    return np.asarray(mask)


DISC, EYE = drawn("ellipse", (8, 10, 38, 40)), drawn("ellipse", (16, 18, 24, 26))
SQUARE = drawn("rectangle", (50, 20, 69, 39))


def masks(picture, **asked):
    return [np.asarray(guess.mask) > 0 for guess in selected(picture, Selection(**asked))]


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def test_a_click_gives_the_whole_thing_first_and_offers_its_part():
    whole, *others = masks(scene(), clicks=("0.25,0.37",))
    assert iou(whole, DISC) > 0.97
    assert max(iou(other, EYE) for other in others) > 0.8


def test_a_click_beside_all_things_gives_the_background():
    first = masks(scene(), clicks=((0.05, 0.05),))[0]
    assert iou(first, ~(DISC | SQUARE)) > 0.97


def test_several_clicks_are_things_together_and_a_click_without_takes_one_away():
    assert iou(masks(scene(), clicks=((0.25, 0.5), (0.75, 0.5)))[0], DISC | SQUARE) > 0.97
    taken = masks(scene(), clicks=((0.25, 0.5), (0.75, 0.5)), without=((0.75, 0.5),))[0]
    assert iou(taken, DISC) > 0.97


def test_a_box_gives_what_is_in_it_and_offers_itself():
    inside, itself = masks(scene(), box="0.6,0.2,0.9,0.8")
    assert iou(inside, SQUARE) > 0.97 and iou(itself, drawn("rectangle", (48, 12, 71, 47))) > 0.99


def test_things_that_touch_are_parted_at_the_neck():
    picture = Image.new("RGB", (80, 40), "white")
    ImageDraw.Draw(picture).ellipse((5, 5, 35, 35), fill="navy")
    ImageDraw.Draw(picture).ellipse((35, 5, 65, 35), fill="navy")
    _, piece, *_ = masks(picture, clicks=((0.25, 0.5),))
    assert not piece[:, 37:].any() and 0.95 < piece.sum() / 749 < 1.05


def test_a_stroke_is_painted_as_wide_as_it_is_said():
    (mask,) = masks(scene(), strokes=(Stroke(points=((0.25, 0.5), (0.75, 0.5)), width=0.2),))
    assert mask[30, 20:60].all() and 11 <= mask[:, 40].sum() <= 13 and 12 <= np.flatnonzero(mask.any(0))[0] <= 15
    (dot,) = masks(scene(), strokes=(Stroke(points=((0.5, 0.5),), width=0.2),))
    assert 90 < dot.sum() < 140


@pytest.mark.parametrize("ground", [(255, 255, 255), (20, 20, 25), (245, 160, 80)])
def test_every_ground_is_told_from_the_things(ground):
    assert iou(foreground(scene(ground)), DISC | SQUARE) > 0.97


def test_a_gradient_behind_the_things_is_still_background():
    shade = np.broadcast_to(np.linspace(200, 240, 80)[None, :, None], (60, 80, 3)).astype(np.uint8)
    picture = np.where((DISC | SQUARE)[..., None], np.asarray(scene()), shade)
    assert iou(foreground(Image.fromarray(picture.astype(np.uint8))), DISC | SQUARE) > 0.95


def test_real_holes_stay_and_specks_are_closed():
    picture = scene()
    ImageDraw.Draw(picture).rectangle((55, 25, 64, 34), fill=(120, 170, 240))
    picture.putpixel((60, 22), (120, 170, 240))
    things = foreground(picture)
    assert not things[30, 60] and things[22, 60]


def test_a_picture_without_any_background_gives_the_colour_that_was_clicked():
    picture = Image.new("RGB", (60, 60), "red")
    picture.paste("yellow", (0, 0, 30, 60))
    first = masks(picture, clicks=((0.1, 0.5),))[0]
    assert first[:, :29].all() and not first[:, 32:].any()


def test_quality_is_high_along_edges_and_low_across_a_plain():
    good = selected(scene(), Selection(clicks=((0.75, 0.5),)))[0].quality
    bad = selected(scene(), Selection(strokes=(Stroke(points=((0.5, 0.9),), width=0.1),)))[0].quality
    assert good > 0.95 and bad < 0.05


def test_pointing_at_nothing_is_refused():
    with pytest.raises(RequestError, match="Nothing was pointed at"):
        selected(scene(), Selection())
    with pytest.raises(RequestError, match="Nothing is left"):
        selected(Image.new("RGB", (20, 20), "red"), Selection(clicks=((0.2, 0.4),), without=((0.2, 0.4),)))


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_the_corners_can_be_clicked(place):
    assert masks(scene(), clicks=(place,))[0].any()


# -- with a Segment Anything model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return str(tiny.sam(tmp_path_factory.mktemp("sam")))


def test_one_click_gives_three_masks_the_one_of_best_predicted_iou_first(sam):
    guesses = selected(scene(), Selection(clicks=((0.25, 0.5),), sam=sam))
    qualities = [guess.quality for guess in guesses]
    assert len(guesses) == 3 and qualities == sorted(qualities, reverse=True)
    assert all(guess.mask.size == (80, 60) and guess.mask.mode == "L" for guess in guesses)


@pytest.mark.parametrize(
    "asked",
    [
        {"clicks": ((0.25, 0.5), (0.3, 0.5))},
        {"clicks": ((0.25, 0.5),), "without": ((0.75, 0.5),)},
        {"box": (0.1, 0.1, 0.5, 0.7)},
        {"box": (0.1, 0.1, 0.5, 0.7), "clicks": ((0.25, 0.5),)},
    ],
)
def test_more_than_one_click_gives_one_mask(sam, asked):
    assert len(selected(scene(), Selection(**asked, sam=sam))) == 1


def test_the_model_sees_where_was_clicked(sam):
    """Masks equal those of transformers' own calls with the click in pixels."""
    import torch
    from transformers import SamModel, SamProcessor

    model, processor = SamModel.from_pretrained(sam), SamProcessor.from_pretrained(sam)
    inputs = processor(scene(), input_points=[[[[20.0, 30.0]]]], input_labels=[[[1]]], return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=inputs["pixel_values"], input_points=inputs["input_points"].float(),
                       input_labels=inputs["input_labels"], multimask_output=True)  # fmt: skip
    theirs = processor.post_process_masks(output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    best = int(output.iou_scores[0, 0].argmax())
    ours = masks(scene(), clicks=((0.25, 0.5),), sam=sam)[0]
    assert np.array_equal(ours, theirs[0][0, best].numpy())


def test_a_folder_without_such_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no Segment Anything model.*facebook/sam-vit-base"):
        selected(scene(), Selection(clicks=((0.5, 0.5),), sam=str(tmp_path)))


def test_all_things_are_parted_and_the_largest_comes_first():
    drawn = Image.new("RGB", (64, 64), (115, 165, 240))
    ImageDraw.Draw(drawn).ellipse((2, 20, 26, 44), fill="red")
    ImageDraw.Draw(drawn).ellipse((25, 22, 45, 42), fill="red")
    ImageDraw.Draw(drawn).rectangle((50, 4, 58, 12), fill="green")
    masks = [np.asarray(guess.mask) > 0 for guess in pieces(drawn)]
    assert len(masks) == 3 and not np.logical_and(masks[0], masks[1]).any()
    assert [bool(mask[at]) for mask, at in zip(masks, [(32, 14), (32, 36), (8, 54)], strict=True)] == [True] * 3
    with pytest.raises(RequestError, match="Nothing in the picture differs"):
        pieces(Image.new("RGB", (32, 32), "blue"))
