"""Uploads take no more room than they may, however many come at once, and the room is shown."""

from __future__ import annotations

import shutil
import threading

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from pipelines.errors import ConfigError, NoSpace
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.jobs.jobs import Jobs
from studio.library.quota import Quota, bytes_of
from studio.serve import serve
from studio.web.components import base_choice
from studio.web.pages.teach import TeachPage
from tests.studio.library.test_datasets import picture
from tests.waiting import joined


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "server", warm=False, quota=10_000 / 2**30)  # nothing is begun


def takes(jobs):
    return sum(bytes_of(jobs.folder / name) for name in ("datasets", "pictures", "imports"))


def test_uploads_at_once_keep_to_the_quota_and_what_is_removed_makes_room(jobs):
    sets = [jobs.datasets.create().id for _ in range(3)]
    refused, kept = [], []

    def send(way):
        try:
            kept.append(way())
        except NoSpace as error:
            refused.append(str(error))

    ways = [
        *[lambda: jobs.pictures.add(picture(size=(40, 40)))] * 50,
        *[lambda one=one: jobs.datasets.add(one, picture(), caption="x" * 300) for one in sets * 6],
        *[lambda: jobs.submit_import(b"x" * 3000, "x.pt")] * 3,
    ]
    threads = [threading.Thread(target=send, args=(way,), daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    joined(*threads)
    assert refused and kept and takes(jobs) <= 10_000
    assert all("of the 10 KiB they may take together" in one and "--quota" in one for one in refused)
    with pytest.raises(NoSpace):
        jobs.submit_import(b"x" * 9_000, "x.pt")
    for one in sets:
        jobs.delete_dataset(one)
    for path in (jobs.folder / "pictures").iterdir():
        path.unlink()
    shutil.rmtree(jobs.folder / "imports", ignore_errors=True)  # they may have been first, and nothing takes them here
    jobs.submit_import(b"x" * 3_000, "x.pt")


def test_a_captions_and_masks_room_counts_and_what_was_there_stays(jobs):
    one = jobs.datasets.create().id
    jobs.datasets.add(one, picture(), caption="a fox")
    jobs.places.quota.most = takes(jobs) + 10
    for change in (
        lambda: jobs.datasets.set_caption(one, "0001.png", "x" * 4000),
        lambda: jobs.datasets.set_mask(one, "0001.png", picture(color=(250, 250, 250))),
        lambda: jobs.datasets.replace(one, "0001.png", picture(size=(90, 9))),
    ):
        with pytest.raises(NoSpace):
            change()
    entry = jobs.datasets.entry(one, "0001.png")
    assert (entry.caption, entry.mask, entry.width) == ("a fox", False, 40)


def test_clients_and_the_page_are_told(jobs):
    web = TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")
    assert web.get("/api/v1/storage").json() == {"used": 0, "quota": 10_000}
    dataset = web.post("/api/v1/datasets", json={}).json()["id"]
    many = [("files", (f"{number}.png", picture(size=(50, 50)))) for number in range(90)]
    answer = web.post(f"/api/v1/datasets/{dataset}/pictures", files=many)
    assert answer.status_code == 507 and "Delete pictures" in answer.json()["hint"]
    assert web.get(f"/api/v1/datasets/{dataset}/pictures").json() == []  # none if one is refused
    used = web.get("/api/v1/storage").json()["used"]
    assert 0 < used == takes(jobs)
    with gr.Blocks():
        said = TeachPage(jobs, base_choice(jobs.bases)).taken_room()
    assert "take 1 KiB of 10 KiB" in said


def test_a_quota_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="quota of -1 GiB"):
        serve(folder=tmp_path, quota=-1)
    assert Quota([tmp_path], 5).used() == 0
