"""One server's jobs for all tests that need some: its process loads torch once."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import psutil
import pytest

from studio.jobs.jobs import Jobs

WOLF = sorted((Path(__file__).parents[2] / "studio" / "examples" / "wolf").glob("*.png"))


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    with Jobs(tmp_path_factory.mktemp("server")) as jobs:
        yield jobs
        last = jobs.submit_generation({"prompt": "a fox", "steps": 1000})
        _wait(jobs, last.id, lambda now: now.step > 0, 120)
        began = time.monotonic()
        (process,) = [psutil.Process(job.pid) for job in jobs.list(states=("running",))]
    # What runs when a server is stopped waits for the next one, and nothing is left at work.
    assert jobs.get(last.id).state == "queued" and not process.is_running()
    assert time.monotonic() - began < 15, "it had to be killed"


@pytest.fixture(scope="session")
def wolves(jobs):
    dataset = jobs.datasets.create("wolves")
    for path in WOLF:
        jobs.datasets.add(dataset.id, path.read_bytes(), path.name)
    return dataset.id


@pytest.fixture(scope="session")
def until(jobs):
    """Waits until a job is as wanted."""

    return lambda job, condition, seconds=120: _wait(jobs, job, condition, seconds)


def _wait(jobs, job, condition, seconds):
    end = time.monotonic() + seconds
    while not condition(jobs.get(job)):
        assert time.monotonic() < end, jobs.get(job)
        time.sleep(0.02)
    return jobs.get(job)


@pytest.fixture
def heard(caplog, monkeypatch):
    """Return a function that begins to hear a logger, whatever a server in this process made of its loggers before."""

    def hear(logger):
        monkeypatch.setattr(logger, "disabled", False)
        monkeypatch.setattr(logger, "handlers", [caplog.handler])
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        monkeypatch.setattr(logger.manager, "disable", logging.NOTSET)
        logger._cache.clear()  # it remembers which levels it was told not to hear
        return caplog

    return hear


@pytest.fixture(scope="session")
def ended(until):
    return lambda job: until(job, lambda now: now.ended)
