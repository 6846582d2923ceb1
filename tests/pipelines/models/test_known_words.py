"""The words that pocket lists are those it was trained on, and others are noted with what is near."""

from __future__ import annotations

import json
import shutil

import pytest

from pipelines.events import Note
from pipelines.generation import generate
from pipelines.models import POCKET
from pipelines.models.components import load
from pipelines.models.known_words import FILE, known_words
from pipelines.request.request import Request
from trainers.stickers.world import CLASS_WORDS, COLOURS, HELD_OUT, NAMES, RELATIONS, plural

WORDS = known_words("pocket")


def test_the_list_is_that_of_the_world_pocket_was_trained_on():
    assert sorted(WORDS.names) == sorted(NAMES)
    assert WORDS.colours == tuple(COLOURS)
    assert WORDS.relations == tuple(way for ways in RELATIONS.values() for way in ways)
    assert WORDS.plurals == {plural(name): name for name in NAMES if plural(name) != name}
    assert not set(HELD_OUT) & WORDS.words
    assert CLASS_WORDS.items() <= WORDS.nearest.items()
    assert set(WORDS.nearest.values()) <= {*NAMES, *COLOURS, *WORDS.relations}
    assert set(WORDS.kinds.values()) <= set(WORDS.things)


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a Fox to the left of two houses on a yellow background", ()),
        ("three of a penguin, a pizza and grapes", ()),
        ("a princess and a <wolf> in a castle", ("princess",)),
        ("a wolf, a wolf", ("wolf",)),
        ("ein Fuchs auf Grün", ("ein", "fuchs", "auf", "grün")),
    ],
)
def test_words_it_was_never_shown_are_found(text, unknown):
    assert WORDS.unknown(text) == unknown


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("wolf", "fox"),
        ("kittens", "cat"),
        ("bird", "owl"),
        ("Birds", "owl"),
        ("pengin", "penguin"),
        ("yelow", "yellow"),
    ],
)
def test_a_near_word_is_suggested(word, near):
    assert near in WORDS.near(word)


def test_far_words_have_no_neighbour_and_the_note_stays_short():
    assert WORDS.near("democracy") == ()
    said = WORDS.note(["one princess with seven brave dwarfs, dark forest, mist, dawn"], "pocket")
    assert said.startswith("pocket was never shown “princess”, “seven”") and "and 2 more" in said
    assert WORDS.note(["a fox"], "pocket") == ""
    assert WORDS.note(["a wolf"], "pocket", ["wolf"]) == ""


def test_a_base_without_a_list_or_with_a_broken_one_is_silent(tmp_path):
    assert known_words(str(tmp_path)) is None
    for number, text in enumerate(("no json", "[]", '{"things": 3}', json.dumps({"things": {}, "colours": ""}))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / FILE).write_text(text)
        assert known_words(str(folder)) is None


def test_generating_notes_what_the_base_does_not_know(tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(POCKET, twin)
    for base in (load("pocket"), load(twin)):
        said = []
        asked = Request(prompt="a (princess:1.2) and a fox", negative_prompt="ugly", steps=1)
        generate(base, asked, on_event=lambda event, said=said: said.append(event))
        (note,) = [event.text for event in said if isinstance(event, Note)]
        assert "never shown “princess”" in note and str(tmp_path) not in note
