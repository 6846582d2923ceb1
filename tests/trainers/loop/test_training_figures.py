"""The benchmark of training steps measures what it says, on a small base."""

from __future__ import annotations

import pytest

from benchmarks import generation, many
from benchmarks.training import WAYS, Figures, measured, table
from tests import tiny


@pytest.mark.usefixtures("one_thread")
def test_steps_are_timed_and_what_is_trained_is_counted(monkeypatch):
    monkeypatch.setitem(WAYS, "lora", (WAYS["lora"][0], WAYS["lora"][1] | {"token": "cow"}))
    rows = [measured(tiny.sd(), way, 3) for way in ("textual-inversion", "lora")]
    word, lora = rows
    assert word.trained == 32 and lora.trained > 1000
    assert all(0 < row.cpu <= 4 * row.wall and 100 << 20 < row.peak < 64 << 30 for row in rows)


def test_figures_are_shown_in_milliseconds_and_mebibytes():
    shown = table([Figures("full", 2, 0.5, 0.75, 3 << 20, 1234)]).splitlines()[-1]
    assert shown == "| full | 2 | 500 | 750 | 3 | 1,234 |"


@pytest.mark.usefixtures("one_thread")
def test_words_learned_at_once_are_timed_and_stand_beside_one_alone():
    rows = [many.measured(tiny.sd(), "tiny", words, 2) for words in (1, 2)]
    assert [row.words for row in rows] == [1, 2] and all(row.wall > 0 for row in rows)
    shown = many.table([many.Pace("a", 1, 0.5, 1.0), many.Pace("a", 4, 1.0, 2.0)]).splitlines()
    assert shown[-1] == "| a | 4 | 1000 | 2000 | 4.00 | 2.00 |"


@pytest.mark.usefixtures("one_thread")
def test_pictures_are_timed_beside_those_of_diffusers_and_are_the_same():
    rows = generation.measured(tiny.sd_pipeline(), "tiny", 2, 1, steps=2)
    assert [row.way for row in rows] == ["diffusers", "studio", "studio, previews"]
    assert all(row.differs == 0 and row.cpu > 0 for row in rows)
    assert "| tiny | 2 | diffusers |" in generation.table(rows)
