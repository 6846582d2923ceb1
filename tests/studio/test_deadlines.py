"""Every wait has a limit, and says what it waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from pipelines.errors import ConceptError, ConfigError, NoMemory, RequestError
from studio.commands.layout_llm import Planning, planner_of
from studio.deadlines import within
from studio.jobs import dispatcher
from studio.jobs.jobs import Jobs
from studio.library import uploads
from studio.web.models import commands as concept_commands
from tests.studio.library.test_datasets import picture
from tests.waiting import joined, until


def test_a_call_is_waited_for_so_long():
    late = ConfigError("It is late.")
    assert within(60, lambda: threading.current_thread(), late).is_alive()  # as what it began may end with it
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0, late)
    over = threading.Event()
    began = time.monotonic()
    with pytest.raises(ConfigError, match="It is late"):
        within(0.1, lambda: over.wait(60), late)
    assert time.monotonic() - began < 30
    over.set()


def test_a_queue_that_hangs_does_not_keep_a_server_from_its_end(tmp_path, monkeypatch, heard):
    monkeypatch.setattr(dispatcher, "LOOK", 0.1)
    log = heard(dispatcher._log)
    looking, over = threading.Event(), threading.Event()
    jobs = Jobs(tmp_path, warm=False)

    def tick():
        looking.set()
        over.wait(60)

    monkeypatch.setattr(jobs.dispatcher, "tick", tick)
    began = time.monotonic()
    with jobs:
        thread = jobs.dispatcher._thread
        assert looking.wait(60)
    assert time.monotonic() - began < 30 and "did not stop" in log.text
    over.set()
    joined(thread)  # it ends by itself, even if a server has begun again meanwhile


def test_pictures_that_take_for_ever_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(uploads, "WAIT", 0.1)
    over = threading.Event()

    def hold():
        with uploads.decoding():
            held.release()
            over.wait(60)

    held = threading.Semaphore(0)
    threads = [threading.Thread(target=hold, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert held.acquire(timeout=60)
    with pytest.raises(NoMemory, match=r"Two others .* Ask again"):
        uploads.cleaned(picture())
    over.set()
    joined(*threads)
    assert uploads.cleaned(picture()).size


def test_a_command_of_the_page_that_does_not_end_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(concept_commands, "LIMIT", 0.2)
    with pytest.raises(ConceptError, match="longer than 0 s and was stopped"):
        asyncio.run(concept_commands.concept_command("list", "--library", str(tmp_path)))
    until(lambda: not commands(tmp_path), "the end of the command")


def commands(folder):
    alive = []
    for process in psutil.Process().children():
        if process.status() != psutil.STATUS_ZOMBIE and str(folder) in process.cmdline():
            alive.append(process)
    return alive


@contextmanager
def dripping():
    """Address of an endpoint that never gets to the end of its answer."""
    over = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while not over.wait(0.02):
                self.wfile.write(b"x")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Dripping)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with ExitStack() as end:
        end.callback(server.server_close)
        end.callback(joined, thread)
        end.callback(server.shutdown)
        end.callback(over.set)
        yield f"http://127.0.0.1:{server.server_port}/v1"


def test_an_answer_in_drops_has_the_same_limit_as_a_whole_one():
    with dripping() as address, pytest.raises(RequestError, match=r"gave no answer: not whole within 0\.5 s"):
        planner_of(Planning(planner=address, planner_timeout=0.5))("a fox")
