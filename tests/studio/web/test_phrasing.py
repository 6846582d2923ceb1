"""Words drawn by lot, styles and earlier prompts on the page, without a browser."""

from __future__ import annotations

import gradio as gr
import pytest

from pipelines.errors import RequestError
from pipelines.models.known_words import known_words
from studio.jobs.jobs import Jobs
from studio.web.pages.generate import GeneratePage
from studio.web.panels.phrasing import by_lot, drawn, lists_of, several
from tests.studio.web.test_pages import page

LISTS = {"animals": ("fox", "cat"), "colour": ("blue",)}


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


def submit(generate, prompt, count=1, seed=3, style="", *compared):
    plan = {"count": count, "size": "square", "seed": seed, "keep": True}
    values = [component.value for component in generate.form.components]
    return generate.jobs.get(generate.submit("pocket", prompt, [], [], plan, style, *values, *compared)).spec


def test_one_of_the_words_is_drawn_and_a_seed_draws_the_same():
    prompt = "a {fox| cat |dog} on a __colour__ background"
    all_ = {drawn(prompt, seed, LISTS) for seed in range(40)}
    assert all_ == {f"a {one} on a blue background" for one in ("fox", "cat", "dog")}
    assert drawn(prompt, 5, LISTS) == drawn(prompt, 5, LISTS)
    assert drawn("a {fox} and a fox_trot", 1, LISTS) == "a {fox} and a fox_trot"
    assert drawn("{__animals__|__animals__}", 1, LISTS) in ("fox", "cat")
    with pytest.raises(RequestError, match="no list __birds__"):
        drawn("a __birds__", 1, LISTS)
    assert (by_lot("a {b|c}"), by_lot("a __b__"), by_lot("a {b}")) == (True, True, False)


def test_several_are_different_as_far_as_there_are_others():
    assert len(set(several("{a|b|c|d}", 1, 4, {}))) == len(several("{a|b|c|d}", 1, 4, {})) == 4
    assert sorted(several("{a|b}", 1, 8, {})) == ["a", "b"]


def test_lists_are_the_words_of_the_base():
    lists = lists_of("pocket")
    assert lists["thing"] == known_words("pocket").names and "owl" in lists["birds"]
    assert "sea-animals" in lists and lists_of("/nowhere") == {}


def test_a_job_has_what_was_drawn_and_several_pictures_are_compared(jobs):
    generate = page(GeneratePage, jobs)
    one = submit(generate, "a {fox|cat}")
    assert one["request"]["prompt"] in ("a fox", "a cat") and "compare" not in one
    four = submit(generate, "a __animals__ on a {blue|teal} background", 4)
    (axis,) = four["compare"]
    assert (axis["field"], len(set(axis["values"])), four["request"]["count"]) == ("prompt", 4, 1)
    compared = submit(generate, "a {fox|cat}", 4, 3, "", "steps", "1, 2", "", "")
    assert [axis["field"] for axis in compared["compare"]] == ["steps"]
    with pytest.raises(gr.Error, match="There are: __animals__"):
        submit(generate, "a __dwarfs__")


def test_a_style_is_saved_used_and_forgotten_and_prompts_are_remembered(jobs):
    generate = page(GeneratePage, jobs)
    style, *_ = generate.phrasing.ask_save("teal", "on a teal background")
    assert ("none", "") in style["choices"] and "teal" in style["choices"]
    assert submit(generate, "a fox", style="teal")["request"]["prompt"] == "a fox on a teal background"
    assert submit(generate, "a fox", style="gone")["request"]["prompt"] == "a fox"
    assert generate.phrasing.shown("teal") == ("on a teal background", "teal")
    with pytest.raises(gr.Error, match="name and words"):
        generate.phrasing.ask_save("", "x")
    earlier, styles = generate.phrasing.refresh()
    assert earlier["choices"] == ["a fox", "a fox on a teal background"]
    style, *_ = generate.phrasing.ask_delete("teal")
    assert style["choices"] == styles["choices"][:1]
