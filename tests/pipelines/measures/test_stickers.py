from __future__ import annotations

import random

import pytest
import torch

from pipelines.measures.stickers import FoundSticker, background, crop, detect, holds, nearest_colour
from trainers.stickers.world import COLOURS, RELATIONS, Stickers, scene, scenes

NAMES = ("fox", "house", "pear", "kiwi", "bus")


@pytest.fixture(scope="module")
def stickers():
    return Stickers(names=NAMES)


def flat(colour=(0.0, 0.0, 0.0)):
    return torch.tensor(colour)[:, None, None].expand(3, 64, 64).clone()


@pytest.mark.parametrize("colour", list(COLOURS))
def test_the_background_is_named_right_also_when_a_thing_touches_the_rim(stickers, colour):
    item = scene(random.Random(1), names=("fox",), kind="one", colour=colour)
    image = stickers.render([item]).images[0]
    assert nearest_colour(image, COLOURS) == colour
    image[:, :20, 0] = 1.0
    assert nearest_colour(image, COLOURS) == colour


def test_background_is_the_median_of_the_rim():
    image = flat((0.1, 0.2, 0.3))
    image[:, 10:50, 10:50] = 1.0
    torch.testing.assert_close(background(image), torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("kind", ["one", "relation", "two", "three"])
def test_things_are_found_where_they_are(stickers, kind):
    listed = scenes(25, 4, names=NAMES, kind=kind)
    rendered = stickers.render(listed)
    right = 0
    for row, item in enumerate(listed):
        found = detect(rendered.images[row])
        if len(found) != len(item.stickers):
            continue
        truth = [tuple(box.tolist()) for box in rendered.boxes[row, : len(item.stickers)]]
        right += all(
            min(max(abs(a - b) for a, b in zip(one.box, box, strict=True)) for box in truth) < 0.05 for one in found
        )
    assert right >= 24


def test_nothing_is_found_in_an_empty_picture_and_specks_do_not_count():
    image = flat()
    assert detect(image) == []
    image[:, 30:33, 30:33] = 1.0
    assert detect(image) == []


def test_a_thing_with_a_stripe_of_the_background_is_one_thing():
    image = flat()
    image[:, 20:40, 20:40] = 1.0
    image[:, 20:40, 28:30] = 0.0  # cut in two halves...
    image[:, 20:23, 20:40] = 1.0  # ...that hang together at the top
    assert len(detect(image)) == 1
    image[:, 30:36, 24:28] = 0.0
    image[:, 31:35, 25:27] = 1.0  # an island within
    assert len(detect(image)) == 1


def test_things_come_largest_first():
    image = flat()
    image[:, 5:15, 5:15] = 1.0
    image[:, 30:55, 30:55] = -1.0
    found = detect(image)
    assert [round(one.box[0] * 64) for one in found] == [30, 5]
    assert found[0].centre == pytest.approx((42.5 / 64, 42.5 / 64))


def test_a_crop_holds_its_thing_in_the_middle():
    image = flat()
    image[:, 10:20, 40:50] = 1.0
    cut = crop(image, (40 / 64, 10 / 64, 50 / 64, 20 / 64))
    assert cut.shape == (3, 64, 64)
    assert cut[:, 32, 32].min() == 1.0 and cut[:, 0, 0].max() == 0.0
    assert float((cut > 0.5).float().mean()) == pytest.approx(1 / 1.2**2, abs=0.05)


def at(x, y):
    return FoundSticker((x - 0.1, y - 0.1, x + 0.1, y + 0.1), torch.zeros(3, 64, 64))


@pytest.mark.parametrize(
    ("relation", "true", "false"),
    [
        ("left of", (0.2, 0.5, 0.8, 0.5), (0.8, 0.5, 0.2, 0.5)),
        ("right of", (0.8, 0.5, 0.2, 0.5), (0.2, 0.5, 0.8, 0.5)),
        ("above", (0.5, 0.2, 0.5, 0.8), (0.5, 0.8, 0.5, 0.2)),
        ("below", (0.5, 0.8, 0.5, 0.2), (0.5, 0.2, 0.5, 0.8)),
    ],
)
def test_relations_are_read_off_the_middles(relation, true, false):
    assert holds(relation, at(*true[:2]), at(*true[2:]))
    assert not holds(relation, at(*false[:2]), at(*false[2:]))
    assert not holds(relation, at(0.3, 0.3), at(0.3, 0.3))


def test_exactly_one_relation_holds_between_things_apart():
    a, b = at(0.2, 0.3), at(0.7, 0.4)
    assert [relation for relation in RELATIONS if holds(relation, a, b)] == ["left of"]


def test_an_unknown_relation_is_a_mistake_of_the_caller():
    with pytest.raises(KeyError):
        holds("beside", at(0, 0), at(1, 1))
