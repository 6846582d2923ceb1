"""The benchmark of relations: its arithmetic by hand, and one small run of it on pocket."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from evaluation import relations as scoring
from evaluation.relations import Compared, Tally, compare_relation, summary, tally, wilson
from evaluation.sticker_finder import Finder
from pipelines.models.loading import load
from trainers.stickers.relations import RELATIONS_TO_TEACH, PlacedThing, exemplars, unseen_pairs

pytestmark = pytest.mark.usefixtures("one_thread", "few_steps")


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (57, 100), (1, 1)])
@pytest.mark.parametrize(("z", "level"), [(1.959964, 0.95), (1.644854, 0.90)])
def test_intervals_are_wilsons(successes, trials, z, level):
    theirs = binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert wilson(successes, trials, z) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def thing(name, x, y, side=0.3, layer=0):
    return PlacedThing(name, (x, y, x + side, y + side), layer)


def test_pictures_are_counted_by_what_is_in_them():
    pairs = [("fox", "house"), ("fox", "house"), ("fox", "house"), ("fox", "house")]
    exemplar = exemplars("diagonal")[0].first
    seen = [
        [thing("fox", 0.1, 0.1), thing("house", 0.6, 0.6)],  # as told
        [thing("house", 0.1, 0.1), thing("fox", 0.6, 0.6)],  # the other way round
        [thing("fox", 0.1, 0.1), thing(exemplar, 0.6, 0.6)],  # one of the two, and one nobody asked for
        [],
    ]
    counted = tally("diagonal", pairs, seen, 7.0)
    assert counted.held == (True, False, False, False)
    assert counted.entities == (True, True, False, False)
    assert counted.leaked == (False, False, True, False)
    figures = counted.figures()
    assert (figures["relation"], figures["entities"], figures["leakage"], figures["seconds"]) == (0.25, 0.5, 0.25, 7.0)
    assert figures["low"] < 0.25 < figures["high"]


def test_of_several_of_one_name_any_may_stand_as_told():
    seen = [[thing("fox", 0.6, 0.1), thing("fox", 0.1, 0.1), thing("house", 0.6, 0.6)]]
    assert tally("diagonal", [("fox", "house")], seen).held == (True,)


def counted(right, trials=100):
    held = tuple(index < right for index in range(trials))
    return Tally(held, held, (False,) * trials)


def test_what_is_said_in_the_end_follows_from_the_intervals():
    def pair(ours, plain):
        return Compared({"textual-inversion": counted(plain), "reversion": counted(ours)}, {}, "above")

    lines = summary({"inside": pair(60, 20), "behind": pair(50, 48)})
    assert lines[-1] == "reversion above textual-inversion, 90 % intervals apart: inside"
    assert "mean of reversion: relation 0.550" in lines[1]
    assert summary({"behind": pair(50, 48)})[-1].endswith("none")


@pytest.fixture(scope="module")
def small():
    """One relation in every way, with two steps of training and two pictures."""
    base, finder = load("pocket"), Finder()
    return compare_relation(base, finder, "diagonal", "above", count=2, steps=2)


def test_every_way_is_measured_on_the_same_pairs(small):
    ways = ["phrase", "untrained", *scoring.WAYS]
    assert list(small.pictures) == ways and set(small.tallies) == {*ways, "true pictures"}
    assert all(len(one.held) == 2 for one in small.tallies.values())
    assert 0 < small.tallies["phrase"].figures()["drawn"] < 1
    assert all(small.tallies["true pictures"].entities), "composed pictures hold what they are composed of"
    assert small.pictures["untrained"][0].tobytes() == small.pictures["phrase"][0].tobytes(), "both say above"
    assert all(small.tallies[way].seconds > 0 for way in scoring.WAYS)


def test_the_table_and_the_sheet_show_every_way(small, tmp_path):
    table = scoring.relation_table("diagonal", small)
    assert table.startswith("diagonal (best phrase: 'above')")
    assert all(f"  {way} " in table for way in small.tallies)
    path = scoring.relation_sheet({"diagonal": small}, shown=2).save(tmp_path / "sheet.png")
    assert path.stat().st_size > 5000


def test_pictures_to_learn_from_say_both_things_and_may_have_masks():
    plain, masked = scoring.pictures_of("behind"), scoring.pictures_of("behind", masks=True)
    for one, other, exemplar in zip(plain, masked, exemplars("behind"), strict=True):
        assert one.mask is None and other.mask is not None
        assert all("{}" in said and exemplar.first in said and exemplar.second in said for said in one.captions)
        assert 0 < sum(other.mask.convert("L").histogram()[200:]) < other.mask.width * other.mask.height


def test_the_best_phrase_is_chosen_on_other_pairs_than_it_is_scored_on():
    """Those of a relation are the first of its list, those of the choice lie beyond."""
    first = next(iter(RELATIONS_TO_TEACH))
    every = unseen_pairs(first, scoring.PICTURES + scoring.TRIAL_PICTURES)
    assert every[: scoring.PICTURES] == unseen_pairs(first, scoring.PICTURES)
    assert {"to the left of", "above", "and", "inside"} <= set(scoring.phrases())
