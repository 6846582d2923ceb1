"""One server's jobs for all tests that need some: its process loads torch once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from studio.jobs import Jobs

WOLF = sorted((Path(__file__).parents[2] / "examples" / "wolf").glob("*.png"))


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    with Jobs(tmp_path_factory.mktemp("server")) as jobs:
        yield jobs


@pytest.fixture(scope="session")
def wolves(jobs):
    dataset = jobs.datasets.create("wolves")
    for path in WOLF:
        jobs.datasets.add(dataset.id, path.read_bytes(), path.name)
    return dataset.id


@pytest.fixture(scope="session")
def until(jobs):
    """Waits until a job is as wanted."""

    def wait(job, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition(jobs.get(job)):
            assert time.monotonic() < end, jobs.get(job)
            time.sleep(0.02)
        return jobs.get(job)

    return wait


@pytest.fixture(scope="session")
def ended(until):
    return lambda job: until(job, lambda now: now.ended)
