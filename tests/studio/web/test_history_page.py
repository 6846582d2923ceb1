"""The page of all pictures, without a browser: its filters and acts name only what the record has."""

from __future__ import annotations

import gradio as gr
import pytest
from PIL import Image

from pipelines.pictures.metadata import Made, save_png
from pipelines.request.request import Defaults, Request
from studio.jobs.jobs import Jobs
from studio.web.pages.generate import GeneratePage
from studio.web.pages.pictures import EVERYTHING, FAVOURITES, PicturesPage
from tests.studio.web.test_pages import page


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


@pytest.fixture
def pictures(jobs):
    with gr.Blocks(analytics_enabled=False):
        return PicturesPage(jobs)


def made(jobs, prompt, count=1):
    job = jobs.submit_generation({"prompt": prompt, "count": count, "seed": 5}).id
    request = Request(prompt=prompt, count=count, seed=5, steps=7).resolved(Defaults(size=64))
    jobs.places.job(job).mkdir(parents=True)
    names = [f"jobs/{job}/{5 + index}.png" for index in range(count)]
    for index, name in enumerate(names):
        save_png(Image.new("RGB", (64, 64)), jobs.folder / name, Made(request, index, "pocket", "f"))
    assert jobs.ledger.claim(job, 1, 1.0) and jobs.ledger.move(job, ("running",), "done", results=names)
    return job


ALL = ("", "", "", "any time", EVERYTHING, 60)


def shown(answer):
    return answer[0]["value"]


def test_pictures_are_shown_with_what_was_asked_and_more_on_demand(jobs, pictures):
    fox, cat = made(jobs, "a fox"), made(jobs, "a cat", 2)
    found = shown(pictures.refresh(*ALL))
    assert [(one["job"], one["name"]) for one in found] == [(cat, "5.png"), (cat, "6.png"), (fox, "5.png")]
    assert found[0]["caption"].startswith("a cat · ") and found[1]["src"].endswith(f"/{cat}/pictures/1")
    assert [one["job"] for one in shown(pictures.refresh("FOX", *ALL[1:]))] == [fox]
    few = pictures.refresh(*ALL[:-1], 2)
    assert len(shown(few)) == 2 and few[1]["visible"] is True
    count, *more = pictures.further(*ALL[:-1], 2)
    assert (count, len(shown(more)), more[1]["visible"]) == (62, 3, "hidden")
    assert pictures.anew(*ALL)[0] == 60


def test_ticked_ones_are_meant_else_the_chosen_one(jobs, pictures):
    made(jobs, "a fox", 3)
    found = shown(pictures.refresh(*ALL))
    assert pictures.picked(found, 1) == [(found[1]["job"], "6.png")]
    found[0]["picked"] = found[2]["picked"] = True
    assert [name for _, name in pictures.picked(found, 1)] == ["5.png", "7.png"]
    with pytest.raises(gr.Error, match="no picture"):
        pictures.picked([], 0)


def test_boards_favourites_and_tags_are_kept_and_found(jobs, pictures):
    made(jobs, "a fox", 2)
    found = shown(pictures.refresh(*ALL))
    assert [one["liked"] for one in shown(pictures.ask_like(found, 1, *ALL))] == [False, True]
    assert [one["name"] for one in shown(pictures.refresh("", "", "", "any time", FAVOURITES, 60))] == ["6.png"]
    assert not any(one["liked"] for one in shown(pictures.ask_like(found, 1, *ALL)))
    answer = pictures.ask_put(found, 0, "wölfe & co", *ALL)
    assert ("wölfe & co (1)", "wölfe & co") in answer[2]["choices"]
    on = pictures.refresh("", "", "", "any time", "wölfe & co", 60)
    assert len(shown(on)) == 1 and "/boards/w%C3%B6lfe%20%26%20co/archive" in on[5]
    *answer, cleared = pictures.ask_tag(found, 0, "#big, for print", *ALL)
    assert cleared == "" and "#print" in shown(answer)[0]["caption"]
    assert len(shown(pictures.refresh("print", *ALL[1:]))) == 1
    # a board that is empty again is no longer looked at
    pictures.ask_put(found, 0, "", *ALL)
    assert pictures.refresh("", "", "", "any time", "wölfe & co", 60)[2]["value"] == EVERYTHING


def test_deleted_pictures_are_brought_back(jobs, pictures):
    made(jobs, "a fox", 2)
    found = shown(pictures.refresh(*ALL))
    *answer, undo, thrown = pictures.ask_delete(found, 0, *ALL)
    assert (len(shown(answer)), undo["value"], len(thrown)) == (1, "Undo: bring 1 picture back", 1)
    *answer, undo, thrown = pictures.ask_undo(thrown, *ALL)
    assert (shown(answer), undo["visible"], thrown) == (found, "hidden", [])


def test_chosen_parts_of_the_settings_are_used_again(jobs, pictures):
    made(jobs, "a fox", 2)
    generate = page(GeneratePage, jobs)
    found = shown(pictures.refresh(*ALL))
    read = pictures.made_with(found, 1)
    prompt, _, _, plan, *form = generate.use_again("pocket", read, ["prompt", "seed"])
    assert (prompt, plan["seed"], plan["keep"]) == ("a fox", 6, True)
    assert all(value == gr.skip() for value in form)
    (
        prompt,
        *_,
    ) = generate.use_again("pocket", read, ["settings"])
    assert prompt == gr.skip()
    steps = generate.use_again("pocket", read, ["settings"])[4 + generate.form.paths.index("steps")]
    assert steps == 7


@pytest.mark.parametrize("wrong", [[{"job": "../..", "name": "x"}], [{"job": 3}], ["x"], None])
def test_what_a_browser_sends_leads_nowhere(jobs, pictures, wrong):
    made(jobs, "a fox")
    for act in (pictures.ask_like, lambda shown, at, *asked: pictures.ask_put(shown, at, "b", *asked)):
        with pytest.raises(gr.Error, match=r"no job|no longer there|There is no picture"):
            act(wrong, 0, *ALL)
    with pytest.raises(gr.Error, match=r"no job|no longer there|There is no picture"):
        pictures.look(wrong, gr.EventData(None, {"index": 0}))
