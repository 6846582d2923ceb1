"""Texts that cannot be: refused by every setting and form, and no bad row or file hides the others."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, get_args, get_origin

import pytest
import torch
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file

import pipelines.concepts.card
import studio.api.a1111
import studio.api.forms
import studio.commands.layout
import studio.commands.layout_llm
import studio.commands.score.flags
import studio.settings
import trainers.settings
from pipelines.request.settings import FileContent, Sound
from pipelines.request.texts import LONGEST, flaw, readable, texts
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.api.problems import MEDIA
from studio.cli import main
from studio.jobs.jobs import Jobs
from studio.jobs.rows import DamagedRecord
from studio.jobs.store import Ledger
from studio.library import concepts
from tests.studio.conftest import WOLF

MODULES = (
    pipelines.concepts.card,
    studio.api.a1111,
    studio.api.forms,
    studio.commands.layout_llm,
    studio.commands.score.flags,
    studio.commands.layout,
    studio.settings,
    trainers.settings,
)
HALF = "a\ud800b"
BAD = (HALF, "a\x00b", "a\x1bb", "a\x85b", "x" * (LONGEST + 1))


def models(kind=Sound):
    for one in kind.__subclasses__():
        yield one
        yield from models(one)


def with_text(annotation: Any, text: str) -> Any:
    """A value of an annotation that holds a text; None if it takes none."""
    parts = get_args(annotation)
    if annotation is str:
        return text
    if get_origin(annotation) in (tuple, list):
        one = with_text(parts[0], text)
        return None if one is None else [one] * max(1, sum(part is not Ellipsis for part in parts))
    if get_origin(annotation) is dict:
        return {"name": text} if parts[1] in (str, Any) else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None  # is looked at by itself
    return next((value for part in parts if (value := with_text(part, text)) is not None), None)


FIELDS = sorted(
    {
        (one, name)
        for one in models()
        for name, field in one.model_fields.items()
        if get_origin(field.annotation) is not type(None)
        and with_text(field.annotation, "x") is not None
        and not any(isinstance(mark, FileContent) for mark in field.metadata)
    },
    key=str,
)


def test_every_text_of_every_model_keeps_to_the_rule():
    assert all(module.__name__ for module in MODULES) and len(FIELDS) > 60
    for model, name in FIELDS:
        for bad in BAD:
            value = with_text(model.model_fields[name].annotation, bad)
            with pytest.raises(ValidationError) as caught:
                model.model_validate({name: value})
            assert any(one["loc"][0] == name for one in caught.value.errors()), (model, name, bad[:10])


def test_what_is_wrong_is_said_with_the_limit():
    assert "20,001 letters; at most 20,000" in flaw(BAD[-1])
    assert "'\\x1b'" in flaw(BAD[2]) and "half a character" in flaw(HALF)
    assert flaw("line\nline\ttab 🦊 猫") == ""
    assert readable(HALF) == "a\ufffdb" and list(texts({"a": ["b", {"c": ("d",)}], "e": 1})) != []


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return Jobs(tmp_path_factory.mktemp("texts"), warm=False)  # nothing is begun


@pytest.fixture(scope="module")
def web(jobs):
    return TestClient(guarded(rest(jobs), Door()), base_url="http://localhost", raise_server_exceptions=False)


def send(web, method, path, text):
    return web.request(method, path, content=text, headers={"content-type": "application/json"})


def test_half_a_character_is_refused_on_every_way_and_the_lists_go_on(jobs, web):
    dataset = jobs.datasets.create("wolves").id
    name = jobs.datasets.add(dataset, WOLF[0].read_bytes()).name
    picture = f"/api/v1/datasets/{dataset}/pictures/{name}"
    half = '{"token": "\\ud800"}'
    for method, path, text in (
        ("POST", "/api/v1/generations", '{"request": {"prompt": "a\\ud800b"}}'),
        ("POST", "/api/v1/generations", '{"request": {"prompt": "a", "negative_prompt": "\\udfff"}}'),
        ("POST", "/api/v1/generations", '{"request": {"prompt": "a"}, "base": "\\ud800"}'),
        ("POST", "/sdapi/v1/txt2img", '{"prompt": "a\\ud800b"}'),
        ("POST", "/api/v1/datasets", '{"name": "\\ud800"}'),
        ("PATCH", picture, '{"pair": ["a\\ud800", "b"]}'),
        ("PATCH", picture, '{"caption": "\\ud800"}'),
        ("POST", "/api/v1/runs", f'{{"method": "reversion", "dataset": "{dataset}", "settings": {half}}}'),
        ("POST", "/api/v1/scores", f'{{"concept": "\\ud800", "dataset": "{dataset}"}}'),
    ):
        answer = send(web, method, path, text)
        assert answer.status_code == 422 and answer.headers["content-type"] == MEDIA, (path, text, answer.text)
    for path in ("generations", "runs", "datasets", "concepts", f"datasets/{dataset}/pictures"):
        assert web.get(f"/api/v1/{path}").status_code == 200, path
    (jobs.datasets.folder(dataset) / "pairs.json").write_text(json.dumps({name: ["a\ud800", "b"]}))
    (jobs.datasets.folder(dataset) / "0001.txt").write_bytes(b"caf\xe9")
    assert web.get(f"/api/v1/datasets/{dataset}/pictures").json()[0]["pair"] == ["a\ufffd", "b"]


def test_long_texts_are_refused(web):
    text = json.dumps({"request": {"prompt": "x" * (LONGEST + 1)}})
    assert send(web, "POST", "/api/v1/generations", text).status_code == 422
    assert send(web, "POST", "/sdapi/v1/txt2img", json.dumps({"prompt": "x " * LONGEST})).status_code == 422
    many = {"request": {"prompt": "x", "concepts": [{"source": "a"}] * 101}}
    assert send(web, "POST", "/api/v1/generations", json.dumps(many)).status_code == 422


def test_a_damaged_row_hides_no_other(jobs, web):
    good = jobs.ledger.add("generation", {"request": {"prompt": "a fox"}, "base": "pocket"})
    old, damaged = (jobs.ledger.add("generation", {"request": {"prompt": "x"}, "base": "pocket"}) for _ in "ab")
    with sqlite3.connect(jobs.ledger.path) as record:
        record.execute("UPDATE jobs SET spec = ? WHERE id = ?", ('{"request": {"prompt": "a\\ud800b"}}', old.id))
        record.execute("UPDATE jobs SET spec = '{', state = 'failed' WHERE id = ?", (damaged.id,))
        record.execute("UPDATE events SET data = '[]' WHERE job = ?", (old.id,))
    listed = {one["id"]: one for one in web.get("/api/v1/generations").json()}
    assert good.id in listed and damaged.id not in listed
    assert listed[old.id]["spec"]["request"]["prompt"] == "a\ufffdb"
    assert jobs.events(old.id) == []
    answer = web.get(f"/api/v1/generations/{damaged.id}")
    assert answer.status_code == 422 and damaged.id in answer.json()["detail"]
    with pytest.raises(DamagedRecord, match="Delete it"):
        jobs.get(damaged.id)
    Ledger(jobs.ledger.path).delete(damaged.id)
    assert web.get(f"/api/v1/generations/{damaged.id}").status_code == 404


def hostile_concepts(folder):
    """Three bad files, and a good one beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"<good>": torch.ones(1, 768)}, folder / "good.safetensors")
    header = {HALF: {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    (folder / "half.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    save_file({"a\x1b[31mb": torch.ones(1, 768)}, folder / "control.safetensors")
    save_file({"<name>": torch.ones(1, 768)}, folder / "caf\udce9.safetensors")
    return folder


def test_a_bad_file_hides_no_other(jobs, web, capsys):
    folder = hostile_concepts(jobs.learned)
    listed = {one["id"]: one for one in web.get("/api/v1/concepts").json()}
    assert listed["good"]["card"]["token"] == "<good>"
    for name in ("half", "control", "caf\ufffd"):
        assert listed[name]["card"] is None and listed[name]["problem"], name
    assert send(web, "POST", "/sdapi/v1/txt2img", '{"prompt": "x", "steps": 0}').status_code == 422
    assert set(web.get("/sdapi/v1/embeddings").json()["loaded"]) == {"<good>"}
    assert main(["concepts", "list", "--library", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "<good>" in said and said.count("  damaged: ") == 3 and "\x1b" not in said


def test_whatever_a_file_does_the_others_are_listed(tmp_path, monkeypatch):
    hostile_concepts(tmp_path)

    def broken(path):
        raise ZeroDivisionError

    monkeypatch.setattr(concepts, "read_card", broken)
    assert all("cannot be read" in entry.problem or "Unicode" in entry.problem for entry in concepts.scan(tmp_path))


@pytest.mark.parametrize(
    "words",
    [
        ["generate", HALF],
        ["generate", "a", "--negative-prompt", HALF],
        ["generate", "a", "--concept", HALF],
        ["generate", "a", "--box", f"{HALF}:0,0,1,1"],
        ["concepts", "show", HALF],
        ["train", "textual-inversion", "--images", "none", "--token", HALF, "--init", "fox"],
        [HALF],
    ],
)
def test_arguments_that_are_no_text_are_refused_in_a_sentence(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "studio: " in capsys.readouterr().err
