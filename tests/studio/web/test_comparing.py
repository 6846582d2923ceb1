"""Comparing on the page, without a browser: what is offered, what is asked for, what is shown of it."""

from __future__ import annotations

import gradio as gr
import pytest
from PIL import Image

from pipelines.concepts.card import ConceptCard
from pipelines.pictures.metadata import Made, save_png
from pipelines.request.axes import comparable, values_in
from pipelines.request.request import Defaults, Request
from studio.jobs.jobs import Jobs
from studio.web.pages.edit import EditPage
from studio.web.pages.generate import GeneratePage
from studio.web.panels.comparing import FIELDS, Comparing, choices, first_word, suggestion
from studio.web.panels.watching import JobMessages
from tests.studio.web.test_pages import page, write_concept

PLAN = {"count": 4, "size": "square", "seed": 3, "keep": True}


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


def asked(generate, *compared, prompt="a fox", chips=(), boxes=()):
    values = [component.value for component in generate.form.components]
    return generate.submit("pocket", prompt, list(chips), list(boxes), PLAN, "", *values, *compared)


def test_what_is_offered_can_be_compared_with_what_is_suggested(jobs):
    assert set(FIELDS) <= {field.replace("NAME", "1") for field in comparable()}
    write_concept(jobs.learned / "c.safetensors", ConceptCard(token="<c>"))
    chips = [{"id": "c", "token": "<c>", "on": True, "strength": 1.0}]
    generate = page(GeneratePage, jobs)
    for _, field in choices(chips)[1:]:
        values = suggestion(field, "a fox on a red background", 3)
        if field == "prompt":
            assert values == "a fox on a red background | "
            values += "a cat"
        boxes = [{"phrase": "a fox", "box": [0, 0, 0.5, 0.5]}]
        job = jobs.get(asked(generate, field, values, "", "", chips=chips, boxes=boxes))
        assert (job.spec["compare"][0]["field"], job.spec["request"]["count"]) == (field, 1)
        assert len(job.spec["compare"][0]["values"]) >= 2


def test_suggestions_begin_with_what_is_there():
    assert values_in(suggestion("seed", "", 7)) == ("7", "8", "9", "10")
    assert values_in(suggestion("words", "two of a cat", 0)) == ("cat", "fox", "dog")
    assert values_in(suggestion("words", "a <my-wolf> and", 0))[0] == "<my-wolf>"
    assert suggestion("words", "", 0) == suggestion("width", "a", 0) == ""
    assert [first_word(text) for text in ("The big fox", "a", "(red:1.3) x", "éclair, x")] == [
        "big",
        "",
        "red",
        "éclair",
    ]
    assert suggestion("concepts.my-wolf.strength", "", 0) == suggestion("concepts.1.strength", "", 0) != ""


def test_choosing_a_field_fills_in_values_and_says_what_they_are():
    said = Comparing.suggest("words", " a fox ", None)
    assert said["value"].startswith("fox, ") and "takes" not in said["info"] and "first" in said["info"]
    assert Comparing.suggest("", "a fox", {})["value"] == Comparing.suggest(None, None, None)["value"] == ""
    other = {"id": "xl", "token": "<xl>", "problem": "for another base"}
    offered = Comparing.offer([{"id": "my-wolf", "token": "<my-wolf>", "problem": ""}, other, "no chip"])
    assert [update["choices"][-1] for update in offered] == [("Strength of <my-wolf>", "concepts.my-wolf.strength")] * 2


def test_any_number_of_candidates_comes_back_and_can_be_asked_for_again(jobs):
    generate = page(GeneratePage, jobs)
    number = generate.comparing.components[4]
    for count in (3, 64):
        job = jobs.get(asked(generate, "", "", "", "", number.preprocess(count)))
        restored = Comparing.restored(job.spec)[4]
        assert job.spec["best_of"] == count == number.preprocess(number.postprocess(restored))
    for count in (0, 65):
        with pytest.raises(gr.Error):
            number.preprocess(count)
    assert Comparing.best(["", "", "", "", number.preprocess(None)]) == 1


def test_two_axes_are_asked_for_and_none_is_a_plain_request(jobs):
    generate = page(GeneratePage, jobs)
    spec = jobs.get(asked(generate, "guidance.scale", "1, 2", "prompt", "a fox, asleep | a cat")).spec
    assert spec["compare"] == [
        {"field": "guidance.scale", "values": ["1", "2"]},
        {"field": "prompt", "values": ["a fox, asleep", "a cat"]},
    ]
    (only,) = jobs.get(asked(generate, "", "1, 2", "steps", "1, 2")).spec["compare"]
    assert only["field"] == "steps"
    plain = jobs.get(asked(generate, "", "", None, None)).spec
    assert "compare" not in plain and plain["request"]["count"] == 4


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (("steps", " ", "", ""), "No values are given for 'Steps'"),
        (("steps", "1, many", "", ""), "steps cannot be 'many'"),
        (("concepts.1.strength", "1, 2", "", ""), "no concepts"),
        (("grounding.beta", "0.3, 1", "", ""), "no boxes"),
        (("steps", "1, 2", "steps", "3"), "twice"),
    ],
)
def test_what_cannot_be_compared_is_said_and_nothing_is_queued(jobs, compared, said):
    with pytest.raises(gr.Error, match=said):
        asked(page(GeneratePage, jobs), *compared)
    assert jobs.list() == []


@pytest.fixture
def compared(jobs):
    """A comparison of two scales that is done, as its process would leave it."""
    generate = page(GeneratePage, jobs)
    job = asked(generate, "guidance.scale", "1, 2.5", "", "")
    folder = jobs.places.job(job)
    folder.mkdir(parents=True)
    Image.new("RGB", (300, 140)).save(folder / "comparison.png")
    for number, scale in enumerate((1, 2.5)):
        request = Request.read({"prompt": "a fox", "guidance": {"scale": scale}, "seed": 3})
        made = Made(request.resolved(Defaults(size=64)), 0, "pocket", "f")
        save_png(Image.new("RGB", (64, 64)), folder / f"3-{number}.png", made)
    names = [f"jobs/{job}/{name}.png" for name in ("comparison", "3-0", "3-1")]
    assert jobs.ledger.claim(job, 1, 1.0) and jobs.ledger.move(job, ("running",), "done", results=names)
    return generate, job


def test_the_sheet_comes_first_and_cells_say_what_they_are(jobs, compared):
    generate, job = compared
    shown = dict(zip(map(id, generate.answer.said()), generate.answer.seen(JobMessages(jobs.get(job))), strict=True))
    gallery, facts = shown[id(generate.answer.gallery)], shown[id(generate.answer.facts)]
    pictures = gallery["value"]
    assert [one["caption"] for one in pictures] == ["all", "guidance scale 1", "guidance scale 2.5"]
    assert [(one["width"], one["sheet"]) for one in pictures] == [(300, True), (64, False), (64, False)]
    assert "64 x 64 pixels" in gallery["hint"]
    assert "guidance.scale: 1, 2.5" in facts
    _, said = generate.answer.look(job, gr.EventData(None, {"index": 2}))
    assert "2.5" in said and "<th>prompt</th>" in said
    _, said = generate.answer.look(job, gr.EventData(None, {"index": 0}))
    assert "across" in said


def test_settings_of_a_cell_come_back_and_the_sheet_has_none(jobs, compared):
    generate, job = compared
    prompt, _, _, plan, *more = generate.reuse("pocket", job, 2)
    fields = generate.form.given(more)
    assert (prompt, plan["seed"], plan["count"], fields["guidance"]["scale"]) == ("a fox", 3, 1, 2.5)
    assert generate.same_seed(job, 1, {"count": 8}) == {"count": 8, "seed": 3, "keep": True}
    edit = page(EditPage, jobs)
    for use in (lambda *chosen: generate.reuse("pocket", *chosen), edit.take_result):
        with pytest.raises(gr.Error, match="Choose one of its pictures"):
            use(job, 0)
        with pytest.raises(gr.Error, match="no longer there"):
            use(job, 3)
    assert jobs.pictures.path(edit.take_result(job, 1)["id"]).is_file()
    assert Comparing.cleared() == ["", "", "", "", 1]
