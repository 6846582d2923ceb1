"""The page and files: whatever a client names, it reads nothing but what it sent or what the page gave out."""

from __future__ import annotations

import io
import json
import os
import re

import pytest
from PIL import Image
from starlette.routing import Mount
from starlette.testclient import TestClient

from studio.api import page_files
from studio.api.app import guarded, rest, with_page
from studio.api.guard import Door
from studio.api.page_files import VISITOR, copies_folder
from studio.jobs.jobs import Jobs
from studio.web.app import UNFIT
from studio.web.app import _log as page_log

URL = "http://example.com/a.png"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("files"), warm=False)  # nothing is begun
    return with_page(rest(jobs), jobs)


def visitor(app):
    """Somebody who has opened the page."""
    client = TestClient(guarded(app, Door()), base_url="http://localhost")
    answer = client.get("/")
    assert answer.status_code == 200 and "HttpOnly" in answer.headers["set-cookie"]
    return client


def uploaded(client, shade=0):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    answer = client.post("/gradio_api/upload", files={"files": ("a.png", stream.getvalue())})
    assert answer.status_code == 200
    (path,) = answer.json()
    return path


def record(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def ask(client, function, data, way="queue/join"):
    return client.post(f"/gradio_api/{way}", json={"fn_index": function, "data": data, "session_hash": "x"})


def inputs(client):
    """Every input of every handler: its number, the values it begins with, and which of them."""
    config = client.get("/config").json()
    begins = {one["id"]: one["props"].get("value") for one in config["components"]}
    for handler in config["dependencies"]:
        for place in range(len(handler["inputs"])):
            yield handler["id"], [begins.get(one) for one in handler["inputs"]], place


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(b"secret")
    return str(path)


def test_no_input_of_the_page_takes_a_file_that_was_not_uploaded_from_there(app, secret):
    client, other = visitor(app), visitor(app)
    theirs, own = uploaded(other, 1), uploaded(client, 2)
    (copies_folder() / "link.png").symlink_to(secret)
    hostile = [
        record(secret),
        record("/proc/self/environ"),
        record("/dev/zero"),
        record(theirs),
        record(URL),
        record(own, url=URL),
        record(own, url="data:image/png;base64,AA"),
        record(f"{copies_folder()}/../x"),
        record(str(copies_folder() / "link.png")),
        record("README.md"),
        record(""),
        record(None),
        {"meta": {"_type": "gradio.FileData"}, "url": URL},
        {"path": secret},
        {"a": [{"b": record(secret)}]},
        [record(own), record(secret)],
    ]
    every = list(inputs(client))
    assert len(every) > 150
    for number, (handler, data, place) in enumerate(every):
        for one in (hostile[number % len(hostile)], hostile[0]):
            answer = ask(client, handler, [*data[:place], one, *data[place + 1 :]])
            assert answer.status_code == 403, (handler, place, one)
    for one in hostile:
        for way in ("queue/join", "run/generation", "api/generation", "call/generation", "call/v2/generation"):
            assert ask(client, 0, ["pocket", one], way).status_code == 403, (one, way)
    assert list(copies_folder().rglob("secret.png")) == []


def test_what_was_uploaded_is_taken_and_given_back_to_its_sender_alone(app):
    client, other = visitor(app), visitor(app)
    path = uploaded(client, 3)
    shown = f"http://localhost/gradio_api/file={path}"
    assert ask(client, 0, [record(path, url=shown)]).status_code != 403
    assert client.get(shown).status_code == 200
    assert other.get(shown).status_code == 403
    assert uploaded(other, 3) == path and other.get(shown).status_code == 200  # who has it may see it


def test_nothing_else_is_given_out_or_fetched(app, secret):
    client = visitor(app)
    folder = app.state.jobs.folder
    (folder / "jobs" / "x").mkdir(parents=True)
    (folder / "jobs" / "x" / "worker.log").write_text("secret")
    for path in (
        f"file={secret}",
        f"file/{secret}",
        f"file={folder}/jobs/x/worker.log",
        f"file={folder}/jobs.sqlite",
        f"file={copies_folder()}/../{os.path.basename(secret)}",
        f"file={URL}",
        f"proxy={URL}",
    ):
        answer = client.get(f"/gradio_api/{path}")
        assert answer.status_code == 403 and b"secret" not in answer.content, path
    for path in ("process_recording", "component_server", "vibe-code", "stream/x"):
        assert client.post(f"/gradio_api/{path}", json={}).status_code == 404, path


def test_the_framework_checks_paths_as_well(app, secret, heard):
    log = heard(page_log)
    (inner,) = [route.app for route in app.routes if isinstance(route, Mount) and hasattr(route.app, "get_blocks")]
    with TestClient(inner) as client:  # nothing of ours before it
        config = client.get("/config").json()
        (handler,) = [one for one in config["dependencies"] if one["api_name"] == "generation"]
        data = ["pocket", record(secret), *[None] * (len(handler["inputs"]) - 2)]
        answer = ask(client, None, data, "run/generation")
        assert answer.status_code != 200 and "not uploaded" in log.text
    assert list(copies_folder().rglob("secret.png")) == []


def test_functions_answer_what_they_were_not_meant_for_with_a_sentence(app):
    client = visitor(app)
    config = client.get("/config").json()
    named = {one["api_name"]: one for one in config["dependencies"]}
    begins = {one["id"]: one["props"].get("value") for one in config["components"]}
    failed = 0
    for name in ("generation", "edit", "refresh", "look", "act", "keep_mask", "suggest"):
        for odd in (["x"], {"a": 1}, None):
            values = [begins.get(one) for one in named[name]["inputs"]]
            for place in range(len(values)):
                answer = ask(client, named[name]["id"], [*values[:place], odd, *values[place + 1 :]], "run/predict")
                said = answer.json().get("error") or ""
                failed += UNFIT.message in said
                assert not re.search(r"Error:|object|NoneType|preprocess|operand", said), (name, place, said)
    assert failed > 5  # these functions have inputs of numbers and ids


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"data": ["a\\ud800b"]}', 422), (b'{"data": [NaN]}', 400), (b"[" * 100_000, 400), (b"{", 400)],
)
def test_bodies_that_cannot_be_read_are_refused(app, body, status):
    answer = visitor(app).post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status and json.loads(answer.content)["detail"]


def test_uploads_have_a_quota(app, monkeypatch):
    client = visitor(app)
    uploaded(client)
    monkeypatch.setattr(page_files, "COPIES", 10)
    assert client.post("/gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 507


def test_programs_without_cookies_are_told_apart_by_their_address(app):
    def program(address):
        client = TestClient(guarded(app, Door()), base_url="http://localhost", client=(address, 1))
        client.cookies.set(VISITOR, "")
        return client

    path = uploaded(program("10.0.0.1"), 9)
    assert ask(program("10.0.0.1"), 0, [record(path)]).status_code != 403
    assert ask(program("10.0.0.2"), 0, [record(path)]).status_code == 403


def test_pages_of_other_servers_read_nothing(app):
    answer = visitor(app).get("/config", headers={"origin": "http://localhost:3000"})
    assert "access-control-allow-origin" not in answer.headers
