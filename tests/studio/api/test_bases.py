"""Base models by REST and on their page: listed, chosen, used at once when they appear, and fetched where allowed."""

from __future__ import annotations

import json
import shutil

import gradio as gr
import pytest
from starlette.testclient import TestClient

from pipelines.errors import ConfigError, Conflict
from pipelines.models import POCKET
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.jobs.jobs import Jobs
from studio.serve import Offered, serve
from studio.settings import Machine
from studio.web.app import build
from studio.web.components import base_choice
from studio.web.models.choice import BaseChoice
from studio.web.pages.models import ModelsPage, cards_of


def client(jobs):
    return TestClient(guarded(rest(jobs), Door()), base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture
def twin(jobs):
    folder = jobs.places.models[0] / "a twin"
    shutil.copytree(POCKET, folder, ignore=shutil.ignore_patterns("judge", "unet_inpainting"))
    yield folder
    shutil.rmtree(folder)


def test_a_base_that_is_put_into_the_folder_is_listed_and_used_by_the_process_that_runs(jobs, ended, twin):
    web = client(jobs)
    listed = web.get("/api/v1/bases").json()
    assert [(one["id"], one["title"], one["problem"]) for one in listed] == [
        ("pocket", "pocket", ""),
        ("a twin", "pocket", ""),
    ]
    one = web.get(listed[1]["href"]).json()
    assert one == listed[1] and one["inpainting"] is False and one["licence"] == "mit"
    assert one["defaults"]["size"] == 64 and one["memory_cpu"] == 2 * one["memory_gpu"]
    assert "models" not in json.dumps(listed)  # where it lies is nobody's business
    asked = {"base": "a twin", "request": {"prompt": "a fox", "steps": 1}}
    made = ended(web.post("/api/v1/generations", json=asked).json()["id"])
    assert made.state == "done", made.error
    for name in (str(twin), "../a twin", "a twin/unet"):
        assert web.post("/api/v1/generations", json={**asked, "base": name}).status_code == 422
    assert web.get("/api/v1/bases/unknown").status_code == 404


def test_nothing_is_fetched_unless_the_server_was_started_so(jobs):
    answer = client(jobs).post("/api/v1/downloads", json={"model": "owner/name"})
    assert answer.status_code == 422 and "downloads nothing" in answer.json()["title"] + answer.json().get("detail", "")


def test_a_download_is_a_job_with_its_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # its process reaches nothing
    jobs = Jobs(tmp_path / "studio", machine=Machine(download=True), warm=False)
    web = client(jobs)
    for name in ("name", "../name", "owner/na me", "owner/..", "https://x/y", "-x/y"):
        assert web.post("/api/v1/downloads", json={"model": name}).status_code == 422, name
    key = {"idempotency-key": "k"}
    first = web.post("/api/v1/downloads", json={"model": "owner/name"}, headers=key)
    assert first.status_code == 202 and first.headers["location"] == f"/api/v1/downloads/{first.json()['id']}"
    assert web.post("/api/v1/downloads", json={"model": "owner/name"}, headers=key).json()["id"] == first.json()["id"]
    assert web.post("/api/v1/downloads", json={"model": "other/name"}).status_code == 409
    with jobs:
        events = web.get(first.headers["location"] + "/events").text
    assert '"state": "failed"' in events and "could not be fetched" in events and "asking the hub" in events
    (jobs.places.models[0] / "name").mkdir()
    with pytest.raises(Conflict, match="name is there already"):
        jobs.downloads.submit("owner/name")


def test_a_folder_of_models_that_is_not_there_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no folder .*gone for --models"):
        serve(offered=Offered(models=(tmp_path / "gone",)), folder=tmp_path / "x")


@pytest.fixture
def page(tmp_path):
    jobs = Jobs(tmp_path / "studio", warm=False)
    with gr.Blocks(analytics_enabled=False):
        return ModelsPage(jobs, BaseChoice(jobs, base_choice(jobs.bases)))


def test_the_page_shows_what_is_there_and_remembers_each_pages_choice(page):
    jobs, choice = page.jobs, page.choice
    assert [card["id"] for card in cards_of(jobs)] == ["pocket"]
    (jobs.places.models[0] / "empty").mkdir()
    shutil.copytree(POCKET, jobs.places.models[0] / "twin")
    cards, listed = page.refresh()
    assert [(card["id"], card["kind"]) for card in cards] == [
        ("pocket", "pocket"),
        ("empty", "cannot be used"),
        ("twin", "pocket"),
    ]
    assert listed["choices"] == [("pocket", "pocket"), ("twin", "twin")] or listed["choices"] == ["pocket", "twin"]
    assert listed["visible"] is True
    chosen, kept = page.take("twin", "edit", "")
    assert chosen["value"] == "twin" and json.loads(kept) == {"edit": "twin"}
    assert (choice.of("edit", kept), choice.of("generate", kept)) == ("twin", "")
    _, kept = page.take("pocket", "all", kept)
    assert set(json.loads(kept).values()) == {"pocket"} and len(json.loads(kept)) == 4
    for bad in ("null", "[1]", "{", '{"edit": 3, "x": "twin"}', '{"edit": "../twin"}'):
        assert choice.of("edit", bad) == ""
    for name, pages in (("empty", "all"), ("twin", "nowhere"), ("../twin", "all")):
        with pytest.raises(gr.Error, match="cannot be used"):
            page.take(name, pages, "")


def test_it_says_what_the_server_does_not_do(page):
    shown = [str(block.value) for block in build(page.jobs).blocks.values() if isinstance(block, gr.HTML)]
    assert any("studio serve --download" in one for one in shown)
    assert any("studio/models" in one and str(page.jobs.folder) not in one for one in shown)
    with pytest.raises(gr.Error, match="downloads nothing"):
        page.download.ask("owner/name")
