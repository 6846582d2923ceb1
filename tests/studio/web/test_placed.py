"""Parts of a picture with prompts of their own, and further prompts, as the page asks for them and shows them again."""

from __future__ import annotations

import base64
import io

import gradio as gr
import pytest
from PIL import Image

from pipelines.concepts.card import ConceptCard
from pipelines.request.request import Request
from studio.jobs.history import said_in
from studio.jobs.jobs import Jobs
from studio.web.pages.generate import GeneratePage
from studio.web.panels.painted import START
from studio.web.panels.placed import drawn_in, placed
from tests.studio.web.test_pages import asked, page, write_concept

FOX = {"phrase": "a fox", "box": [0.1, 0.2, 0.5, 0.6]}
PART = {**FOX, "phrase": "a <b> cat", "part": True, "soft": 0.1, "avoid": "a dog"}


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


def brushed(box=(16, 8, 48, 32), mode="RGBA"):
    """The address of a mask as the browser paints it: white strokes on nothing."""
    mask = Image.new(mode, (64, 64))
    mask.paste("white", box)
    stream = io.BytesIO()
    mask.save(stream, format="PNG")
    return START + base64.b64encode(stream.getvalue()).decode()


def test_parts_and_further_prompts_reach_the_request_and_bring_their_concepts(jobs):
    for name in "bc":
        write_concept(jobs.learned / f"{name}.safetensors", ConceptCard(token=f"<{name}>"))
    also = [{"prompt": "a <c>", "weight": -0.5}, {"prompt": " ", "weight": 1}]
    generate = page(GeneratePage, jobs)
    job = jobs.get(asked(generate, "blue", boxes=[FOX, PART, {**PART, "phrase": ""}], also=also))
    order = job.spec["request"]
    assert order["boxes"] == [FOX]
    region = {"prompt": "a <b> cat", "negative_prompt": "a dog", "box": FOX["box"], "soft": 0.1}
    assert order["regions"] == [region]
    assert order["also"] == [{"prompt": "a <c>", "weight": -0.5}]
    assert [use["source"] for use in order["concepts"]] == ["b", "c"]
    assert "a dog" not in said_in(job) and "a <b> cat" in said_in(job) and "a <c>" in said_in(job)
    # The form of the job asks for the same again.
    base, prompt, chips, boxes, plan, *form = generate.form_of_job(job)[: 5 + len(generate.form.components)]
    again = generate.submit(base, prompt, chips, boxes, plan | {"seed": 3, "keep": True}, "", *form)
    assert jobs.get(again).spec["request"] == order


def test_a_brushed_part_is_a_picture_that_is_stored_once_and_shown_again(jobs):
    _, (region,) = placed(jobs, [{**PART, "mask": brushed()}])
    assert "box" not in region
    with Image.open(jobs.pictures.path(region["mask"])) as stored:
        assert (stored.convert("L").getbbox(), stored.convert("L").getextrema()) == ((16, 8, 48, 32), (0, 255))
    for mask in (region["mask"], f"pictures/{region['mask']}.png"):  # in an order, and in the picture it made
        (one,), lost = drawn_in(jobs, Request(prompt="x", regions=({**region, "mask": mask},)))
        assert one["mask"].startswith("data:image/png") and one["box"] == [0.25, 0.125, 0.75, 0.5] and not lost
        assert placed(jobs, [one]) == ([], [region])
    jobs.pictures.path(region["mask"]).unlink()
    assert drawn_in(jobs, Request(prompt="x", regions=({**region, "mask": mask},))) == ([], ["a <b> cat"])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"box": [0, 0, 1, 1.5]}, "outside"),
        ({"soft": 3}, r"soft"),
        ({"mask": "data:text/html,x"}, "no PNG"),
        ({"mask": brushed((0, 0, 0, 0))}, "Nothing in the picture is marked"),
        ({"mask": brushed(), "file": "../../etc/passwd"}, "no picture"),
    ],
)
def test_what_cannot_be_a_part_is_said(jobs, part, said):
    with pytest.raises(gr.Error, match=said):
        asked(page(GeneratePage, jobs), boxes=[{**PART, **part}])
    assert jobs.list() == []


def test_a_picture_to_start_from_is_changed_as_a_whole(jobs):
    name = jobs.pictures.add(pixels(), "x.png")
    generate = page(GeneratePage, jobs)
    job = jobs.get(asked(generate, inpaint={"image": name, "strength": 0.4, "mask": "no field of it"}))
    assert job.spec["request"]["inpaint"] == {"image": name, "strength": 0.4}
    shown = dict(zip(generate.form.paths, generate.form_of_job(job)[5:], strict=False))
    assert shown["inpaint"] == {"image": name, "strength": 0.4}
    made = Request(prompt="x", inpaint={"image": f"pictures/{name}.png", "strength": 0.4})
    assert next(iter(generate.form.shown(made))) == shown["inpaint"], "a picture names it by its place"
    part = Request(prompt="x", inpaint={"image": "a.png", "mask": "b.png"})
    assert next(iter(generate.form.shown(part))) is None, "which is painted on Edit"
    for wrong in ({"image": "../x"}, {"image": "0123456789abcdef"}, {"image": name, "strength": 2}):
        with pytest.raises(gr.Error, match=r"no picture|strength"):
            asked(generate, inpaint=wrong)
    assert len(jobs.list()) == 1


def pixels():
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, format="PNG")
    return stream.getvalue()
