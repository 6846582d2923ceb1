"""Limits that hold however many come at once: pictures that are decoded, and connections that wait."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import uvicorn

from studio.api import connections
from studio.api.connections import Timely
from studio.library import datasets as datasets_module
from studio.library import uploads
from studio.library.datasets import Datasets, PictureUploads
from studio.serve import prompt
from tests.studio.library.test_datasets import picture
from tests.waiting import joined, until


def test_no_more_than_two_pictures_are_in_memory_until_they_are_written(tmp_path, monkeypatch):
    alive, most, lock = 0, 0, threading.Lock()
    read, write = uploads.cleaned, uploads.write_png

    def cleaned(*given):
        nonlocal alive, most
        one = read(*given)
        with lock:
            alive += 1
            most = max(most, alive)
        return one

    def write_png(*given):
        nonlocal alive
        time.sleep(0.02)  # let others come in
        path = write(*given)
        with lock:
            alive -= 1
        return path

    monkeypatch.setattr(datasets_module, "cleaned", cleaned)
    monkeypatch.setattr(datasets_module, "write_png", write_png)
    stored, pictures = Datasets(tmp_path / "datasets"), PictureUploads(tmp_path / "pictures")
    sets = [stored.create().id for _ in range(4)]
    for one in sets:
        stored.add(one, picture())
    ways = [
        *(lambda one=one: stored.add(one, picture()) for one in sets),
        *(lambda one=one: stored.replace(one, "0001.png", picture()) for one in sets),
        *(lambda one=one: stored.set_mask(one, "0001.png", picture(color=(250, 250, 250))) for one in sets),
        *[lambda: pictures.add(picture())] * 4,
    ]
    most = 0
    threads = [threading.Thread(target=way, daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    joined(*threads)
    assert (alive, most) == (0, 2)
    assert [len(stored.entries(one)) for one in sets] == [2] * 4


async def hello(scope, receive, send):
    """The smallest application."""
    if scope["type"] == "http":
        while scope["path"] == "/wait" and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
def address():
    config = uvicorn.Config(hello, port=0, http=Timely, ws="none", log_level="error", lifespan="off")
    server, listening = uvicorn.Server(config), prompt(config.bind_socket())
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    until(lambda: server.started, "the server")
    yield listening.getsockname()
    server.should_exit = True
    joined(thread)


HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def answer(connection):
    text = b""
    while not text.endswith(b"hi"):
        part = connection.recv(4096)
        assert part, "it was closed"
        text += part


def test_half_a_request_is_not_waited_for_and_whole_ones_are_answered(address, monkeypatch):
    monkeypatch.setattr(connections, "HEAD", 0.3)
    silent, half = socket.create_connection(address, 60), socket.create_connection(address, 60)
    half.sendall(HEAD[:20])
    second = socket.create_connection(address, 60)
    second.sendall(HEAD)
    answer(second)
    second.sendall(HEAD[:20])
    for one in (silent, half, second):
        assert one.recv(100) == b""  # closed by the server
        one.close()
    with socket.create_connection(address, 60) as kept:
        for _ in range(3):
            kept.sendall(HEAD)
            answer(kept)


def test_a_body_that_stops_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(connections, "BODY", 0.3)
    with socket.create_connection(address, 60) as half:
        half.sendall(b"POST /wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        assert half.recv(100) == b""  # closed by the server


def test_the_server_sends_small_answers_at_once(address, monkeypatch):
    options, made = [], Timely.connection_made

    def noted(self, transport):
        made(self, transport)
        accepted = transport.get_extra_info("socket")
        options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(Timely, "connection_made", noted)
    with socket.create_connection(address, 60) as kept:
        kept.sendall(HEAD)
        answer(kept)
    assert len(options) == 1 and options[0], "small packets wait for the client's acknowledgement, 40 ms"


@pytest.mark.parametrize("name", ["con.safetensors", "AUX.pt", "x/nul.bin"])
def test_a_file_called_as_windows_calls_a_device_is_put_aside_by_another_name(name, tmp_path):
    (tmp_path / "in").mkdir()
    assert uploads.put_aside(b"x", name, tmp_path / "in").stem == "upload"  # --token, or its header, gives it a word
