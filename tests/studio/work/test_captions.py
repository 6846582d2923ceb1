"""Captions written beside the pictures of a server: what is there stays, what cannot be told is said."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipelines.captions.wording import Wording
from pipelines.errors import Cancelled, ConfigError, Conflict, DataError
from pipelines.events import Note, StepDone
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.jobs.captioning import wording_of
from studio.jobs.jobs import Jobs
from studio.web.panels.subjects import WHATS
from studio.web.teaching.captioning import CaptionPanel, wording_for
from studio.work.captions import write_captions

SAID = {"red": "a brown dog on a red background", "blue": "a brown dog beside a house on a blue background"}


def looked(picture):
    """Tell a picture by its colour, as a captioner would by what it shows."""
    for colour, text in SAID.items():
        if picture.getpixel((0, 0)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0)):
            return text
    raise DataError("It shows nothing that is known.")


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


@pytest.fixture
def dataset(jobs):
    made = jobs.datasets.create("dogs").id
    for colour in ("red", "blue", "lime", "red"):
        content = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(content, "PNG")
        jobs.datasets.add(made, content.getvalue())
    jobs.datasets.set_caption(made, "0004.png", "my own words")
    return made


def captions(jobs, dataset):
    return [one.caption for one in jobs.datasets.entries(dataset)]


def test_captions_leave_out_what_all_pictures_show_and_keep_those_there(jobs, dataset):
    told = []
    wording = Wording(token="<rex>", shared=True)
    write_captions(jobs.datasets, dataset, wording, looked, told.append, lambda: False)
    wanted = ["a <rex> on a red background", "a <rex> beside a house on a blue background", "", "my own words"]
    assert captions(jobs, dataset) == wanted
    assert [one for one in told if isinstance(one, StepDone)] == [StepDone(i, 3) for i in (1, 2, 3)]
    assert Note("0003.png is left without: It shows nothing that is known.") in told


def test_nothing_is_written_of_what_is_stopped(jobs, dataset):
    stops = iter((False, True))
    with pytest.raises(Cancelled, match="before picture 2 of 3"):
        write_captions(jobs.datasets, dataset, Wording(), looked, lambda event: None, lambda: next(stops))
    assert captions(jobs, dataset) == ["", "", "", "my own words"]


def test_captions_are_ordered_by_rest_and_once(jobs, dataset):
    web = TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")
    order = {"dataset": dataset, "token": "<rex>", "leave_out": ["dog"], "shared": True}
    answer = web.post("/api/v1/captions", json=order, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202
    again = web.post("/api/v1/captions", json=order, headers={"Idempotency-Key": "k"})
    assert again.json()["id"] == answer.json()["id"] and answer.json()["kind"] == "caption"
    assert wording_of(jobs.get(answer.json()["id"])) == Wording(token="<rex>", leave_out=("dog",), shared=True)
    with pytest.raises(Conflict, match="needs these pictures"):
        jobs.delete_dataset(dataset)
    assert web.post("/api/v1/captions", json=order | {"template": "no place"}).status_code == 422
    assert web.post("/api/v1/captions", json=order | {"dataset": "0" * 16}).status_code == 422
    for name in ("0001.png", "0002.png", "0003.png"):
        jobs.datasets.set_caption(dataset, name, "said")
    with pytest.raises(DataError, match="All pictures have a caption"):
        jobs.captioning.submit(dataset, Wording())
    with pytest.raises(DataError, match="no pictures yet"):
        jobs.captioning.submit(jobs.datasets.create("none").id, Wording())


@pytest.mark.parametrize(
    ("kind", "token", "start", "wanted"),
    [
        ("object", "<my-wolf>", "fox", "a <my-wolf> on a hat"),
        ("subject", "<my-wolf>", "fox", "a <my-wolf> on a hat"),
        ("style", "<ink>", "", "a wolf on a hat in the style of <ink>"),
    ],
)
def test_the_wording_is_that_of_what_is_learned(kind, token, start, wanted):
    assert wording_for(WHATS[kind], token, start).of("a wolf on a hat") == wanted
    with pytest.raises(ConfigError, match="new word is missing"):
        wording_for(WHATS[kind], "", start)


def test_captions_are_offered_for_pictures_of_what_has_a_word():
    rows = [{"name": "0001.png"}]
    assert CaptionPanel.offered("object", None, rows)["visible"] is True
    assert CaptionPanel.offered("object", None, [])["visible"] == "hidden"
    assert CaptionPanel.offered("relation", None, rows)["visible"] == "hidden"
