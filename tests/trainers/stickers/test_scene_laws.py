"""Laws of the scene composer, by geometry and by a grammar of its own: what a caption says is what is placed."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import combinations

import pytest
import torch

from pipelines.measures.stickers import FoundSticker, holds
from trainers.pretrain.unet import training_stream
from trainers.pretrain.vocabulary import MAX_LENGTH, build_tokenizer
from trainers.stickers.world import (
    ALL_NAMES,
    COLOURS,
    HELD_OUT,
    HELD_OUT_RELATIONS,
    KINDS,
    NAMES,
    RELATIONS,
    SIDES,
    UNIT,
    article,
    plural,
    scene,
    scenes,
)

MANY = 3000


@pytest.fixture(scope="module")
def stream():
    return training_stream(MANY, 77)


def found(thing):
    """A placed square as the detector would give it."""
    box = (thing.left, thing.top, thing.left + thing.side, thing.top + thing.side)
    return FoundSticker(tuple(edge / UNIT for edge in box), torch.zeros(3, 1, 1))  # pyright: ignore


def gap(a, b):
    """Free units between two squares, along the axis that parts them best; negative if they overlap."""
    across = max(b.left - (a.left + a.side), a.left - (b.left + b.side))
    down = max(b.top - (a.top + a.side), a.top - (b.top + b.side))
    return max(across, down)


# -- geometry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relation", list(RELATIONS))
def test_a_relation_that_is_told_holds_and_no_other_does(relation):
    for item in scenes(400, 21, relation=relation):
        first, second = map(found, item.stickers)
        assert [name for name in RELATIONS if holds(name, first, second)] == [relation], item


def test_every_relation_of_the_training_stream_holds(stream):
    related = [item for item in stream if item.kind == "relation"]
    assert len(related) > 0.3 * MANY
    assert all(holds(item.relation, *map(found, item.stickers)) for item in related)


def test_things_of_a_pair_keep_four_units_apart(stream):
    pairs = [item for item in stream if item.kind in ("relation", "two")]
    assert min(gap(*item.stickers) for item in pairs) >= 4


def test_things_in_a_row_never_overlap_and_stand_in_the_order_they_are_told():
    for item in scenes(500, 22, kind="three"):
        assert all(gap(a, b) >= 0 for a, b in combinations(item.stickers, 2))
        assert [thing.name for thing in item.stickers] == [
            thing.name for thing in sorted(item.stickers, key=lambda thing: thing.left)
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_square_lies_within_the_picture_and_has_a_side_that_is_prepared(kind):
    for item in scenes(400, 23, kind=kind):
        for thing in item.stickers:
            assert thing.side in SIDES
            assert thing.left >= 1 and thing.left + thing.side <= UNIT - 1
            assert thing.top >= 1 and thing.top + thing.side <= UNIT - 1


def test_inside_is_a_square_within_another_drawn_last():
    for item in scenes(300, 24, relation="inside"):
        outer, inner = item.stickers
        assert outer.left < inner.left and inner.left + inner.side < outer.left + outer.side
        assert outer.top < inner.top and inner.top + inner.side < outer.top + outer.side
        assert item.caption.index(f" {inner.name}") < item.caption.index(f" {outer.name}"), "told first, drawn last"


def test_on_top_of_is_resting_on_the_upper_edge():
    for item in scenes(300, 25, relation="on top of"):
        first, second = item.stickers
        assert first.top + first.side == second.top
        shared = min(first.left + first.side, second.left + second.side) - max(first.left, second.left)
        assert shared >= 0.75 * min(first.side, second.side), "it would fall off"


def test_two_things_anywhere_are_both_seen_and_stand_in_every_way_to_each_other():
    listed = scenes(600, 32, kind="scatter")
    for item in listed:
        behind, before = item.stickers
        across = min(behind.left + behind.side, before.left + before.side) - max(behind.left, before.left)
        down = min(behind.top + behind.side, before.top + before.side) - max(behind.top, before.top)
        assert max(0, across) * max(0, down) <= 0.7 * behind.side**2, "what is behind must be seen"
    gaps = [gap(*item.stickers) for item in listed]
    assert min(gaps) < 0 < max(gaps)
    aslant = [abs(a.left + a.side / 2 - b.left - b.side / 2) > 8 and abs(a.top + a.side / 2 - b.top - b.side / 2) > 8
              for a, b in (item.stickers for item in listed)]  # fmt: skip
    assert 0.1 < sum(aslant) / len(aslant) < 0.9


def test_a_group_is_two_of_one_thing_and_another_apart_from_each_other():
    for item in scenes(300, 33, kind="group"):
        names = [thing.name for thing in item.stickers]
        assert names[0] == names[1] != names[2]
        assert all(gap(a, b) >= 2 for a, b in combinations(item.stickers, 2))


def test_one_in_five_single_things_of_a_stream_is_of_any_size_and_none_where_one_is_asked_for():
    drawn = [item.stickers[0].side for item in scenes(MANY, 34) if item.kind == "one"]
    assert 0.05 < sum(side < 38 for side in drawn) / len(drawn) < 0.2
    assert min(item.stickers[0].side for item in scenes(300, 34, kind="one")) >= 38


def test_a_single_thing_is_nearer_the_middle_than_the_rim():
    offsets = [abs(s.left + s.side / 2 - UNIT / 2) for item in scenes(800, 26, kind="one") for s in item.stickers]
    reach = [UNIT / 2 - s.side / 2 for item in scenes(800, 26, kind="one") for s in item.stickers]
    # An even draw would lie at half of its reach on average; the mean of two draws at a third.
    assert sum(offsets) / sum(reach) == pytest.approx(1 / 3, abs=0.05)


# -- captions ---------------------------------------------------------------------------------------------------

THING = r"an? ([a-z]+)"
GROUND = r"(?: on an? (?P<colour>[a-z]+) background)?"
PREFIX = r"(?:a (?:picture|photo|sticker|rendering) of )?"
GRAMMAR = {
    "relation": re.compile(
        rf"{PREFIX}{THING} (to the left of|left of|to the right of|right of|above|over|below|under) {THING}{GROUND}"
    ),
    "two": re.compile(rf"{PREFIX}two (?:of an? )?([a-z]+){GROUND}"),
    "three": re.compile(rf"{PREFIX}{THING}, {THING} and {THING}{GROUND}"),
    "scatter": re.compile(rf"{PREFIX}{THING} (?:and|with) {THING}{GROUND}"),
    "group": re.compile(rf"{PREFIX}two ([a-z]+) and {THING}{GROUND}"),
    "one": re.compile(rf"{PREFIX}{THING}{GROUND}"),
}
SAID = {
    "left of": "left of",
    "right of": "right of",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
SINGULAR = {plural(name): name for name in ALL_NAMES}


def read(caption):
    """Kind, names in the order told, relation and colour of a caption; written without looking at the composer."""
    for kind, pattern in GRAMMAR.items():
        if match := pattern.fullmatch(caption):
            parts, colour = [part for part in match.groups()[: match.re.groups - 1] if part], match["colour"]
            relation = SAID[parts.pop(1).removeprefix("to the ")] if kind == "relation" else None
            if kind == "group":
                parts = [SINGULAR.get(parts[0], parts[0])] * 2 + parts[1:]
            if kind == "two":
                parts = [SINGULAR.get(parts[0], parts[0])] * 2
            return kind, parts, relation, colour
    raise AssertionError(f"no sentence of this world: {caption}")


def test_what_is_placed_can_be_read_back_from_the_caption(stream):
    for item in stream:
        kind, names, relation, colour = read(item.caption)
        placed = [thing.name for thing in item.stickers]
        if kind == "scatter":  # told in either order: the caption says nothing about places
            names, placed = sorted(names), sorted(placed)
        assert (kind, names, relation) == (item.kind, placed, item.relation)
        assert colour in (None, item.colour)


def test_articles_go_by_sound():
    with_an = set("apple owl octopus avocado eggplant elephant otter olive onion egg ambulance airplane".split())
    with_an |= set("axe umbrella alien anchor".split())
    assert {name for name in ALL_NAMES if article(name).startswith("an ")} == with_an
    assert [colour for colour in COLOURS if article(colour).startswith("an ")] == ["orange"]


def test_plurals_name_one_thing_each_and_are_no_other_things_name():
    assert len(SINGULAR) == len(ALL_NAMES)
    assert all(many not in ALL_NAMES or many == name for many, name in SINGULAR.items())


def test_plurals_by_the_rules_of_english():
    irregular = {"strawberry": "strawberries", "wolf": "wolves", "grapes": "grapes", "mouse": "mice", "fish": "fish"}
    irregular |= {"cherry": "cherries", "blueberry": "blueberries", "butterfly": "butterflies", "candy": "candies"}
    irregular |= {"sheep": "sheep", "deer": "deer", "fries": "fries", "dice": "dice", "teddy": "teddies"}
    irregular |= {"potato": "potatoes", "tomato": "tomatoes"}
    for name in ALL_NAMES:
        hisses = re.search(r"(s|x|z|ch|sh)$", name)
        assert plural(name) == irregular.get(name, name + ("es" if hisses else "s"))


def test_no_caption_is_cut_short_or_spelled_in_pieces(stream):
    tokenizer = build_tokenizer()
    for item in stream[:600]:
        ids = tokenizer(item.caption).input_ids
        assert len(ids) <= MAX_LENGTH
        assert len(ids) == 2 + len(re.findall(r"\w+|[^\w\s]", item.caption)), "one token a word"


def test_the_longest_caption_there_can_be_fits_the_window():
    longest = max(ALL_NAMES, key=len)
    said = f"a rendering of {article(longest)} to the right of {article(longest)} on an orange background"
    row = f"a rendering of {article(longest)}, {article(longest)} and {article(longest)} on an orange background"
    assert max(len(build_tokenizer()(text).input_ids) for text in (said, row)) <= MAX_LENGTH


# -- distribution -----------------------------------------------------------------------------------------------


def even(counts, choices, tolerance=0.3):
    """Return whether each choice comes about equally often."""
    expected = sum(counts.values()) / len(choices)
    return set(counts) == set(choices) and all(abs(n / expected - 1) < tolerance for n in counts.values())


def test_names_colours_and_relations_come_evenly(stream):
    # Tolerances are over four standard deviations of the counts expected.
    assert even(Counter(item.colour for item in stream), COLOURS, 0.25)
    assert even(Counter(item.relation for item in stream if item.relation), RELATIONS, 0.25)
    assert even(Counter(thing.name for item in stream for thing in item.stickers), NAMES, 0.8)


def test_each_way_of_saying_a_relation_is_used():
    for relation, ways in RELATIONS.items():
        said = [item.caption for item in scenes(200, 27, relation=relation, say_colour=False)]
        first = [caption for caption in said if f" {ways[0]} " in caption]
        assert 0.3 < len(first) / len(said) < 0.7
        assert all(any(f" {way} " in caption for way in ways) for caption in said)


def test_seven_in_ten_captions_say_the_colour(stream):
    assert sum("background" in item.caption for item in stream) / MANY == pytest.approx(0.7, abs=0.04)


@pytest.mark.parametrize("say", [True, False])
def test_whether_the_colour_is_said_can_be_chosen(say):
    assert all(("background" in item.caption) is say for item in scenes(60, 28, say_colour=say))


@pytest.mark.parametrize("colour", list(COLOURS))
def test_a_colour_that_is_asked_for_is_placed_and_said(colour):
    for item in scenes(20, 29, colour=colour, say_colour=True):
        assert item.colour == colour and item.caption.endswith(f" on {article(colour)} background")


def test_nothing_held_out_is_ever_in_the_training_stream():
    words = {word for name in HELD_OUT for word in (name, plural(name))}
    held = [phrase for phrases in HELD_OUT_RELATIONS.values() for phrase in phrases]
    for seed in (31, 41):  # the streams of the UNet and of the text encoder
        for item in scenes(MANY, seed):
            assert not words & set(re.findall(r"[a-z]+", item.caption))
            assert not words & {thing.name for thing in item.stickers}
            assert item.relation not in HELD_OUT_RELATIONS and not any(phrase in item.caption for phrase in held)


@pytest.mark.parametrize("kind", ["relation", "three", "scatter"])
def test_things_told_together_differ(kind):
    for item in scenes(300, 30, kind=kind, names=("fox", "dog", "cat", "owl")):
        assert len({thing.name for thing in item.stickers}) == len(item.stickers)


def test_chance_comes_from_the_generator_that_is_given_alone():
    before = random.getstate()
    first = [scene(random.Random(5)) for _ in range(2)]
    assert first[0] == first[1] and random.getstate() == before
    rng = random.Random(6)
    assert [scene(rng) for _ in range(30)] == scenes(30, 6), "one generator gives the scenes of its seed in turn"
    assert scenes(30, 6)[:10] == scenes(10, 6), "a longer stream begins like a shorter one"
