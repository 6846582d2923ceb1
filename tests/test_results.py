"""The figures of README and of the page of results are those of `docs/results.json`, and tell where they come from."""

from __future__ import annotations

import json

import pytest

from benchmarks import results

KEPT = results.read()


def test_pages_show_what_was_measured():
    for path in results.marked():
        text = path.read_text(encoding="utf-8")
        assert results.filled(text, KEPT) == text, f"{path}: run python -m benchmarks.results --write"
    assert results.PAGE.read_text(encoding="utf-8") == results.page(KEPT)


def test_a_figure_that_was_changed_by_hand_is_found():
    text = "<!-- results: pocket -->\nold\n<!-- end -->"
    right = results.filled(text, KEPT)
    figure = f"{KEPT['pocket']['figures']['one_object_drawn']:.3f}"
    assert figure in right
    assert results.filled(right.replace(figure, "0.999"), KEPT) == right


def test_results_of_other_weights_say_so():
    now = {"pocket": {**KEPT["pocket"], "pocket": results.weights("pocket")}}
    assert "earlier weights" not in "\n".join(results.section("pocket", now))
    assert "earlier weights" in "\n".join(
        results.section("pocket", {"pocket": {**KEPT["pocket"], "pocket": "another"}})
    )
    assert len({results.weights(name) for name in ("pocket", "boxes", "questions")}) == 3
    assert results.section("masks", {})[0].startswith("Not measured yet: `studio score --masks")


def test_the_card_of_pocket_shows_the_same_figures():
    scores = json.loads((results.ROOT / "pipelines" / "models" / "pocket" / "scores.json").read_text(encoding="utf-8"))
    assert KEPT["pocket"]["pocket"] != results.weights("pocket") or KEPT["pocket"]["figures"] == scores


@pytest.mark.parametrize("name", list(KEPT))
def test_every_result_is_of_a_command_that_is_there(name):
    assert KEPT[name]["command"] == results.shown(results.MEASUREMENTS[name])
    assert any(line.startswith("| ") for line in results.section(name, KEPT))


def test_a_command_is_run_and_what_it_prints_is_kept(monkeypatch):
    printing = results.Measurement("one", ("json.tool", "pipelines/models/pocket/scores.json"), results.pocket_table)
    monkeypatch.setitem(results.MEASUREMENTS, "one", printing)
    kept = results.run("one")
    assert kept["figures"]["prompts"] == 200 and kept["pocket"] == results.weights("pocket") and kept["minutes"] < 1
    assert kept["command"] == "python -m json.tool pipelines/models/pocket/scores.json"
