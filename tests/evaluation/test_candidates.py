"""The proposed candidate and its reason; the concept alone is measured, with all else the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluation.candidates import JudgeScorer, Row, choose, proposed
from evaluation.relations import pictures_of
from evaluation.truth import composed
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.errors import Cancelled
from pipelines.events import Preview, StepDone
from pipelines.measures.clip import Clip
from pipelines.measures.judge import Judge
from pipelines.models.loading import load
from tests import tiny
from tests.test_architecture import ROOT
from trainers.data.folders import Example
from trainers.pretrain.parts import text_config
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import scenes

pytestmark = pytest.mark.usefixtures("few_steps")


def row(step, fit, edit=None, kept=None):
    fit = torch.tensor(fit)
    figures = {"likeness": float(fit.mean())} | ({} if kept is None else {"class_kept": kept})
    return Row(step, figures, fit, None if edit is None else torch.tensor(edit))


EXAMPLE = ROOT / "studio" / "examples" / "concepts" / "wolf.safetensors"
START = row(0, [0.0, 0.1, 0.0, 0.1], [0.5] * 4)


def test_the_clear_best_is_proposed():
    rows = [row(10, [0.3, 0.4, 0.3, 0.4], [0.5] * 4), row(20, [0.6, 0.7, 0.6, 0.7], [0.1] * 4)]
    step, reason = proposed(START, rows, "fox")
    assert step == 20 and "0.650" in reason and "next best is 0.350 at step 10" in reason and "0.050" in reason


def test_of_those_within_the_noise_the_one_that_follows_prompts_best():
    rows = [
        row(10, [0.3, 0.3, 0.3, 0.3], [0.9] * 4),
        row(20, [0.7, 0.5, 0.7, 0.5], [0.4] * 4),
        row(30, [0.5, 0.72, 0.5, 0.72], [0.2] * 4),
    ]
    step, reason = proposed(START, rows, "fox")
    assert step == 20 and "not clearly better" in reason and "0.200 against 0.400" in reason
    # the same difference of means, in every picture alike, is no noise
    steady = [rows[0], row(20, [0.6] * 4, [0.4] * 4), row(30, [0.61] * 4, [0.2] * 4)]
    assert proposed(START, steady, "fox")[0] == 30


def test_the_earliest_of_equals():
    rows = [row(step, [0.5, 0.6], [0.3, 0.3]) for step in (10, 20, 30)]
    assert proposed(replace(START, fit=START.fit[:2]), rows, "fox")[0] == 10


def test_a_tie_is_told_as_one():
    rows = [row(10, [0.5, 0.71] * 4, [0.5] * 8), row(20, [0.72, 0.5] * 4, [0.5] * 8)]
    step, reason = proposed(replace(START, fit=START.fit.repeat(2)), rows, "fox")
    assert step == 10 and reason.endswith("and took longer.") and "less well" not in reason


def test_what_is_proposed_is_better_than_the_word_itself():
    # within the noise of the best, but of the word as well; and it follows prompts best, being nearest to it
    near = row(10, [0.0, 0.1, 0.0, 0.12], [0.9] * 4)
    rows = [near, row(20, [-0.2, 0.9, -0.2, 0.9] * 1, [0.1] * 4)]
    assert proposed(START, rows, "fox")[1].startswith("No step clearly shows")
    sure = row(30, [0.05, 0.3, 0.05, 0.3], [0.2] * 4)
    assert proposed(START, [near, sure], "fox")[0] == 30


def test_luck_is_not_taken_for_learning():
    generator, found = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        noise = torch.randn(6, 12, generator=generator)
        rows = [Row(10 * k, {"likeness": float(noise[k].mean())}, noise[k]) for k in range(1, 6)]
        found += not proposed(Row(0, {"likeness": 0.0}, noise[0]), rows, "fox")[1].startswith("No step")
    assert found < 40  # of 200; at one standard error it would be twice as many


def test_what_is_no_number_is_never_proposed():
    broken = row(20, [float("nan")] * 4, [0.5] * 4)
    assert proposed(START, [row(10, [0.5] * 4, [0.5] * 4), broken], "fox")[0] == 10
    assert "float32" in proposed(START, [broken], "fox")[1]
    concept = Concept.load(EXAMPLE).with_scores({"likeness": 0.5, "error": float("nan")})
    assert concept.card.scores == {"likeness": 0.5}


def test_what_spoils_the_class_word_is_left_out():
    rows = [row(10, [0.4] * 4, [0.3] * 4, kept=0.99), row(20, [0.9] * 4, [0.3] * 4, kept=0.5)]
    step, reason = proposed(START, rows, "fox")
    assert step == 10 and "changing what “fox” means: step 20" in reason
    step, reason = proposed(START, rows[1:], "fox")
    assert step == 20 and "Each step changed what “fox” means" in reason


def test_nothing_better_than_the_word_is_said():
    rows = [row(10, [0.0, 0.1, 0.1, 0.0]), row(20, [-0.3, 0.1, 0.0, 0.1])]
    step, reason = proposed(START, rows, "fox")
    assert step == 20 and "No step" in reason and "“fox”" in reason


def test_a_proposal_needs_the_drawing_and_the_judge():
    start = replace(START, drawn=torch.tensor([0.2, 0.25, 0.2, 0.25]))
    smear = replace(row(10, [0.8, 0.9, 0.8, 0.9]), drawn=torch.tensor([0.2, 0.26, 0.19, 0.25]))
    assert proposed(start, [smear], "fox")[1].startswith("No step"), "the judge alone is content"
    plain = replace(row(20, [0.0, 0.1, 0.0, 0.1]), drawn=torch.tensor([0.7, 0.75, 0.7, 0.75]))
    assert proposed(start, [plain], "fox")[1].startswith("No step"), "the drawing alone"
    both = replace(row(30, [0.5, 0.6, 0.5, 0.6]), drawn=torch.tensor([0.6, 0.65, 0.6, 0.65]))
    more = replace(row(40, [0.4, 0.5, 0.4, 0.5]), drawn=torch.tensor([0.8, 0.85, 0.8, 0.85]))
    assert proposed(start, [smear, both, more], "fox")[0] == 40, "of those that both see, the better drawing"


def test_a_step_that_shows_no_more_than_other_things_do_is_not_proposed():
    floored = row(10, [0.5, 0.6, 0.5, 0.6])
    floored.figures["likeness_floor"] = 0.55
    assert proposed(START, [floored], "fox")[1].startswith("No step")
    floored.figures["likeness_floor"] = 0.3
    assert proposed(START, [floored], "fox")[0] == 10


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return Judge(tokenizer, text_config(tokenizer), widths=(8, 8, 8, 8)).eval().requires_grad_(False)


def word(base, init="fox", kind="object", **more):
    """A concept that is exactly the word it started from."""
    from pipelines.concepts.card import ConceptCard

    card = ConceptCard(token="<x>", kind=kind, init=init, family=base.family.name, base=base.name, **more)
    return Concept(card, single_rows(base, init))


def test_the_word_itself_scores_as_the_word(judge):
    base = tiny.sd()
    before, events = tiny.snapshot(base), []
    own = word(base)
    generator = torch.Generator().manual_seed(0)
    moved = replace(own, rows=tuple(20 * torch.randn(rows.shape, generator=generator) for rows in own.rows))
    examples = [replace(one, captions=("a <x> on grass",)) for one in tiny.examples()]
    examples[0] = replace(examples[0], source=examples[0].picture.resize((30, 17)))
    choice = choose(base, {5: own, 10: moved}, examples, JudgeScorer(judge, False), on_event=events.append)
    same, other = choice.rows
    assert same.figures == pytest.approx(choice.baseline.figures, abs=1e-4)
    assert abs(other.figures["error"] - same.figures["error"]) > 1e-6
    assert set(choice.scores(10)) == {
        f"{name}{end}" for name in ("likeness", "alignment", "error") for end in ("", "_word")
    }
    assert tiny.same(before, base)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3]
    assert len([event for event in events if isinstance(event, Preview)]) == 3
    assert choice.sheet().draw().height > 3 * 96


def test_a_thing_is_measured_by_its_drawing_and_beside_other_things(judge):
    base = load("pocket")
    examples = [Example(f"{i}.png", one) for i, one in enumerate(composed(scenes(2, 3, names=("fox",), kind="one")))]
    choice = choose(base, {5: word(base, "fox")}, examples, JudgeScorer(judge, True))
    figures = choice.rows[0].figures
    assert figures["drawn"] > 0.35 and figures["likeness_floor"] < 1, "pocket knows the fox"
    assert choice.rows[0].drawn is not None and len(choice.rows[0].drawn) == len(choice.rows[0].pictures)
    assert choice.reason.startswith("No step"), "it is the word itself"


def test_without_a_scorer_the_error_decides(tmp_path):
    base = tiny.sd()
    choice = choose(base, {5: word(base)}, tiny.examples(), None)
    assert set(choice.rows[0].figures) == {"error"} and choice.step == 5 and choice.rows[0].pictures
    seen = choose(base, {5: word(base)}, tiny.examples(), Clip.load(tiny.clip(tmp_path)))
    assert -1 <= seen.rows[0].figures["alignment"] <= 1


def test_relations_are_tried_between_things_their_pictures_lack(judge):
    base = load("pocket")
    examples = pictures_of("on top of")[:2]
    card = {"left": "fox, cat", "right": "box"}
    choice = choose(base, {5: word(base, "above", "relation", **card)}, examples, JudgeScorer(judge, False))
    assert choice.rows[0].figures["both_there"] >= 0.75  # "above" is a word pocket knows well
    assert choice.rows[0].figures == pytest.approx(choice.baseline.figures, abs=1e-4)


def test_it_can_be_stopped():
    base = tiny.sd()
    asked = iter([False] * 5 + [True] * 1000)
    with pytest.raises(Cancelled):
        choose(base, {5: word(base)}, tiny.examples(), None, should_stop=lambda: next(asked))


class Second:
    """A judge to whom every picture of the base is the same and every training picture another."""

    def pictures(self, pictures):
        return torch.tensor([[1.0, 0.0]]).repeat(len(pictures), 1)


def test_a_second_judge_is_reported_and_decides_nothing(judge):
    base = tiny.sd()
    own = {5: word(base), 10: word(base)}
    plain = choose(base, own, tiny.examples(), JudgeScorer(judge, False))
    told = choose(base, own, tiny.examples(), JudgeScorer(judge, False), second=Second())
    assert [row.figures["second_likeness"] for row in (told.baseline, *told.rows)] == [1.0] * 3
    assert (told.step, told.reason) == (plain.step, plain.reason)
    assert "second_likeness" not in plain.rows[0].figures
