"""The queue: nothing is looked at for nothing, and a job is begun as soon as it is asked for."""

from __future__ import annotations

import threading
import time
from typing import get_args

import pytest

from studio.jobs import dispatcher
from studio.jobs.jobs import Jobs
from studio.jobs.rows import Kind
from tests.waiting import until


@pytest.fixture
def idle(tmp_path, monkeypatch):
    """A server that looks at its processes once an hour while there is no job; times of its looks."""
    monkeypatch.setattr(dispatcher, "IDLE", 3600.0)
    looks, real = [], dispatcher.Dispatcher.tick
    monkeypatch.setattr(dispatcher.Dispatcher, "tick", lambda self: (looks.append(time.monotonic()), real(self))[1])
    with Jobs(tmp_path / "server") as jobs:
        until(lambda: looks, "the first look")
        yield jobs, looks


def test_an_idle_queue_is_not_looked_at_and_a_job_wakes_it(idle):
    jobs, looks = idle
    threading.Event().wait(5 * dispatcher.TICK)
    before = len(looks)
    assert before <= 2, "the server looks though there is nothing to do"
    job = jobs.submit_generation({"prompt": "a fox", "steps": 1})
    until(lambda: len(looks) > before, "a look", seconds=10)
    until(lambda: jobs.get(job.id).state == "done", "the picture")
    stopped = jobs.submit_generation({"prompt": "a fox", "steps": 1000})
    until(lambda: jobs.get(stopped.id).step > 0, "a step")
    jobs.cancel(stopped.id)
    until(lambda: jobs.get(stopped.id).state == "cancelled", "the end")


def test_a_server_that_waits_stops_at_once(idle):
    jobs, _ = idle
    began = time.monotonic()
    jobs.dispatcher.stop()
    assert time.monotonic() - began < 60, "it would wait an hour"


def test_every_kind_of_job_has_a_time_to_stop():
    assert set(dispatcher.GRACE) == set(get_args(Kind))
