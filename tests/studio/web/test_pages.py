"""Handlers, forms and words of the pages, without a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re

import gradio as gr
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference
from pipelines.pictures.metadata import Made, save_png
from pipelines.request.request import ConceptUse, Defaults, Request
from studio.api.forms import settings_of
from studio.jobs.jobs import Jobs
from studio.jobs.store import Job
from studio.library import concepts
from studio.web.app import build, mount_options
from studio.web.components import base_choice
from studio.web.forms import Form, helps
from studio.web.pages.concepts import LibraryPage, cards_of
from studio.web.pages.edit import EditPage
from studio.web.pages.example import EXAMPLE as PAIR
from studio.web.pages.example import PARTS, ExamplePage
from studio.web.pages.generate import GeneratePage
from studio.web.pages.measure import MeasurePage
from studio.web.pages.offers import EXAMPLES, LABELS, PRESETS
from studio.web.pages.teach import WOLF, TeachPage, curves
from studio.web.panels.chips import chips_of, concepts_used
from studio.web.panels.planning import shapes
from studio.web.panels.subjects import FIELDS, NAMED, WHATS
from studio.web.panels.watching import JobMessages, curve, facts, picture_uri, progress, spoken, time_left
from studio.web.teaching.readiness import wrong_with

DEFAULTS = Defaults(size=64, scheduler="ddim")


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


def write_concept(path, card):
    return Concept(card, (torch.ones(card.vectors, 96),)).save(path)


def page(kind, jobs):
    with gr.Blocks(analytics_enabled=False):
        return kind(jobs) if kind in (LibraryPage, MeasurePage) else kind(jobs, base_choice(jobs.bases))


def job(**more):
    fields = {"id": "x", "kind": "training", "state": "running", "spec": {}, "created": 0.0, "started": 0.0} | more
    return Job(**fields)


# -- the whole --------------------------------------------------------------------------------------------------


def test_clients_find_endpoints_by_name(jobs):
    names = build(jobs).get_api_info()["named_endpoints"]
    assert {"/generation", "/follow_generation", "/cancel_generation", "/teach", "/check", "/pause"} <= set(names)


def test_nothing_on_the_page_names_another_host(jobs):
    options = mount_options(jobs)
    theme = options["theme"]
    said = options["css"] + theme._get_theme_css() + "".join(map(str, theme._stylesheets))
    assert not re.findall(r"https?://(?!www\.w3\.org)[^\s\"')]+", said)
    assert theme._stylesheets == []


# -- forms ------------------------------------------------------------------------------------------------------


def test_fields_have_the_help_and_the_limits_of_the_settings():
    with gr.Blocks(analytics_enabled=False):
        form = Form(Request, LABELS, "generation")
    by_path = dict(zip(form.paths, form.components, strict=True))
    told = helps("generation", Request, LABELS)
    assert "works only while guidance is on" in told["generation-negative_prompt"][1]
    assert not [said for _, said in told.values() if "arXiv" in said or "`" in said]
    assert set(told) == {component.elem_id for component in form.components}
    stop, scale, steps = (by_path[name].props for name in ("guidance.stop", "guidance.scale", "steps"))
    assert (stop["minimum"], stop["maximum"], stop["low"], stop["high"], stop["open"]) == (0, 1, 0, 1, False)
    assert (scale["minimum"], scale["maximum"], scale["low"], scale["high"], scale["open"]) == (0, 50, 1, 15, True)
    assert (steps["high"], steps["maximum"], steps["step"], by_path["steps"].value) == (100, 1000, 1, None)
    assert [choice[0] for choice in by_path["scheduler"].choices][:2] == ["automatic", "ddim"]


def test_a_form_gives_back_what_it_shows():
    with gr.Blocks(analytics_enabled=False):
        form = Form(Request, LABELS, "generation")
    asked = Request(
        prompt="x", negative_prompt="blurry", guidance={"scale": 3, "stop": 0.5}, steps=7, scheduler="euler"
    )
    fields = form.given(list(form.shown(asked)))
    assert Request.read(fields | {"prompt": "x"}) == asked
    assert form.given([""] * len(form.paths)) == form.given([None] * len(form.paths)) == {}


# -- generating -------------------------------------------------------------------------------------------------


def test_concepts_are_used_when_switched_on_or_said(jobs):
    for name in "abcd":
        write_concept(jobs.learned / f"{name}.safetensors", ConceptCard(token=f"<{name}>"))
    chips = [
        {"id": "a", "token": "<a>", "on": True, "strength": 0.5},
        {"id": "b", "token": "<b>", "on": False, "strength": 1.0},
        {"id": "c", "token": "<c>"},
        "not a chip",
    ]
    assert concepts_used(jobs, chips, "an <a>") == [{"source": "a", "strength": 0.5}]
    assert [use["source"] for use in concepts_used(jobs, chips, "x", "a box with <b>")] == ["a", "b"]
    assert concepts_used(jobs, chips, "a <d>, which no chip shows")[1] == {"source": "d", "strength": 1.0}
    assert concepts_used(jobs, None, "x") == []
    slider = ConceptCard(token="red", kind="slider", vectors=0)
    Concept(slider, (), {"unet.a": Difference(torch.ones(1))}).save(jobs.learned / "s.safetensors")
    assert concepts_used(jobs, [], "a red box") == []  # no prompt calls a slider
    assert concepts_used(jobs, [{"id": "s", "on": True, "strength": -1.5}], "x") == [{"source": "s", "strength": -1.5}]


def asked(generate, prompt="a fox", chips=(), boxes=(), seed=3, count=2, **more):
    fields = zip(generate.form.paths, generate.form.components, strict=True)
    values = [more.get(path, component.value) for path, component in fields]
    plan = {"count": count, "size": "square", "seed": seed, "keep": seed is not None}
    return generate.submit("pocket", prompt, list(chips), list(boxes), plan, "", *values)


def test_a_request_is_queued_as_it_was_asked(jobs):
    generate = page(GeneratePage, jobs)
    job = jobs.get(asked(generate, steps=9))
    assert job.kind == "generation"
    assert job.spec["request"]["prompt"] == "a fox"
    assert {job.spec["request"][name] for name in ("seed", "count", "steps")} == {3, 2, 9}


def test_candidates_are_asked_for_beside_a_comparison(jobs):
    generate = page(GeneratePage, jobs)
    components = [component.value for component in generate.form.components]
    plan = {"count": 1, "size": "square", "seed": 3, "keep": True}
    asking = ("pocket", "a fox", [], [], plan, "", *components, "", "", "", "")
    best, plain = (jobs.get(generate.submit(*asking, count)) for count in (4, 1))
    assert best.spec["best_of"] == 4 and "best_of" not in plain.spec
    assert (generate.form_of_job(best)[-1], generate.form_of_job(plain)[-1]) == (4, 1)


def test_boxes_without_words_are_left_out_and_no_file_is_named_by_a_browser(jobs):
    boxes = [
        {"phrase": "a <b>", "box": [0, 0, 0.5, 0.5], "picture": "/etc/passwd"},
        {"phrase": " ", "box": [0, 0, 1, 1]},
        "no box",
    ]
    write_concept(jobs.learned / "b.safetensors", ConceptCard(token="<b>"))
    chips = [{"id": "b", "token": "<b>", "on": False}]
    asked_for = jobs.get(asked(page(GeneratePage, jobs), boxes=boxes, chips=chips)).spec["request"]
    assert asked_for["boxes"] == [{"phrase": "a <b>", "box": [0, 0, 0.5, 0.5]}]
    assert asked_for["concepts"] == [{"source": "b", "strength": 1.0}]
    with pytest.raises(gr.Error, match="outside the picture"):
        asked(page(GeneratePage, jobs), boxes=[{"phrase": "x", "box": [0, 0, 1, 1.5]}])


@pytest.mark.parametrize(("path", "value"), [("steps", "many"), ("width", 7), ("guidance.scale", -1)])
def test_what_cannot_be_is_said_with_its_field(jobs, path, value):
    with pytest.raises(gr.Error, match=path):
        asked(page(GeneratePage, jobs), **{path: value})
    assert jobs.list() == []


def test_examples_and_presets_are_valid_requests():
    for name, prompt, boxes in EXAMPLES:
        assert len(Request.read({"prompt": prompt, "boxes": list(boxes)}).boxes) == len(boxes), name
    for preset in PRESETS.values():
        Request.read({"prompt": "x", "guidance": preset})


def test_settings_come_back_from_a_picture_of_which_only_names_of_files_count(jobs, tmp_path):
    write_concept(jobs.learned / "my-wolf.safetensors", ConceptCard(token="<my-wolf>"))
    uses = (ConceptUse(source="/etc/my-wolf.safetensors", strength=0.7),)
    made = Made(
        Request(prompt="a <my-wolf>", seed=5, count=3, concepts=uses).resolved(DEFAULTS),
        2,
        "pocket",
        "f",
        digests=("d",),
    )
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "x.png", made)
    generate = page(GeneratePage, jobs)
    prompt, chips, _, plan, *_ = generate.reuse_dropped("pocket", str(path))
    assert (prompt, plan["seed"], plan["count"], plan["keep"]) == ("a <my-wolf>", 7, 1, True)
    assert [(chip["id"], chip["on"], chip["strength"]) for chip in chips] == [("my-wolf", True, 0.7)]
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(gr.Error, match="does not say how it was made"):
        generate.reuse_dropped("pocket", str(path))


def test_a_picture_of_another_program_fills_the_form_and_says_what_is_not_taken(jobs, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    info = PngInfo()
    info.add_text(
        "parameters",
        "a fox <lora:ink:1>\nNegative prompt: dog\nSteps: 7, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3, "
        "Seed: 9, Size: 64x96, Model: v1-5, Clip skip: 2, Version: v1.10.0",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=info)
    generate = page(GeneratePage, jobs)
    prompt, chips, boxes, plan, *form = generate.reuse_dropped("pocket", str(tmp_path / "theirs.png"))
    assert (prompt, boxes, plan["seed"], plan["count"]) == ("a fox", [], 9, 1)
    assert not any(chip["on"] for chip in chips)
    assert plan["size"] == "tall"
    asked = Request.read({"prompt": prompt} | generate.form.given(form))
    assert (asked.negative_prompt, asked.steps, asked.scheduler, asked.spacing) == ("dog", 7, "dpm++2m", "karras")
    assert (asked.width, asked.height, asked.guidance.scale, asked.clip_skip) == (64, 96, 3.0, 2)
    assert len(warned) == 1 and "Model v1-5" in warned[0] and "lora:ink:1" in warned[0]


def test_a_learned_concept_begins_a_prompt(jobs):
    write_concept(jobs.learned / "r.safetensors", ConceptCard(token="<r>", kind="relation", example="a cat <r> a box"))
    tabs, prompt, chips, boxes, words = page(GeneratePage, jobs).take("pocket", "r")
    assert tabs["selected"] == "generate"
    assert (prompt, chips[0]["on"], boxes["choices"][:2]) == ("a cat <r> a box", True, ["<r>", "fox"])
    assert words["learned"] == ["<r>"]
    with pytest.raises(gr.Error, match="no concept"):
        page(GeneratePage, jobs).take("pocket", "../r")


def test_the_canvas_has_the_shape_of_the_picture_and_its_size_a_name(jobs):
    generate = page(GeneratePage, jobs)

    def shape(width, height):
        canvas, plan = generate.shape("pocket", width, height, {"count": 2})
        return canvas["width"], canvas["height"], plan

    assert shape(64, 32) == (64, 32, {"count": 2, "size": "own"})
    assert shape(None, 96) == (64, 96, {"count": 2, "size": "tall"})
    assert shape(None, None) == (64, 64, {"count": 2, "size": "square"})


def test_sizes_are_those_of_the_base_and_set_width_and_height(jobs):
    generate = page(GeneratePage, jobs)
    sizes = [generate.resize("pocket", {"size": name}) for name in ("square", "wide", "tall")]
    assert sizes == [[None, None], [96, 64], [64, 96]]
    for width, height in sizes[1:]:
        Request.read({"prompt": "x", "width": width, "height": height})
    assert shapes("nowhere") == {"square": (512, 512), "wide": (768, 512), "tall": (512, 768)}


def test_another_seed_is_drawn_for_each_job_unless_one_is_kept(jobs):
    generate = page(GeneratePage, jobs)
    drawn = {jobs.get(asked(generate, seed=None)).spec["request"]["seed"] for _ in range(5)}
    assert len(drawn) > 1
    kept = asked(generate, seed=5)
    assert jobs.get(kept).spec["request"]["seed"] == 5
    shown = generate.drawn(kept, {"count": 2, "seed": None, "keep": False})
    assert shown == {"count": 2, "seed": 5, "keep": False}
    for wrong in ({"count": "many"}, {"keep": True, "seed": "x"}, {"count": [1]}):
        with pytest.raises(gr.Error, match="no whole number"):
            generate.submit("pocket", "a fox", [], [], wrong, "", *[one.value for one in generate.form.components])


def test_the_whole_form_comes_back_from_a_job(jobs):
    write_concept(jobs.learned / "b.safetensors", ConceptCard(token="<b>"))
    generate = page(GeneratePage, jobs)
    boxes = [{"phrase": "a <b>", "box": [0, 0, 0.5, 0.5]}]
    fields = zip(generate.form.paths, generate.form.components, strict=True)
    values = [
        {"guidance.scale": 3.0, "width": 96, "negative_prompt": "a dog"}.get(path, one.value) for path, one in fields
    ]
    plan = {"count": 2, "size": "wide", "seed": 8, "keep": True}
    chips = [{"id": "b", "token": "<b>", "on": True, "strength": 0.5}]
    compared = ["steps", "1, 2", "", "", 1]
    asked_for = jobs.get(generate.submit("pocket", "a <b>", chips, boxes, plan, "", *values, *compared))
    base, prompt, chips, there, planned, *more = generate.form_of_job(asked_for)
    assert (base, prompt, there) == ("pocket", "a <b>", boxes)
    assert [(chip["id"], chip["on"], chip["strength"]) for chip in chips] == [("b", True, 0.5)]
    assert planned == {"count": 1, "size": "wide", "seed": 8, "keep": False}
    assert more[len(values) :] == compared
    shown = dict(zip(generate.form.paths, more, strict=False))
    assert (shown["guidance.scale"], shown["width"], shown["negative_prompt"], shown["steps"]) == (
        3.0,
        96,
        "a dog",
        None,
    )
    edit = page(EditPage, jobs)
    painted, _ = edit.take_example()
    repainted = jobs.get(repaint(edit, painted | {"mask": address(Image.new("L", (64, 64), 255))}))
    assert generate.form_of_job(repainted) is None


# -- editing ----------------------------------------------------------------------------------------------------


def address(picture):
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def repaint(edit, painted, **more):
    fields = zip(edit.form.paths, edit.form.components, strict=True)
    values = [more.get(path, component.value) for path, component in fields]
    return edit.submit("pocket", painted, "a cat", [], {"count": 1, "seed": 0, "keep": True}, *values)


def test_what_was_painted_becomes_a_mask_of_the_pictures_size(jobs):
    edit = page(EditPage, jobs)
    painted, prompt = edit.take_example()
    mask = Image.new("RGBA", (384, 384), "black")
    mask.paste("white", (0, 0, 192, 384))
    job = jobs.get(repaint(edit, painted | {"mask": address(mask)}, feather=3))
    asked = job.spec["request"]["inpaint"]
    with Image.open(jobs.pictures.path(asked["mask"])) as stored:
        grey = stored.convert("L")
    assert (grey.size, grey.getpixel((31, 5)), grey.getpixel((32, 5))) == ((64, 64), 255, 0)
    assert (asked["image"], asked["feather"], prompt) == (painted["id"], 3, "a cat on a pink background")
    named = jobs.get(repaint(edit, painted, name="the wolf")).spec["request"]["inpaint"]
    assert named["name"] == "the wolf" and "mask" not in named


def test_without_picture_or_paint_nothing_is_queued_and_ids_lead_nowhere(jobs, tmp_path):
    edit = page(EditPage, jobs)
    painted, _ = edit.take_example()
    black = address(Image.new("L", (64, 64)))
    for wrong, said in (
        (None, "no picture yet"),
        (painted, "no PNG"),
        (painted | {"mask": "data:image/png;base64,no"}, "no PNG"),
        (painted | {"mask": black}, "Nothing in the picture is marked"),
        ({"id": "../../etc/passwd", "mask": black}, "no picture of the id"),
        (["x"], "no picture yet"),
    ):
        with pytest.raises(gr.Error, match=said):
            repaint(edit, wrong)
    assert jobs.list() == []


# -- by example -------------------------------------------------------------------------------------------------


def test_an_example_and_a_query_become_a_question(jobs):
    ask = page(ExamplePage, jobs)
    values = [component.value for component in ask.form.components]
    pictures = [str(PAIR / f"{part}.png") for part in PARTS]
    asked_for = jobs.get(ask.submit("pocket", *pictures, "", {"seed": 4, "keep": True}, *values)).spec["request"]
    (pair,) = asked_for["in_context"]["examples"]
    ids = [pair["before"], pair["after"], asked_for["in_context"]["query"]]
    for identity, path in zip(ids, pictures, strict=True):
        with Image.open(jobs.pictures.path(identity)) as kept, Image.open(path) as given:
            assert kept.convert("RGB").tobytes() == given.convert("RGB").tobytes()
    assert asked_for["seed"] == 4
    with pytest.raises(gr.Error, match="'query' is missing"):
        ask.submit("pocket", *pictures[:2], None, "", {}, *values)


# -- teaching ---------------------------------------------------------------------------------------------------


def test_every_method_is_offered_with_settings_it_accepts_and_words_that_pocket_has():
    from pipelines.concepts.token_embeddings import single_rows
    from pipelines.models.loading import load
    from trainers.methods import methods

    assert {what.method.name for what in WHATS.values()} == set(methods())
    assert len(WHATS) == sum(len(method.offers) for method in methods().values())
    base = load("pocket")
    for what in WHATS.values():
        assert what.recipe_steps > 0 and len(what.words) <= FIELDS
        for said in (what.offer.values[word] for word in what.words[1:]):
            words = said.replace("->", "").split() if what.words[1] == "between" else [said]
            assert all(single_rows(base, word) for word in words)


def test_pictures_are_taken_in_turned_and_removed_and_what_is_said_of_them_stays(jobs, tmp_path):
    teach = page(TeachPage, jobs)
    wide = tmp_path / "wide.png"
    Image.new("RGB", (40, 20), "red").save(wide)
    (tmp_path / "bad.png").write_text("no picture")
    dataset, rows, _, files = teach.take([str(wide), str(tmp_path / "bad.png")], "")
    assert (len(rows["value"]), files) == (1, None)
    told = [{"name": "0001.png", "caption": "a red <thing>"}]
    teach.act(dataset, told, gr.EventData(None, {"name": "0001.png", "what": "turn"}))
    entry = jobs.datasets.entry(dataset, "0001.png")
    assert (entry.width, entry.height, entry.caption) == (20, 40, "a red <thing>")
    teach.act(dataset, told, gr.EventData(None, {"name": "0001.png", "what": "square"}))
    entry = jobs.datasets.entry(dataset, "0001.png")
    assert (entry.width, entry.height) == (20, 20)
    _, rows, _ = teach.act(dataset, told, gr.EventData(None, {"name": "0001.png", "what": "remove"}))
    assert rows["value"] == []
    with pytest.raises(gr.Error, match="no picture"):
        teach.act(dataset, [], gr.EventData(None, {"name": "../../x.png", "what": "turn"}))


@pytest.mark.parametrize("what", list(WHATS))
def test_a_training_is_queued_with_the_settings_of_its_method(jobs, what):
    teach, chosen = page(TeachPage, jobs), WHATS[what]
    dataset, rows, _, *words = teach.take_example(what, None)
    assert [word for word in words if word] == [chosen.offer.values[name] for name in chosen.words]
    told = [row | {"left": "cat", "right": "box"} for row in rows["value"]]
    main = (what, None) if what in NAMED else ("subject", what)  # of another way the page keeps what was chosen above
    job = jobs.get(teach.submit(*main, dataset, told, *words, "a quick look", "", "pocket"))
    assert job.spec["method"] == chosen.method.name
    assert chosen.offer.values.items() <= job.spec["settings"].items()
    assert job.spec["settings"]["steps"] == round(0.3 * chosen.recipe_steps)
    assert job.spec["settings"]["preview_every"] > 0
    assert jobs.datasets.entry(dataset, "0001.png").pair == ("cat", "box")
    check = jobs.get(teach.submit_check(*main, dataset, told, *words, "thorough", "12", "pocket"))
    assert (check.spec["dry_run"], int(check.spec["settings"]["steps"])) == (True, 12)


@pytest.mark.parametrize(("kind", "setting"), [("subject", "also"), ("object", "many")])
def test_things_put_aside_are_learned_in_the_same_run(jobs, kind, setting):
    teach = page(TeachPage, jobs)
    one, rows, *_ = teach.take_example(kind, None)
    other, others, *_ = teach.take_example(kind, None)
    asked = (kind, None, "pocket", one, rows["value"])
    sets, said, *_, dataset, left, _, token, start = teach.several.put_aside(*asked, "<one>", "fox", [])
    assert (dataset, left, token, start) == ("", [], "", "") and "<code>&lt;one&gt;</code> (4)" in said
    with pytest.raises(gr.Error, match="word of another thing"):
        teach.several.put_aside(*asked, "<one>", "fox", sets)
    with pytest.raises(gr.Error, match="new word is missing"):
        teach.several.put_aside(*asked, "", "fox", sets)
    job = teach.submit(kind, None, other, others["value"], "<other>", "cat", "recommended", "", "pocket", sets)
    settings = jobs.get(job).spec["settings"]
    assert (settings["token"], settings[setting]) == ("<other>", [f"{one}:<one>:fox"]) and settings["candidates"]
    jobs.cancel(job)
    alone = jobs.get(teach.submit(kind, None, "", [], "", "", "recommended", "", "pocket", sets)).spec
    assert (alone["dataset"], alone["settings"]["token"]) == (one, "<one>") and setting not in alone["settings"]
    assert "You will say" in teach.readiness(kind, None, "", "", "", "recommended", "", "pocket", sets)
    with pytest.raises(gr.Error, match="one thing at a time"):
        teach.submit("relation", None, other, others["value"], "<ink>", "on", "recommended", "", "pocket", sets)


def test_every_setting_that_a_client_decides_is_on_the_page_and_reaches_its_method(jobs):
    teach = page(TeachPage, jobs)
    for what, chosen in WHATS.items():
        forms = [*teach.advanced.forms[chosen.method.name], *teach.advanced.shared]
        shown = {path for form in forms for path in form.paths}
        offered = set(settings_of(chosen.method.name).model_fields) - shown
        assert offered <= {"steps", "keep_every", "preview", *chosen.offer.words}, what
        assert all(component.label and component.info for form in forms for component in form.components)
    names = [(form, path) for form in teach.advanced._all() for path in form.paths]
    others = teach.advanced.forms["reversion"]  # what was set for another method stays there
    given = {"dora": "true", "flip": "0.25"}
    values = ["64" if form in others and path == "rank" else given.get(path, "") for form, path in names]
    first = next(place for place, (form, path) in enumerate(names) if path == "rank" and form not in others)
    values[first] = "8"
    dataset, rows, *_ = teach.take_example("subject", None)
    job = teach.submit("subject", None, dataset, rows, "<x>", "fox", "recommended", "", "pocket", [], *values)
    settings = jobs.get(job).spec["settings"]
    assert (settings["rank"], settings["dora"], settings["flip"]) == ("8", "true", "0.25")
    assert "basis" not in settings and settings["pivotal"] is True
    values = ["on\n under " if path == "basis" else "" for _, path in names]
    words = ["<r>", "on", "recommended", "", "pocket", []]
    job = teach.submit("relation", None, dataset, rows, *words, *values)
    assert jobs.get(job).spec["settings"]["basis"] == ["on", "under"]
    wrong = ["9000" if path == "rank" else "" for _, path in names]
    with pytest.raises(gr.Error, match="rank"):
        teach.submit("subject", None, dataset, rows, "<y>", "fox", "recommended", "", "pocket", [], *wrong)
    shows = [one["visible"] for one in teach.advanced.explain("relation")]
    # A column that is only "hidden" still shows what is in it.
    assert shows == [name == "reversion" for name in teach.advanced.columns]


def test_a_training_without_pictures_or_with_wrong_settings_says_so(jobs):
    teach = page(TeachPage, jobs)

    def ask(dataset="", rows=(), token="<x>", start="fox", steps="", what="object"):
        teach.submit(what, None, dataset, list(rows), token, start, "recommended", steps, "pocket")

    with pytest.raises(gr.Error, match="no pictures yet"):
        ask()
    dataset, rows, *_ = teach.take_example("object", None)
    for given, said in (
        ({"steps": "soon"}, "steps"),
        ({"token": " "}, "new word is missing"),
        ({"token": "my wolf"}, "without spaces"),
        ({"token": "Fox"}, "knows the word “Fox” already"),
        ({"start": "bird"}, "pocket has no word “bird”; near ones: penguin, owl"),
        ({"start": ""}, "to start from; for example fox"),
        ({"what": None}, "not chosen"),
        ({"what": "../.."}, "not chosen"),
    ):
        with pytest.raises(gr.Error, match=said) as error:
            ask(dataset, rows["value"], **given)
        assert "/api/" not in str(error.value) and "studio " not in str(error.value)
    assert jobs.list() == []


def test_a_slider_is_taught_without_pictures(jobs):
    teach = page(TeachPage, jobs)
    between = "a fox on an orange background -> a fox on a blue background"
    said = teach.readiness(None, "slider", "", "bluer", "a fox", "recommended", "", "pocket")
    assert "No pictures are needed" in said and "with an arrow between" in said and said.count('class="no"') == 1
    said = teach.readiness(None, "slider", "", "bluer", between, "recommended", "", "pocket")
    assert "You will switch bluer on" in said and 'class="no"' not in said
    ordered = jobs.get(teach.submit(None, "slider", "", [], "bluer", between, "recommended", "5", "pocket"))
    assert ordered.spec["dataset"] is None and ordered.spec["settings"]["between"] == between
    assert "candidates" not in ordered.spec["settings"]
    Concept(ConceptCard(token="x", kind="slider", vectors=0), (), {"unet.a": Difference(torch.ones(1))}).save(
        jobs.learned / "x.safetensors"
    )
    write_concept(jobs.learned / "w.safetensors", ConceptCard(token="<w>"))
    assert {chip["token"]: chip["least"] for chip in chips_of(jobs, "pocket")} == {"x": -2.0, "<w>": 0.0}


def test_what_is_missing_is_said_while_the_form_is_filled_in(jobs):
    teach = page(TeachPage, jobs)

    def ready(dataset="", token="", start="", preset="recommended", steps="", what="subject", base="pocket"):
        return teach.readiness(what, None, dataset, token, start, preset, steps, base)

    said = ready()
    assert said.count('class="no"') == 3 and "Pictures are missing" in said and "new word is missing" in said
    dataset, *_ = teach.take_example("subject", None)
    said = ready(dataset, "<x>", "bird")
    assert "4 pictures" in said and "near ones: penguin" in said and said.count('class="no"') == 1
    said = ready(dataset, "<x>", "Fox")
    assert "You will say &lt;x&gt; in prompts" in said and 'class="no"' not in said and "About" not in said
    write_concept(jobs.learned / "x.safetensors", ConceptCard(token="<x>"))
    assert "is there already" in ready(dataset, "<x>", "fox")
    (jobs.learned / "x.safetensors").unlink()
    # how long it takes is told by the last one of its kind
    last = teach.submit("subject", None, dataset, [], "<x>", "fox", "recommended", "100", "pocket")
    assert jobs.ledger.claim(last, 1, 1.0)
    jobs.ledger.tell(last, "step", {"step": 100, "steps": 100})
    jobs.ledger.move(last, ("running",), "done", started=1000.0)
    jobs.ledger.move(last, ("done",), "done", started=jobs.get(last).finished - 50.0)
    assert "About 10 s on this machine" in ready(dataset, "<y>", "fox", steps="20")
    assert "About" not in ready(dataset, "<y>", "fox", what="object")
    assert "not chosen" in ready(what="gone")


def test_a_base_that_lists_no_words_takes_any(tmp_path):
    jobs = Jobs(tmp_path / "studio", warm=False, bases={"pocket": "pocket", "sd": str(tmp_path)})
    assert list(wrong_with(jobs, WHATS["object"], "<x>", "bird", "sd")) == []


def test_the_example_is_there():
    assert len(list(WOLF.glob("*.png"))) == 4


# -- watching ---------------------------------------------------------------------------------------------------


def test_words_of_a_job_are_text_and_never_markup():
    notes = ["<img>", "Warning: <i>"]
    seen = JobMessages(job(state="failed", error="<script>alert(1)</script>", hint="try <b>"), notes=notes)
    said = progress(seen) + facts([("<a>", "<b>")]) + curve([(0, 1), (1, 2)], "<u>")
    assert not re.findall(r"<(script|img|i|a|u)>", said)
    assert "&lt;script&gt;" in said


def test_all_that_a_job_said_can_be_read_each_sentence_once():
    said = progress(JobMessages(job(state="done"), notes=["first", "Warning: second", "first", "third"]))
    lines = re.findall(r'<li class="(.*?)">(.*?)</li>', said)
    assert lines == [("", "first"), ("warn", "Warning: second"), ("", "third")]
    assert "<ul" not in progress(JobMessages(job()))


def test_each_look_at_a_job_tells_news_though_it_only_waits():
    waits = JobMessages(job(state="queued"))
    told = [re.search(r'data-told="(\d+)"', progress(waits)) for _ in range(2)]
    assert told[0] and told[1] and told[0][1] != told[1][1]


def test_time_left_is_taken_from_the_last_reports():
    steps = [{"step": step, "steps": 100, "seconds": step * 0.5} for step in (10, 20, 30)]
    assert time_left(JobMessages(job(), steps=steps)) == "35 s left"
    assert time_left(JobMessages(job(), steps=steps[:1])) == ""
    again = [*steps, {"step": 40, "steps": 100, "seconds": 2.0}, {"step": 50, "steps": 100, "seconds": 3.0}]
    assert time_left(JobMessages(job(), steps=again)) == "5 s left"
    assert time_left(JobMessages(job(state="done"), steps=steps)) == ""


def test_durations_are_spoken():
    assert [spoken(x) for x in (0.4, 59.6, 61, 3600, 7300)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 0 min",
        "2 h 1 min",
    ]


def test_curves_are_drawn_for_each_figure():
    steps = [{"step": n, "steps": 30, "seconds": n, "terms": {"denoise": 1 / n, "norm": 1.0}} for n in (10, 20, 30)]
    drawn = curves(JobMessages(job(), steps=steps))
    assert drawn.count("<polyline") == 2
    assert "nan" not in drawn.lower()
    assert curve([(0, 1)], "x") == ""


def test_a_picture_that_cannot_be_read_has_no_address(tmp_path):
    (tmp_path / "x.png").write_text("no")
    assert picture_uri(tmp_path / "x.png") == ""
    Image.new("RGB", (300, 10)).save(tmp_path / "y.png")
    assert picture_uri(tmp_path / "y.png").startswith("data:image/png;base64,")


def test_a_job_is_followed_until_it_has_ended(jobs):
    generate = page(GeneratePage, jobs)
    identity = asked(generate)

    async def follow():
        seen = []
        async for shown in generate.answer.follow(identity):
            seen.append(shown[0])
            if len(seen) == 1:
                jobs.cancel(identity)
        return seen

    first, *_, last = asyncio.run(follow())
    assert "Waiting" in first
    assert "Cancelled" in last


# -- the library ------------------------------------------------------------------------------------------------


def test_cards_are_found_by_what_they_say(jobs):
    write_concept(jobs.learned / "a.safetensors", ConceptCard(token="<a>", scores={"gain": 0.5}, family="pocket"))
    write_concept(jobs.learned / "b.safetensors", ConceptCard(token="<b>", kind="style"))
    (jobs.learned / "c.safetensors").write_bytes(b"broken")
    assert [card["id"] for card in cards_of(jobs)] == ["a", "b", "c"]
    assert "gain 0.50" in cards_of(jobs)[0]["words"]
    assert [card["id"] for card in cards_of(jobs, "STYLE")] == ["b"]
    assert cards_of(jobs, "style pocket") == []


def test_what_is_deleted_can_be_brought_back_with_what_lies_beside_it(jobs):
    path = write_concept(jobs.learned / "a.safetensors", ConceptCard(token="<a>"))
    Image.new("RGB", (8, 8)).save(jobs.learned / "a.preview.png")
    before = path.read_bytes()
    library = page(LibraryPage, jobs)
    cards, _, _, _, thrown = library.ask_delete("a", "")
    assert cards == []
    assert list(jobs.learned.glob("a*")) == []
    cards, *_ = library.ask_undo(thrown, "")
    assert [card["id"] for card in cards] == ["a"]
    assert (path.read_bytes(), (jobs.learned / "a.preview.png").is_file()) == (before, True)
    with pytest.raises(gr.Error, match="no longer in the trash"):
        library.ask_undo("../..", "")


def test_a_concept_of_the_same_name_is_not_replaced_by_one_from_the_trash(jobs):
    path = write_concept(jobs.learned / "a.safetensors", ConceptCard(token="<a>"))
    thrown = concepts.discard(path)
    write_concept(path, ConceptCard(token="<other>"))
    with pytest.raises(gr.Error, match="another"):
        page(LibraryPage, jobs).ask_undo(thrown, "")
    assert concepts.read_card(path).token == "<other>"


def test_a_concept_gets_another_word(jobs):
    write_concept(jobs.learned / "a.safetensors", ConceptCard(token="<a>"))
    library = page(LibraryPage, jobs)
    cards, chosen, _ = asyncio.run(library.ask_rename("a", "<tom>", ""))
    assert (chosen, [card["token"] for card in cards]) == ("tom", ["<tom>"])
    for word in ("--library", ""):
        with pytest.raises(gr.Error):
            asyncio.run(library.ask_rename("tom", word, ""))


# -- figures ----------------------------------------------------------------------------------------------------


def test_figures_stand_side_by_side(jobs):
    write_concept(
        jobs.learned / "a.safetensors",
        ConceptCard(token="<a>", scores={"named": 0.5, "gain": -0.1, "named_chance": 0.125}),
    )
    write_concept(jobs.learned / "b.safetensors", ConceptCard(token="<b>", scores={"named": 0.25}))
    lines = [json.dumps({"step": step, "denoise": 1 / step}) for step in (10, 20, 30)]
    (jobs.learned / "a.losses.jsonl").write_text("\n".join(lines))
    (jobs.learned / "b.losses.jsonl").write_text("not json")
    measure = page(MeasurePage, jobs)
    assert measure.refresh(None, None)[0]["value"] == ["a", "b"]
    assert measure.refresh(["b", "gone"], None)[0]["value"] == ["b"]
    said = measure.compare(["a", "b"])
    assert said.count("<tr>") == 3
    assert re.findall(r"width:(\d+)%", said) == ["50", "10", "25"]
    assert "chance 0.125" in said
    assert said.count("<polyline") == 1
    assert "&lt;a&gt;" in said
    assert "No figures yet" in measure.compare([])
