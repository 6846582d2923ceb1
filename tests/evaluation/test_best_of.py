"""The best of several candidates: what is kept, what judges it, and the figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluation.best_of import Candidate, best_of, figures, plain_words, table, tables
from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.errors import RequestError
from pipelines.request.request import Request
from studio.cli import main
from tests import tiny


class Brightness:
    """A scorer that likes bright pictures, whatever is said."""

    def pictures(self, pictures):
        return torch.tensor([[float(sum(one.convert("L").getdata()))] for one in pictures])

    def texts(self, texts):
        return torch.ones(len(texts), 1)


def test_the_candidate_with_the_best_score_is_kept_for_each_picture():
    base, request = tiny.sd(), Request(prompt="a fox", steps=1, seed=4, count=2)
    kept = list(best_of(base, request, 3, Brightness()))
    assert [one.seeds for one in kept] == [(4, 5, 6), (7, 8, 9)]
    for one in kept:
        assert one.seed == one.seeds[one.scores.index(max(one.scores))] and len(set(one.scores)) == 3
        assert one.result.request.count == 1 and f"Seed {one.seed} is kept of 3" in one.told()
    with pytest.raises(RequestError, match="no"):
        list(best_of(base, request.model_copy(update={"prompt": " "}), 2, Brightness()))


def test_the_judge_is_told_what_learned_words_were_learned_from():
    wolf = Concept(ConceptCard(token="<my-wolf>", init="fox"), (torch.ones(1, 4),))
    longer = replace(wolf, card=ConceptCard(token="<my-wolf>-b", init="cat"))
    slider = Concept(ConceptCard(token="red", kind="slider", vectors=0), ())
    said = plain_words("a (<my-wolf>:1.3) and a <my-wolf>-b on a red ground", [wolf, longer, slider])
    assert said == "a fox and a cat on a red ground"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a pink fox, ink", "a pink fox, thing"),
        ("a sks fox and sks foxes", "a fox and foxes"),
        ("a (sks:1.2) foxglove by sks", "a fox foxglove by fox"),
        ("<s>, un<s>", "cat, uncat"),
    ],
)
def test_learned_words_are_whole_words(prompt, said):
    cards = [ConceptCard(token="ink"), ConceptCard(token="sks", init="fox"), ConceptCard(token="<s>", init="cat")]
    assert plain_words(prompt, [Concept(card, (torch.ones(1, 4),)) for card in cards]) == said


def test_figures_are_means_over_disjoint_groups():
    rows = [[Candidate(score, drawn, float(drawn > 0.5)) for score, drawn in zip(range(8), row, strict=True)]
            for row in ([0.1] * 7 + [0.9], [0.8] + [0.4] * 7)]  # fmt: skip
    found = figures(rows)
    assert found["1"]["drawn"] == pytest.approx((0.1 * 7 + 0.9 + 0.8 + 0.4 * 7) / 16)
    assert found["8"] == {"score": 7, "drawn": pytest.approx(0.65), "right": 0.5, "limit": pytest.approx(0.85)}
    assert found["4"]["drawn"] == pytest.approx((0.1 + 0.9 + 0.4 + 0.4) / 4)
    said = table("all", tables({"one": rows[:1], "group": rows[1:]})["all"])
    assert "0.650" in said and said.count("\n") == 4


def test_what_cannot_be_measured_is_refused(capsys):
    assert main(["score", "--best-of", "--only", "wolf"]) == 2
    assert "not on the choice 'wolf'" in capsys.readouterr().err
