from __future__ import annotations

import pytest
import torch
from PIL import Image

from evaluation import concepts as scoring
from evaluation import truth
from evaluation.truth import composed, truth_from, truth_of
from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.loading import load
from pipelines.pictures.tensors import to_tensor
from tests import tiny
from trainers.pretrain.parts import text_config
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.art import icons
from trainers.stickers.drawn import best_of
from trainers.stickers.world import ALL_NAMES, HELD_OUT, NAMES, OTHER_HANDS

pytestmark = pytest.mark.usefixtures("few_steps")

PICTURES = composed(scoring.teaching_scenes("wolf"))


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return Judge(tokenizer, text_config(tokenizer), widths=(8, 8, 8, 8)).eval().requires_grad_(False)


def test_the_pictures_in_the_repository_are_those_of_the_demo():
    from studio.commands.demo import EXAMPLES, THING
    from trainers.data.batches import read_examples

    stored = [example.picture for example in read_examples(EXAMPLES)]
    made = scoring.composed(scoring.teaching_scenes(THING))
    assert len(stored) == len(made) == 4
    assert all(a.tobytes() == b.tobytes() for a, b in zip(stored, made, strict=True))


@pytest.mark.parametrize("thing", list(HELD_OUT))
def test_teaching_shows_one_thing_on_four_backgrounds(thing):
    listed = scoring.teaching_scenes(thing)
    assert {sticker.name for item in listed for sticker in item.stickers} == {thing}
    assert len({item.colour for item in listed}) == 4


def test_real_pictures_are_not_those_that_were_taught():
    real = truth_of("wolf").crops
    taught = scoring.crops_of(scoring.composed(scoring.teaching_scenes("wolf")))
    assert real.shape == (truth.REAL, 3, 64, 64)
    assert min((a - b).abs().mean() for a in real for b in taught) > 1e-3


def test_a_picture_without_a_thing_counts_as_a_whole():
    plain = Image.new("RGB", (32, 32), "teal")
    torch.testing.assert_close(scoring.crops_of([plain])[0], to_tensor(plain.resize((64, 64))))


def test_a_concept_equal_to_its_class_word_gains_nothing(judge):
    base = tiny.sd()
    concept = Concept(ConceptCard(token="<x>", init="fox", family="sd1"), single_rows(base, "fox"))
    row = scoring.score_concept(base, judge, concept, truth_of("wolf"))
    assert row["likeness_gain"] == pytest.approx(0, abs=1e-5)
    assert row["named_chance"] == 1 / len(ALL_NAMES) and 0 <= row["named"] <= 1
    assert -1 <= row["likeness"] <= 1


def test_alignment_is_measured_by_the_class_word_where_no_name_is_given(judge):
    base = tiny.sd()
    concept = Concept(ConceptCard(token="<x>", init="fox", family="sd1"), single_rows(base, "fox"))
    row = scoring.score_concept(base, judge, concept, truth_from(PICTURES))
    assert row["alignment_gain"] == pytest.approx(0, abs=1e-5)


def test_without_a_name_nothing_is_said_of_naming(judge):
    base = tiny.sd()
    concept = Concept(ConceptCard(token="<x>", init="fox", family="sd1"), single_rows(base, "cat"))
    row = scoring.score_concept(base, judge, concept, truth_from(PICTURES))
    assert "named" not in row and row["likeness"] != row["likeness_word"]


def test_the_table_shows_rows_and_their_mean():
    rows = {"wolf": {"likeness": 0.5, "named": 1.0}, "kiwi": {"likeness": 0.7, "named": 0.5}}
    text = scoring.table(rows)
    assert scoring.mean(rows) == pytest.approx({"likeness": 0.6, "named": 0.75})
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["wolf", "kiwi", "mean"]
    assert lines[3].split()[1:] == ["0.600", "0.750"]
    assert f"{1 / len(ALL_NAMES):.3f}" in lines[-1]


def test_a_table_of_one_row_has_no_mean():
    assert "mean" not in scoring.table({"wolf": {"likeness": 0.5}})
    assert "chance" not in scoring.table({"wolf": {"likeness": 0.5}})


# -- ways of teaching ---------------------------------------------------------------------------------------------


def test_all_ways_are_compared_in_one_table(judge, monkeypatch):
    assert set(scoring.WAYS) == {"textual-inversion", "pivotal", "lora", "full", "custom-diffusion"}
    assert set(scoring.TOGETHER) == {"pivotal-together", "custom-diffusion-together"}
    ways = ("textual-inversion", "full", "custom-diffusion", "custom-diffusion-together")
    monkeypatch.setattr(scoring, "PROMPTS", ("a {}",))
    monkeypatch.setattr(scoring, "SEEDS", 1)
    monkeypatch.setattr(scoring, "PAIR_SEEDS", 4)
    said = []
    rows = scoring.compare(
        tiny.sd(), judge, ("wolf", "taxi"), ways, say=said.append, steps=2, batch=2, learning_rate=1e-3, scale_lr=False
    )
    assert list(rows) == list(ways) and len(said) == 2 * len(rows), "a line for the pair and a row for each way"
    for row in rows.values():
        assert {
            "drawn",
            "drawn_word",
            "drawn_floor",
            "likeness",
            "named",
            "class_kept",
            "both",
            "both_drawn",
            "in_place",
        } <= set(row)
        assert 0 <= row["in_place"] <= row["both"] <= 1 and row["seconds"] > 0
    assert rows["textual-inversion"]["class_kept"] == 1.0, "a word alone cannot change its class"
    assert rows["textual-inversion"]["kib"] < rows["custom-diffusion"]["kib"] < rows["full"]["kib"]
    text = scoring.table(rows, with_mean=False)
    assert all(way in text for way in rows) and "mean" not in text and "class_kept" in text


def test_things_taught_in_one_way_get_words_of_their_own():
    base = tiny.sd()
    for way in ("textual-inversion", "lora", "custom-diffusion"):
        tokens = [scoring.teach_sticker(base, thing, way, steps=1, batch=1).token for thing in ("wolf", "squid")]
        assert len(set(tokens)) == 2
        assert all(token.isascii() for token in tokens)


def test_stickers_taught_together_have_words_of_their_own_and_the_same_weights():
    base = tiny.sd()
    taught = scoring.teach_together(base, {"wolf": None, "squid": "<s>"}, "pivotal", steps=1, batch=1, cut_mix=0.5)
    assert [one.token for one in taught.values()] == ["<my-wolf>", "<s>"]
    assert [one.card.init for one in taught.values()] == [HELD_OUT["wolf"], HELD_OUT["squid"]]
    assert taught["wolf"].changes is taught["squid"].changes
    alone = scoring.teach_sticker(base, "wolf", "pivotal", steps=1, batch=1)
    assert alone.token == "<my-wolf>" and not alone.partners


def test_settings_go_to_the_method_and_to_training():
    concept = scoring.teach_sticker(tiny.sd(), "wolf", "pivotal", steps=1, rank=2, vectors=3, prior="none")
    recipe = concept.card.recipe
    assert (recipe["steps"], recipe["rank"], recipe["prior"], concept.card.vectors) == (1, 2, "none", 3)
    assert concept.card.init == HELD_OUT["wolf"] and concept.card.method == "dreambooth-lora"


def test_a_pair_counts_who_is_there_and_where(judge, monkeypatch):
    """The counting itself, on composed pictures in the place of generated ones' detector input."""
    monkeypatch.setattr(scoring, "PAIR_SEEDS", 4)
    base = tiny.sd()
    taught = {name: scoring.teach_sticker(base, name, steps=1, batch=1) for name in ("wolf", "taxi")}
    row = scoring.score_pair(base, judge, taught)
    assert (row["both"], row["in_place"]) == (0.0, 0.0), "noise shows nobody"
    assert row["both_drawn"] < 0.7


def test_things_by_other_hands_are_taught_and_measured_but_never_named(few_steps, monkeypatch):
    monkeypatch.setattr(scoring, "SEEDS", 2)
    assert set(OTHER_HANDS) == set(icons("noto")) and set(OTHER_HANDS.values()) <= set(NAMES)
    seen, known = scoring.composed(scoring.teaching_scenes("unicorn")), truth_of("unicorn")
    assert len(seen) == 4 and all(best_of(to_tensor(one), known.drawings).likeness > 0.99 for one in seen)
    base = load("pocket")
    concept = Concept(ConceptCard(token="<u>", family="pocket", init="horse", vectors=1), single_rows(base, "horse"))
    row = scoring.score_concept(base, Judge.load(POCKET / "judge"), concept, known)
    assert row["drawn"] < row["drawn_ceiling"] and "named" not in row


def test_a_thing_that_the_judge_likes_and_nobody_would_know_is_named():
    smear = {"drawn": 0.20, "drawn_half": 0.04, "drawn_floor": 0.22, "likeness_share": 0.6}
    others = {"drawn": {**smear, "drawn": 0.8}, "blob": {**smear, "likeness_share": 0.1}, "old": {"named": 1.0}}
    rows = {"smear": smear, **others}
    assert scoring.overrated(rows) == ["smear"]
    assert "smear: the judge likes it, the drawing is at its floor" in scoring.table(rows, with_mean=False)
