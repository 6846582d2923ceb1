"""Words that call concepts: compared in NFC, noted where they are missing, near or unknown."""

from __future__ import annotations

import pytest
import torch

from pipelines import Box, Concept, ConceptCard, ConceptUse, Request, generate
from pipelines.errors import ConceptError
from pipelines.events import Note
from pipelines.words import check_word, near_miss, notes, says
from tests import tiny

NFC, NFD = "<caf\u00e9>", "<cafe\u0301>"


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def learned(base, token, **card):
    rows = tuple(torch.ones(1, encoder.config.hidden_size) for encoder in base.text_encoders)
    return Concept(ConceptCard(token=token, family=base.family.name, **card), rows)


def said(base, prompt, *concepts, **fields):
    """Return the note on the words of a request."""
    events = []
    uses = tuple(ConceptUse(source=f"{i}") for i in range(len(concepts)))
    asked = Request(prompt=prompt, concepts=uses, steps=1, width=16, height=16, **fields)
    generate(base, asked, concepts={f"{i}": one for i, one in enumerate(concepts)}, on_event=events.append)
    return " ".join(event.text for event in events if isinstance(event, Note))


def test_a_concept_whose_word_is_not_said_is_noted(base):
    wolf = learned(base, "<My-Wolf>")
    assert said(base, "a fox", wolf) == "The prompt does not say <My-Wolf>, so its concept does little."
    assert "does not say <My-Wolf>, so its concept does little: it says <my-wolf>" in said(base, "a <my-wolf>", wolf)
    assert "it says My-Wolf," in said(base, "a My-Wolf", wolf)
    assert said(base, "a (<My-Wolf>:1.3) [x]", wolf) == said(base, "a fox", wolf, negative_prompt="<My-Wolf>") == ""


def test_what_a_box_says_is_said(base):
    gated = tiny.gated()
    box = Box(phrase="<My-Wolf>", box=(0, 0, 0.5, 0.5))
    assert said(gated, "a fox", learned(gated, "<My-Wolf>"), boxes=(box,)) == ""


def test_a_word_in_brackets_that_nobody_taught_is_noted(base):
    assert said(base, "a <my-cat> on blue") == (
        f"<my-cat> is no word of {base.name} or of a concept that is used; was its concept forgotten?"
    )
    assert said(base, "a <x> and a <y>, a < b, 1 <2> 3", learned(base, "<x>")).count("is no word") == 2
    assert said(base, "a <|endoftext|>") == "", "a word of the base"
    assert said(base, "a fox <3") == ""


def test_a_near_miss_is_told_once(base):
    assert "is no word" not in said(base, "a <my-wolf>", learned(base, "<My-Wolf>"))


def test_words_and_prompts_are_the_same_whether_accents_are_apart_or_not(base):
    pictures = []
    for token in (NFC, NFD):
        for prompt in (f"a {NFC}", f"a {NFD}"):
            concept = learned(base, token)
            assert concept.token == NFC and said(base, prompt, concept) == ""
            use = (ConceptUse(source="x"),)
            asked = Request(prompt=prompt, concepts=use, steps=1, width=16, height=16)
            pictures.append(generate(base, asked, concepts={"x": concept}).latents)
    assert all(torch.equal(pictures[0], one) for one in pictures[1:])
    plain = generate(base, Request(prompt="a cafe", steps=1, width=16, height=16)).latents
    assert not torch.equal(pictures[0], plain)


def test_a_file_with_its_word_apart_is_read_as_one(base, tmp_path):
    path = learned(base, NFC).save(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes())
    assert Concept.load(path).token == NFC


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a <x>", "<x>", True),
        ("a <x>s", "<x>", True),
        ("a <X>", "<x>", False),
        ("a wolfram", "wolf", False),
        ("a wolf.", "wolf", True),
        ("a zwx dog", "zwx dog", True),
        ("a zwx cat", "zwx dog", False),
        (NFD, NFC, True),
    ],
)
def test_a_text_says_a_word(text, word, expected):
    assert says(text, word) is expected


@pytest.mark.parametrize(
    ("text", "word", "near"),
    [
        ("a <my-wolf> on red", "<My-Wolf>", "<my-wolf>"),
        ("a my-wolf on red", "<my-wolf>", "my-wolf"),
        ("a <my-wolve>", "<my-wolf>", "<my-wolve>"),
        ("a fox", "<my-wolf>", ""),
        ("", "<my-wolf>", ""),
    ],
)
def test_near_misses(text, word, near):
    assert near_miss(text, word) == near


def test_weights_of_other_programs_without_a_word_are_not_missed():
    assert notes(["a fox"], [], lambda word: False, "x") == ""


@pytest.mark.parametrize(
    "word", ["", "a b", "a(b", "a]", "a:b", "a,b", "a\\b", "a\tb", "a\x00b", "x" * 101, "__metadata__"]
)
def test_words_that_no_prompt_can_say_are_refused(word):
    with pytest.raises(ConceptError, match=r"letters|The token"):
        check_word(word)
    check_word("<my-猫.1>")
