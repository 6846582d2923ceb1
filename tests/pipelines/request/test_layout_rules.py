"""From a sentence to boxes: the things, how many, how they stand to one another."""

from __future__ import annotations

import doctest
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from pipelines.errors import RequestError
from pipelines.request import layout_rules
from pipelines.request.layout_rules import plan, singular, thing


def named(sentence):
    return [box.phrase for box in plan(sentence)]


def centre(box):
    left, top, right, bottom = box.box
    return (left + right) / 2, (top + bottom) / 2


def apart(one, other):
    a, b = one.box, other.box
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_the_examples_of_the_documentation_hold():
    assert doctest.testmod(layout_rules).failed == 0


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("a fox", ["fox"]),
        ("two foxes left of a house", ["fox", "fox", "house"]),
        ("3 wolves, a dog and an apple", ["wolf", "wolf", "wolf", "dog", "apple"]),
        ("A photo of a red fox above the old house on a light blue background.", ["red fox", "old house"]),
        ("a <my-fox> to the right of a cactus in the snow", ["<my-fox>", "cactus"]),
        ("a pair of houses with several cherries", ["house"] * 2 + ["cherry"] * 3),
        ("a bus next to a glass", ["bus", "glass"]),
        ("a cat sitting on top of a box under a tree", ["cat", "box", "tree"]),
        ("an ice cream cone between a cat and two dogs", ["cat", "ice cream cone", "dog", "dog"]),
        ("a cat in a hat", ["cat in a hat"]),
    ],
)
def test_things_are_counted_and_named_in_the_singular(sentence, names):
    assert named(sentence) == names


RELATIONS = {
    "to the left of": (-1, 0),
    "left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "on top of": (0, -1),
    "over": (0, -1),
    "below": (0, 1),
    "under": (0, 1),
    "and": (-1, 0),
    "with": (-1, 0),
    "next to": (-1, 0),
}


@pytest.mark.parametrize("relation", list(RELATIONS))
def test_each_relation_places_the_first_by_the_second(relation):
    fox, house = plan(f"a fox {relation} a house")
    across, down = (a - b for a, b in zip(centre(fox), centre(house), strict=True))
    x, y = RELATIONS[relation]
    assert (x * across > 0.2 and abs(down) < 1e-6) if x else (y * down > 0.2 and abs(across) < 1e-6)
    assert apart(fox, house)


def test_a_chain_is_followed_and_clauses_stand_side_by_side():
    fox, house, tree = plan("a fox left of a house above a tree")
    assert centre(fox)[0] < centre(house)[0] and centre(house)[1] < centre(tree)[1]
    fox, house, tree = plan("a fox above a house and a tree")
    assert centre(fox)[1] < centre(house)[1] and centre(tree)[0] > centre(fox)[0] and centre(tree)[1] == 0.5
    fox, house, tree = plan("a fox left of a house right of a tree")
    assert centre(fox)[0] < centre(house)[0] and centre(tree)[0] < centre(house)[0] and apart(fox, tree)


def test_what_is_called_small_is_smaller():
    small, plain = plan("a small fox and a house")
    assert small.phrase == "small fox" and small.box[2] - small.box[0] < 0.8 * (plain.box[2] - plain.box[0])


WORDS = ("fox", "<my-cat>", "red house", "tree")
SENTENCES = some.lists(
    some.tuples(
        some.sampled_from(["a", "two", "5", "the"]), some.sampled_from(WORDS), some.sampled_from(list(RELATIONS))
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(SENTENCES)
def test_boxes_lie_apart_and_inside_whatever_is_said(parts):
    sentence = " ".join(f"{count} {name} {relation}" for count, name, relation in parts) + " a car"
    boxes = plan(sentence)
    assert len(boxes) == 1 + sum({"two": 2, "5": 5}.get(count, 1) for count, _, _ in parts)
    assert all(apart(*pair) for pair in combinations(boxes, 2))


@pytest.mark.parametrize("sentence", ["", "   ", "on a blue background", "a", "two", "a fox left of", "and , and"])
def test_a_sentence_without_a_thing_is_one_error(sentence):
    with pytest.raises(RequestError, match="There is no thing in"):
        plan(sentence)


def test_too_many_things_and_unread_relations_are_errors_with_their_range():
    for sentence in ("31 foxes", "20 foxes and 11 houses"):
        with pytest.raises(RequestError, match=r"31 .*too many.*30 boxes"):
            plan(sentence)
    assert len(plan("30 foxes")) == 30
    with pytest.raises(RequestError, match="'behind' is no relation that is read"):
        plan("a fox behind a house")


def test_words_that_are_no_plural_stay():
    for word in ("bus", "glass", "cactus", "fox", "<foxes>", "bass"):
        assert singular(word) == word
    assert thing("the two red buses").name == "two red buses" and thing("two red buses").name == "red bus"
