"""The detector on composed scenes, whose truth is exact, and the judge's figures against their definitions."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from pipelines.measures.judge import Judge
from pipelines.measures.stickers import (
    MARGIN,
    FoundSticker,
    background,
    crop,
    detect,
    holds,
    name,
    picture_similarity,
    text_alignment,
)
from trainers.pretrain.parts import text_config
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import COLOURS, Placed, Scene, Stickers, scenes

NAMES = ("fox", "house", "pear", "bus", "owl")


@pytest.fixture(scope="module")
def stickers():
    return Stickers(names=NAMES)


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return Judge(tokenizer, text_config(tokenizer), widths=(8, 8, 8, 8)).eval().requires_grad_(False)


def placed(*things, colour="blue"):
    return Scene("", tuple(Placed(*thing) for thing in things), colour)


def boxes(found):
    return sorted(one.box for one in found)


def near(one, other, tolerance):
    return len(one) == len(other) and all(
        abs(a - b) <= tolerance for box, twin in zip(one, other, strict=True) for a, b in zip(box, twin, strict=True)
    )


# -- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", list(COLOURS))
def test_two_things_apart_are_found_to_the_pixel_on_every_colour(stickers, colour):
    rendered = stickers.render([placed(("house", 4, 6, 24), ("bus", 36, 30, 26), colour=colour)])
    found = detect(rendered.images[0])
    truth = sorted(tuple(box.tolist()) for box in rendered.boxes[0, :2])
    assert near(boxes(found), truth, 2.5 / 64)


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_the_relation_a_scene_was_composed_with_is_read_off_what_is_found(stickers, relation):
    listed = scenes(20, 7, names=NAMES, relation=relation)
    rendered = stickers.render(listed)
    right = 0
    for row in range(len(listed)):
        found = detect(rendered.images[row])
        truth = rendered.boxes[row, :2]
        # Which is which is told by the truth; the judge is another matter.
        order = sorted(found, key=lambda one, truth=truth: float((truth[0] - torch.tensor(one.box)).abs().max()))
        right += len(found) == 2 and holds(relation, *order) and not holds(relation, *reversed(order))
    assert right >= 18


def test_a_mirrored_picture_has_mirrored_things(stickers):
    for image in stickers.render(scenes(6, 3, names=NAMES, kind="relation")).images:
        straight = boxes(detect(image))
        mirrored = sorted((1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in boxes(detect(image.flip(2))))
        turned = sorted((1 - x1, 1 - y1, 1 - x0, 1 - y0) for x0, y0, x1, y1 in boxes(detect(image.flip(1, 2))))
        assert near(straight, mirrored, 1e-6) and near(straight, turned, 1e-6)


def test_places_are_fractions_whatever_the_size_of_the_picture(stickers):
    listed = scenes(6, 5, names=NAMES, kind="three")
    small, large = stickers.render(listed), Stickers(128, names=NAMES).render(listed)
    pairs = zip(small.images, large.images, strict=True)
    # Once in 240 scenes a speck of a thing counts at one size and not at the other.
    assert sum(near(boxes(detect(one)), boxes(detect(other)), 2.5 / 64) for one, other in pairs) >= 5


def test_a_thing_in_a_wide_picture_is_placed_by_its_own_width_and_height():
    image = torch.zeros(3, 40, 160)
    image[:, 10:30, 80:120] = 1.0
    (found,) = detect(image)
    assert found.box == pytest.approx((0.5, 0.25, 0.75, 0.75)) and found.centre == pytest.approx((0.625, 0.5))
    # The crop is square in pixels: the thing keeps its proportions of two to one.
    white = found.crop[0] > 0.5
    extent = [int(white.any(axis).sum()) for axis in (0, 1)]
    assert extent == pytest.approx([64 / MARGIN, 32 / MARGIN], abs=2)


@pytest.mark.parametrize("count", range(6))
def test_blocks_apart_are_counted(count):
    image = torch.zeros(3, 64, 64)
    for i in range(count):
        x, y = 4 + 20 * (i % 3), 4 + 30 * (i // 3)
        image[i % 3, y : y + 12, x : x + 12] = 1.0
    assert len(detect(image)) == count


@pytest.mark.parametrize(("side", "seen"), [(6, 0), (7, 0), (8, 1), (12, 1)])
def test_the_smallest_thing_that_counts(side, seen):
    # 1.2 % of the picture: 49.2 of 4096 pixels.
    image = torch.zeros(3, 64, 64)
    image[:, 20 : 20 + side, 20 : 20 + side] = 1.0
    assert len(detect(image)) == seen


@pytest.mark.parametrize(("contrast", "seen"), [(0.2, 0), (0.3, 1), (-0.3, 1)])
def test_one_channel_that_differs_enough_makes_a_thing(contrast, seen):
    image = torch.zeros(3, 64, 64)
    image[2, 20:40, 20:40] = contrast
    assert len(detect(image)) == seen


def test_a_thing_inside_another_is_part_of_it_but_one_beside_is_not():
    image = torch.zeros(3, 64, 64)
    image[:, 10:50, 10:50] = 1.0
    image[:, 14:46, 14:46] = 0.0  # a frame
    image[:, 22:38, 22:38] = -1.0  # with something in it
    (frame,) = detect(image)
    assert frame.box == pytest.approx((10 / 64, 10 / 64, 50 / 64, 50 / 64))
    image[:, 10:20, 53:63] = 1.0
    assert len(detect(image)) == 2


def test_a_part_that_sticks_out_widens_the_box():
    image = torch.zeros(3, 64, 64)
    image[:, 10:40, 10:40] = 1.0
    image[:, 20:30, 30:50] = 0.0
    image[:, 21:29, 32:44] = 1.0  # two thirds of it lie inside the box of the large one
    (whole,) = detect(image)
    assert whole.box == pytest.approx((10 / 64, 10 / 64, 44 / 64, 40 / 64))


def test_the_background_is_robust_to_things_that_touch_less_than_half_the_rim():
    image = torch.full((3, 64, 64), 0.25)
    image[:, :, :20] = -1.0  # the left rim and a third of the upper and the lower
    torch.testing.assert_close(background(image), torch.full((3,), 0.25))
    image[:, :44] = -1.0
    torch.testing.assert_close(background(image), torch.full((3,), -1.0))


@pytest.mark.parametrize("place", [(0, 0), (44, 0), (0, 44), (44, 44)])
def test_a_crop_at_the_rim_goes_on_with_the_rim(place):
    x, y = place
    image = torch.full((3, 64, 64), -0.5)
    image[:, y : y + 20, x : x + 20] = 0.5
    cut = crop(image, (x / 64, y / 64, (x + 20) / 64, (y + 20) / 64))
    assert cut[:, 32, 32].min() == 0.5
    # Towards the middle of the picture there is background, beyond the rim the thing itself goes on.
    inner, outer = (0, 63) if x else (63, 0), (63, 0) if x else (0, 63)
    assert cut[0, 32, inner[0]] == pytest.approx(-0.5) and cut[0, 32, outer[0]] == pytest.approx(0.5)


@pytest.mark.parametrize("shift", range(0, 12, 3))
def test_a_crop_does_not_depend_on_where_the_thing_is(stickers, shift):
    one, other = stickers.render([placed(("owl", 10, 20, 24)), placed(("owl", 10 + shift, 20 + shift // 2, 24))]).images
    (first,), (second,) = detect(one), detect(other)
    torch.testing.assert_close(first.crop, second.crop, atol=1e-4, rtol=0)


def test_relations_are_antisymmetric_and_at_most_one_holds():
    rng = random.Random(0)
    empty = torch.zeros(3, 64, 64)
    opposite = {"left of": "right of", "above": "below"}
    for _ in range(200):
        a, b = (
            FoundSticker((x, y, x + 0.1, y + 0.1), empty) for x, y in ((rng.random(), rng.random()) for _ in range(2))
        )
        assert sum(holds(relation, a, b) for pair in opposite.items() for relation in pair) == 1
        for relation, other in opposite.items():
            assert holds(relation, a, b) == holds(other, b, a)


def test_on_the_diagonal_no_direction_is_the_larger():
    empty = torch.zeros(3, 64, 64)
    a, b = FoundSticker((0, 0, 0.25, 0.25), empty), FoundSticker((0.5, 0.5, 0.75, 0.75), empty)
    assert not any(holds(relation, a, b) for relation in ("left of", "right of", "above", "below"))


# -- the judge's figures ------------------------------------------------------------------------------------------


def test_names_are_those_whose_words_lie_nearest_whatever_their_order(judge, stickers):
    crops = [found.crop for image in stickers.render(scenes(8, 2, names=NAMES)).images for found in detect(image)]
    said = name(judge, crops, NAMES)
    with torch.no_grad():
        texts = {word: judge.embed_texts([f"{'an' if word == 'owl' else 'a'} {word}"])[0] for word in NAMES}
        seen = [judge.embed_pictures(one[None])[0] for one in crops]
    assert said == [max(NAMES, key=lambda word, one=one: float(texts[word] @ one)) for one in seen]
    assert name(judge, crops, tuple(reversed(NAMES))) == said
    assert name(judge, [], NAMES) == []


def test_likeness_is_the_mean_over_all_pairs(judge):
    generator = torch.Generator().manual_seed(0)
    made, real = (torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1 for count in (2, 3))
    with torch.no_grad():
        one, other = judge.embed_pictures(made), judge.embed_pictures(real)
    pairs = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in itertools.product(one, other)]
    assert picture_similarity(judge, made, real) == pytest.approx(sum(pairs) / 6, abs=1e-5)
    assert picture_similarity(judge, real, made) == pytest.approx(sum(pairs) / 6, abs=1e-5)
    assert picture_similarity(judge, made[:1], made[:1]) == pytest.approx(1, abs=1e-5)


def test_alignment_is_of_each_picture_with_its_own_prompt(judge):
    made = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    prompts = ["a fox", "a house on a blue background"]
    own = [text_alignment(judge, made[i : i + 1], prompts[i : i + 1]) for i in range(2)]
    assert text_alignment(judge, made, prompts) == pytest.approx(sum(own) / 2, abs=1e-5)
    crossed = [text_alignment(judge, made[i : i + 1], prompts[1 - i :][:1]) for i in range(2)]
    assert text_alignment(judge, made.flip(0), prompts) == pytest.approx(sum(crossed) / 2, abs=1e-5)
