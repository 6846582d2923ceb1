"""Measuring what was learned and choosing a step: by command, as a job after a training, by REST, on the page."""

from __future__ import annotations

import json
import shutil

import gradio as gr
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipelines.concepts.card import read_card
from pipelines.errors import ConceptError, ConfigError, Conflict, Unknown
from pipelines.events import StepDone
from pipelines.models.loading import load
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.cli import main
from studio.commands.choose import choose
from studio.library import concepts
from studio.web.components import base_choice
from studio.web.pages.measure import MeasurePage
from studio.web.pages.teach import TeachPage
from studio.web.panels.following import Following
from studio.web.panels.scores import ScoresPanel
from studio.web.panels.watching import seen_now
from studio.work.measure import measure
from tests.studio.conftest import WOLF
from trainers.loop.candidates import candidates, kept_step

pytestmark = pytest.mark.usefixtures("few_steps")

LESSON = {"token": "<chosen>", "init": "fox", "steps": 6, "batch": 1, "warmup": 0, "candidates": 2}


@pytest.fixture(scope="module")
def learned(jobs, wolves, ended):
    """A training of six steps with two candidates, and the job that measured them."""
    training = ended(jobs.submit_training("textual-inversion", LESSON, wolves).id)
    assert training.state == "done", training.error
    return training, ended(jobs.scores_after(training.id).id)


def test_what_was_learned_is_measured_when_it_ends(jobs, learned):
    _, scores = learned
    assert scores.state == "done", scores.error
    assert (scores.step, scores.steps) == (3, 3)
    (event,) = jobs.events(scores.id, kinds=("scores",))
    said = event.data
    assert [row["step"] for row in said["rows"]] == [3, 6] and said["word"] == "fox"
    assert said["step"] in (3, 6) and said["reason"].endswith(".")
    path = jobs.places.concept("chosen")
    card = read_card(path)
    assert card.scores["likeness"] == said["rows"][1]["figures"]["likeness"]
    assert card.scores["likeness_word"] == said["baseline"]["likeness"]
    assert read_card(candidates(path)[3]).scores["error"] == said["rows"][0]["figures"]["error"]
    (sheet,) = jobs.results(scores.id)
    assert Image.open(sheet).width > 800
    assert len(jobs.previews(scores.id)) == 3


def test_a_training_without_candidates_is_not_measured(jobs, wolves, ended):
    training = ended(
        jobs.submit_training("textual-inversion", {**LESSON, "token": "<plain>", "candidates": 0}, wolves).id
    )
    assert training.state == "done" and jobs.scores_after(training.id) is None


def test_a_slider_has_nothing_to_be_compared_and_is_not_measured(jobs, wolves, ended):
    lesson = {"token": "larger", "between": "a small fox -> a large fox", "steps": 2, "batch": 1, "candidates": 1}
    training = ended(jobs.submit_training("slider", lesson, wolves).id)
    assert training.state == "done", training.error
    assert jobs.scores_after(training.id) is None and candidates(jobs.places.concept("larger"))
    for ask in (
        lambda: jobs.submit_score("larger", wolves),
        lambda: choose("larger", images=WOLF[0].parent, folder=jobs.learned),
        lambda: measure(load("pocket"), jobs.places.concept("larger"), WOLF[0].parent, on_event=print),
    ):
        with pytest.raises(ConceptError, match="is a slider"):
            ask()


def test_a_step_is_taken_by_rest_and_another_again(jobs, learned):
    web = TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")
    done = web.get(f"/api/v1/scores/{learned[1].id}").json()
    assert done["kind"] == "score" and web.get(done["pictures"][0]).headers["content-type"] == "image/png"
    taken = web.put("/api/v1/concepts/chosen/step", json={"step": 3})
    assert (
        taken.status_code == 200 and taken.json()["card"]["scores"] == read_card(jobs.places.concept("chosen")).scores
    )
    assert kept_step(jobs.places.concept("chosen")) == 3
    assert web.put("/api/v1/concepts/chosen/step", json={"step": 4}).status_code == 422
    assert web.put("/api/v1/concepts/chosen/step", json={"step": 0}).status_code == 422
    assert web.put("/api/v1/concepts/nothing/step", json={"step": 3}).status_code == 404
    assert web.put("/api/v1/concepts/chosen/step", json={"step": 6}).status_code == 200
    assert kept_step(jobs.places.concept("chosen")) == 6


def test_what_is_not_there_is_not_measured(jobs, wolves):
    with pytest.raises(ConceptError):
        jobs.submit_score("../x", wolves)
    with pytest.raises(Unknown):
        jobs.submit_score("chosen", "../x")
    with pytest.raises(ConfigError):
        jobs.submit_score("chosen", wolves, base="/etc")


def test_it_is_cancelled_and_leaves_the_cards(jobs, learned, wolves, until, ended):
    before = jobs.places.concept("chosen").read_bytes()
    other = jobs.datasets.create("another")
    jobs.datasets.add(other.id, WOLF[0].read_bytes(), "a.png")  # whose figures would be others
    job = jobs.submit_score("chosen", other.id)
    with pytest.raises(Conflict, match="being measured"):
        jobs.take_step("chosen", 3)
    until(job.id, lambda now: now.state == "running")
    jobs.cancel(job.id)
    assert ended(job.id).state == "cancelled"
    assert jobs.places.concept("chosen").read_bytes() == before


def made(kind, *parts):
    with gr.Blocks(analytics_enabled=False):
        return kind(*parts)


def test_the_page_says_which_step_and_keeps_it(jobs, learned):
    training, scores = learned
    panel = made(ScoresPanel, jobs, "scores")
    assert isinstance(panel, Following) and len(panel.nothing()) == len(panel.said())
    heading, stop, reason, take, figures, step = panel.seen(seen_now(jobs, scores.id))
    said = jobs.events(scores.id, kinds=("scores",))[0].data
    assert heading == "" and stop["visible"] == "hidden"
    assert f"step {said['step']}" in reason and "step 6 now" in reason
    assert (take["visible"], step["choices"], step["value"]) == (True, [("step 3", 3), ("step 6", 6)], said["step"])
    assert figures.count("<tr") == 4 and "“fox”" in figures
    assert figures.index("data:image/png") < figures.index("<table")  # pictures tell more than figures
    for kept in (3, 6):  # any of them
        reason, *_ = panel.keep(scores.id, kept)
        assert kept_step(jobs.places.concept("chosen")) == kept and f"step {kept} now" in reason
    for wrong in (5, None):
        with pytest.raises(gr.Error, match="step"):
            panel.keep(scores.id, wrong)
    with gr.Blocks(analytics_enabled=False):
        teach = TeachPage(jobs, base_choice(jobs.bases))
    assert (teach.measured(training.id), teach.measured("gone")) == (scores.id, "")


def test_measure_proposes_the_pictures_a_concept_was_taught_with(jobs, learned, wolves, ended):
    page = made(MeasurePage, jobs)
    other = jobs.datasets.create("others").id
    jobs.datasets.add(other, WOLF[0].read_bytes(), "a.png")
    assert page.taught_with("chosen")["value"] == wolves
    assert {identity for _, identity in page.taught_with(None)["choices"]} >= {wolves, other}
    assert "chosen" in [identity for _, identity in page.refresh([], "chosen")[1]["choices"]]
    job = page.submit("chosen", wolves)
    jobs.cancel(job)
    ended(job)
    with pytest.raises(gr.Error, match="Teach a concept first"):
        page.submit(None, wolves)


def test_by_command(jobs, learned, capsys, tmp_path, monkeypatch):
    path, sheet = jobs.places.concept("chosen"), tmp_path / "sheet.png"
    choose(str(path), images=WOLF[0].parent, form="json", sheet=sheet)
    out = capsys.readouterr().out
    said = json.loads(out[: out.rindex("}") + 1])
    assert said == jobs.events(learned[1].id, kinds=("scores",))[0].data and sheet.is_file()
    assert main(["choose", str(path), "--step", "3"]) == 0
    assert kept_step(jobs.places.concept("chosen")) == 3
    assert main(["choose", str(path), "--step", "5"]) == main(["choose", str(path)]) == 2
    said = capsys.readouterr().err
    assert "3, 6" in said and "--images" in said
    assert main(["choose", "chosen", "--library", str(jobs.learned), "--step", "6"]) == 0


def test_what_was_removed_or_replaced_meanwhile_is_left_alone(jobs, learned, tmp_path):
    path = tmp_path / "x.safetensors"
    shutil.copyfile(jobs.places.concept("chosen"), path)
    shutil.copytree(jobs.places.concept("chosen").with_suffix(".steps"), tmp_path / "x.steps")
    gone, other = candidates(path)[3], candidates(path)[6]

    def meanwhile(event):
        if not (isinstance(event, StepDone) and event.step == event.steps):
            return  # it is read when its turn comes
        gone.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        shutil.copyfile(concepts.EXAMPLE, other)

    measure(load("pocket"), path, WOLF[0].parent, on_event=meanwhile)
    assert not path.exists() and not gone.exists() and other.read_bytes() == concepts.EXAMPLE.read_bytes()
