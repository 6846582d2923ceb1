"""Relations to teach, and the finder that measures them: exact pictures are recognised, others are not."""

from __future__ import annotations

import random

import pytest
import torch

from evaluation.sticker_finder import Finder
from pipelines.pictures.tensors import to_pictures, to_tensor
from trainers.stickers.relations import (
    RELATED,
    RELATIONS_TO_TEACH,
    PlacedThing,
    exemplars,
    extent,
    shared,
    unseen_pairs,
)
from trainers.stickers.world import RELATIONS, UNIT, Placed, Scene, Stickers, scenes

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY = list(RELATIONS_TO_TEACH)


@pytest.fixture(scope="module")
def finder():
    return Finder()


def seen(item):
    """The things of a scene as a perfect finder would report them."""
    found = []
    for layer, thing in enumerate(item.stickers):
        wide, high = (share * thing.side / 2 for share in extent(thing.name))
        x, y = thing.left + thing.side / 2, thing.top + thing.side / 2
        box = (x - wide, y - high, x + wide, y + high)
        found.append(PlacedThing(thing.name, tuple(edge / UNIT for edge in box), layer))  # pyright: ignore
    return found


def hold(relation, first, second, things):
    check = RELATIONS_TO_TEACH[relation].holds
    return any(check(a, b, things) for a in things if a.name == first for b in things if b.name == second)


def pictured(listed):
    return [to_tensor(picture) for picture in to_pictures(Stickers(64).render(listed).images)]


@pytest.mark.parametrize("relation", EVERY)
def test_every_exemplar_shows_its_relation_and_it_does_not_hold_the_other_way_round(relation):
    listed = exemplars(relation)
    assert len(listed) == 10
    for one in listed:
        assert hold(relation, one.first, one.second, seen(one.scene)), one
        assert not hold(relation, one.second, one.first, seen(one.scene)), one


@pytest.mark.parametrize("relation", EVERY)
def test_many_layouts_hold_for_any_pair(relation):
    rng = random.Random(5)
    seconds = [name for name in RELATED if min(extent(name)) >= 0.8]  # a thing that holds another fills its square
    right = 0
    for _ in range(200):
        second = rng.choice(seconds)
        first = rng.choice([name for name in RELATED if name != second])
        layout = RELATIONS_TO_TEACH[relation].layout(rng, first, second)
        assert all(t.left >= 0 and t.left + t.side <= UNIT and t.top >= 0 and t.top + t.side <= UNIT for t in layout)
        right += hold(relation, first, second, seen(Scene("", layout, "blue")))
    assert right >= 190


@pytest.mark.parametrize("relation", EVERY)
def test_relations_differ_from_each_other(relation):
    """A picture of one relation shows at most one of the others, or the measure would not tell them apart."""
    others = [other for other in EVERY if other != relation]
    also = [sum(hold(other, one.first, one.second, seen(one.scene)) for other in others) for one in exemplars(relation)]
    assert sum(count > 0 for count in also) <= 3


@pytest.mark.parametrize("relation", EVERY)
def test_exemplars_show_each_name_once_and_pairs_to_try_show_none_of_them(relation):
    shown = [name for one in exemplars(relation) for name in (one.first, one.second)]
    assert len(set(shown)) == len(shown) == 20
    pairs = unseen_pairs(relation, 124)
    assert len(set(pairs)) == 124 and all(a != b for a, b in pairs)
    assert not {name for pair in pairs for name in pair} & set(shown)
    assert pairs == unseen_pairs(relation, 124), "the same pairs each time"
    assert all("{}" in one.scene.caption for one in exemplars(relation))


def test_no_relation_that_pocket_was_trained_on_is_one_to_teach():
    assert not set(EVERY) & set(RELATIONS)
    held = 0
    for item in scenes(300, 3, names=RELATED, kind="relation"):
        first, second = (thing.name for thing in item.stickers)
        held += any(hold(relation, first, second, seen(item)) for relation in EVERY if relation != "diagonal")
    assert held == 0


def test_the_finder_recognises_relations_in_true_pictures(finder):
    right = {}
    for relation in EVERY:
        listed = exemplars(relation)
        found = [finder(picture) for picture in pictured([one.scene for one in listed])]
        right[relation] = sum(hold(relation, a.first, a.second, b) for a, b in zip(listed, found, strict=True))
    assert sum(right.values()) >= 54 and min(right.values()) >= 7, right


def test_the_finder_names_what_is_there_and_where(finder):
    listed = scenes(20, 8, names=RELATED, kind="relation")
    right = 0
    for item, things in zip(listed, map(finder, pictured(listed)), strict=True):
        for true in seen(item):
            near = [one for one in things if one.name == true.name and shared(one, true) > 0.7]
            right += bool(near)
    assert right >= 38


def test_the_finder_finds_nothing_on_a_plain_ground_and_nothing_twice_in_one(finder):
    assert finder(torch.full((3, 64, 64), 0.25)) == []
    one = Scene("", (Placed("fox", 8, 10, 44),), "teal")
    assert [thing.name for thing in finder(pictured([one])[0])] == ["fox"]


def test_the_order_of_drawing_is_told(finder):
    below, above = Placed("house", 6, 6, 52), Placed("apple", 22, 24, 20)
    things = finder(pictured([Scene("", (below, above), "blue")])[0])
    assert [thing.name for thing in things] == ["house", "apple"] and things[0].layer < things[1].layer
