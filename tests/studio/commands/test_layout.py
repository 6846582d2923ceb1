"""Boxes from the prompt, from files and from a language model, on the command line."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from pipelines.errors import ConfigError, RequestError
from pipelines.pictures.metadata import Made, save_png
from pipelines.request.layout_rules import plan
from pipelines.request.request import Box, Guidance
from studio.cli import main
from studio.commands.layout_llm import KEY, Planning, planner_of, read_answer
from studio.work import runner
from tests.waiting import joined

ANSWER = {"boxes": [{"phrase": "fox", "box": [0.1, 0.2, 0.5, 0.6]}, {"phrase": "house", "box": [0.5, 0.2, 0.9, 0.6]}]}


@contextmanager
def endpoint(content, status=200):
    """A web server that answers chat completions with `content` (of a tuple in turn), and keeps what it is asked.

    An answer of None is an error of the server.
    """
    asked = []

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, json.loads(body), self.headers.get("Authorization")))
            now = content[(len(asked) - 1) % len(content)] if isinstance(content, tuple) else content
            said = now if isinstance(now, bytes) else json.dumps(now).encode()
            self.send_response(500 if now is None else status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        joined(thread)
        server.server_close()


def message(content):
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


def test_a_language_model_plans_when_it_is_given(monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    with endpoint(message(f"Here you are:\n```json\n{json.dumps(ANSWER)}\n```")) as (address, asked):
        boxes = planner_of(Planning(planner=address, planner_model="small"))("a fox and a house")
    assert [box.model_dump(exclude={"picture"}) for box in boxes] == [
        {"phrase": one["phrase"], "box": tuple(one["box"])} for one in ANSWER["boxes"]
    ]
    ((path, body, authorization),) = asked
    assert path == "/v1/chat/completions" and authorization == "Bearer secret"
    assert body["model"] == "small" and body["messages"][-1] == {"role": "user", "content": "a fox and a house"}


def test_nothing_leaves_the_machine_by_default(monkeypatch):
    import httpx

    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(httpx.Client, "send", refuse)
    assert planner_of(Planning()) is plan
    assert main(["layout", "a fox"]) == 0


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (message("I cannot."), 200, "holds no boxes: 'I cannot.'"),
        (message('{"boxes": []}'), 200, "holds no boxes"),
        (message('{"boxes": [{"phrase": "fox", "box": [10, 20, 50, 60]}]}'), 200, r"planner's answer: box 1.*pixels"),
        (message('{"boxes": [{"phrase": "fox", "box": [0, 0, "wide", 1]}]}'), 200, "holds no boxes"),
        (message(json.dumps({"boxes": ANSWER["boxes"] * 16})), 200, "box 31"),
        ({"error": "no such model"}, 404, "answered 404: .*no such model"),
        ({"hello": 1}, 200, "does not speak chat completions"),
        (message(None), 200, "does not speak chat completions"),
        (message([{"type": "text", "text": 7}]), 200, "does not speak chat completions"),
        (b"<html>", 200, "does not speak chat completions"),
        (b"x" * (2 << 20), 200, "answered 200"),
    ],
)
def test_answers_that_are_none_are_one_error(content, status, said):
    with endpoint(content, status) as (address, _), pytest.raises(RequestError, match=said):
        planner_of(Planning(planner=address))("a fox")


def test_endpoints_that_are_none_are_one_error():
    with pytest.raises(ConfigError, match="no web address"):
        planner_of(Planning(planner="localhost"))
    with pytest.raises(ConfigError, match="--planner-model is of an endpoint"):
        planner_of(Planning(planner_model="small"))
    with pytest.raises(RequestError, match="gave no answer"):
        planner_of(Planning(planner="http://127.0.0.1:1/v1", planner_timeout=5))("a fox")
    with pytest.raises(RequestError, match="holds no boxes"):
        read_answer("}{")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The requests that reach the runner, which here draws blanks that say how they were made."""
    requests = []

    def blank(request, base, output, machine, **more):
        requests.append(request)
        full = request.model_copy(
            update={"steps": 1, "scheduler": "ddim", "width": 64, "height": 64, "guidance": Guidance(scale=1.0)}
        )
        return [save_png(Image.new("RGB", (64, 64), "white"), tmp_path / "0.png", Made(full, 0, base, "x"))]

    monkeypatch.setattr(runner, "write_pictures", blank)
    return requests


def test_a_layout_is_planned_from_the_prompt(asked, capsys):
    assert main(["generate", "two foxes left of a house", "--layout", "--draw-boxes"]) == 0
    assert [box.phrase for box in asked[0].boxes] == ["fox", "fox", "house"]
    picture, over = map(Path, capsys.readouterr().out.split())
    assert over.name == "0.boxes.png"
    with Image.open(picture) as plain, Image.open(over) as drawn:
        assert plain.getcolors() == [(4096, (255, 255, 255))] and len(drawn.convert("RGB").getcolors(9999)) > 3


def test_boxes_come_from_a_file_that_layout_wrote(asked, capsys, tmp_path):
    for form, name in (("yolo", "a.txt"), ("coco", "a.json"), ("bbox", "a.bbox"), ("pixels", "b.json")):
        path = tmp_path / name
        assert main(["layout", "a fox above a house", "--form", form, "--output", str(path)]) == 0
        assert main(["generate", "a fox above a house", "--boxes-from", str(path)]) == 0
        assert [box.phrase for box in asked[-1].boxes] == ["fox", "house"]
    assert main(["generate", "a fox", "--boxes-from", f"{tmp_path / 'a.json'}:a.png"]) == 0
    assert main(["layout", "--source", str(tmp_path / "a.txt")]) == 0
    assert capsys.readouterr().out.split("\n")[-2].startswith("house:0.2")


def test_what_layout_prints_is_what_box_reads(asked, capsys):
    assert main(["layout", "a red fox left of a house"]) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert main(["generate", "x", *(part for line in lines for part in ("--box", line))]) == 0
    planned = plan("a red fox left of a house")
    assert asked[0].boxes == planned == (Box(phrase="red fox", box=planned[0].box), planned[1])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["generate", "a fox", "--layout", "--box", "fox:0,0,1,1"], "--box and --layout"),
        (["generate", "a fox", "--layout", "--boxes-from", "x.json"], "--layout and --boxes-from"),
        (["generate", "", "--layout"], "no prompt"),
        (["generate", "a fox", "--boxes-from", "gone.json"], "gone.json cannot be read"),
        (["layout"], "Give a sentence"),
        (["layout", "a fox", "--size", "0", "5"], "0 x 5"),
        (["layout", "a fox", "--planner", "nowhere"], "no web address"),
    ],
)
def test_what_cannot_be_is_one_sentence(asked, capsys, typed, said):
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not asked
