"""Jobs on a real Ray with two CPUs: the same record and promises as on one machine, and nothing is left at work."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial

import psutil
import pytest

from pipelines.errors import ConfigError
from studio.cli import main
from studio.jobs import ray_engine as cluster
from studio.jobs.jobs import Jobs
from studio.jobs.specs import Places
from studio.settings import Machine
from tests import waiting
from tests.studio.conftest import WOLF
from tests.studio.jobs.test_jobs import training_order
from tests.studio.test_serve import Server
from tests.waiting import LIMIT


def opened(folder):
    """More slots than Ray has room for."""
    return Jobs(folder, slots=3, engine=partial(cluster.RayEngine, machine=Machine(), slots=3))


def until(jobs, job, condition, seconds=LIMIT):
    end = time.monotonic() + seconds
    while not condition(now := jobs.get(job.id)):
        assert time.monotonic() < end, now
        time.sleep(0.02)
    return now


def gone(processes, seconds=LIMIT):
    _, left = psutil.wait_procs(processes, seconds)
    return not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def steps_of(jobs, job):
    return [event.data["step"] for event in jobs.events(job.id, limit=100_000, kinds=("step",))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "auto"], "--engine ray as well"),
        (["--engine", "ray", "--cluster", "ray://far:10001"], "ray start --address"),
        (["--engine", "ray", "--cluster", "127.0.0.1:1"], "Nobody answers at 127.0.0.1:1"),
        (["--engine", "ray", "--cluster", "here"], "Nobody answers at here"),
        (["--engine", "ray"], "promptstudio[ray]"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert main(["serve", "--folder", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


def test_the_gpu_is_chosen_by_ray(folder):
    for device, said in (("cuda:1", "Ray chooses the GPU"), ("cuda", "no GPU")):
        with pytest.raises(ConfigError, match=said):
            cluster.RayEngine(Places(folder, {}), Machine(device=device))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    cluster.connect(None, 2)  # Ray is imported in there, with settings of ours
    import ray

    yield tmp_path_factory.mktemp("cluster")
    ray.shutdown()


def test_a_machine_that_does_not_see_the_folder_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "setup_of", lambda *_: json.dumps({"folder": str(tmp_path / "elsewhere")}))
    with opened(tmp_path) as jobs:
        job = until(jobs, jobs.submit_generation({"prompt": "a fox"}), lambda now: now.ended)
    assert job.state == "failed" and "does not see the server's folder" in job.error and "elsewhere" in job.error


@pytest.fixture(scope="module")
def jobs(folder):
    with opened(folder) as jobs:
        yield jobs


@pytest.fixture(scope="module")
def training(jobs):
    dataset = jobs.datasets.create("wolves").id
    jobs.datasets.add(dataset, WOLF[0].read_bytes(), WOLF[0].name)
    return lambda steps: jobs.submit_training(*training_order(steps), dataset)


def test_as_many_run_at_once_as_there_is_room_for_and_each_stops_within_a_step(jobs):
    first, second, third = (jobs.submit_generation({"prompt": "a fox", "steps": 999}) for _ in range(3))
    for job in (first, second):
        until(jobs, job, lambda now: now.step >= 2)
    running = [jobs.get(job.id) for job in (first, second)]
    assert len({job.pid for job in running}) == 2 and jobs.get(third.id).state == "queued"
    at = jobs.get(first.id).step
    jobs.cancel(first.id)
    stopped = until(jobs, first, lambda now: now.ended, 20)
    assert stopped.state == "cancelled" and stopped.step <= at + 2
    # What waits for an actor that there is no room for gets the one that has become free.
    assert until(jobs, third, lambda now: now.step >= 1, 20).pid == running[0].pid
    for job in (second, third):
        jobs.cancel(job.id)
        until(jobs, job, lambda now: now.ended)
    short = [jobs.submit_generation({"prompt": "a fox", "steps": 20}) for _ in range(2)]
    one, other = (until(jobs, job, lambda now: now.ended) for job in short)
    assert one.state == other.state == "done" and jobs.results(one.id) and jobs.results(other.id)
    assert one.started < other.finished and other.started < one.finished
    assert steps_of(jobs, one) == steps_of(jobs, other) == list(range(1, 21))


def test_a_training_pauses_goes_on_and_outlives_its_actor(jobs, training):
    job = training(60)
    until(jobs, job, lambda now: now.step >= 10)
    jobs.pause(job.id)
    paused = until(jobs, job, lambda now: now.state == "paused")
    assert paused.step < 50 and list(jobs.learned.glob(".my-wolf.state/step-*"))
    jobs.resume(job.id)
    running = until(jobs, job, lambda now: now.step > paused.step)
    os.kill(running.pid, signal.SIGKILL)
    done = until(jobs, job, lambda now: now.ended)
    assert done.state == "done" and (done.lost, done.begun) == (1, 3)
    steps = steps_of(jobs, job)
    assert steps[-1] == 60 and steps.count(10) == 1, "it was begun anew, not gone on with"
    assert len(steps) - len(set(steps)) <= 1, "more was done again than what was lost since the last state"
    jobs.learned.joinpath("my-wolf.safetensors").unlink()


def test_a_training_outlives_servers_that_are_closed_and_killed(jobs, folder, training, monkeypatch):
    job = training(1_000)
    running = until(jobs, job, lambda now: now.step >= 20)
    monkeypatch.setattr(cluster, "IDLE", 0.0)
    waiting.until(lambda: [one.pid for one in actors()] == [running.pid], "actors without work to give up their places")
    (actor,) = actors()
    began = time.monotonic()
    jobs.stop()
    assert time.monotonic() - began < 15, "it had to be killed"
    kept = jobs.get(job.id)
    assert kept.state == "queued" and kept.step >= 20 and gone([actor], 0)

    server = Server(folder, "--engine", "ray")
    try:
        server.until(job.id, lambda now: now["step"] > kept.step + 10)
        process = psutil.Process(server.process.pid)
        theirs = process.children(recursive=True)
        assert jobs.get(job.id).pid in [one.pid for one in actors(process)]
        talk = {ip.removeprefix("::ffff:") for one in (process, *theirs) for ip in addresses(one)}
        assert talk and talk <= {"127.0.0.1", "::1"}
    finally:
        server.kill()
    working = [one for one in theirs if "Agent" not in titled(one)]  # two of Ray's take a minute
    assert gone(working), "actors outlive their server"

    seen = jobs.get(job.id)
    assert seen.state == "running" and seen.lost == 0  # as the record has it
    later = opened(folder)
    later.dispatcher.tick()
    assert later.get(job.id).state == "queued" and later.get(job.id).lost == 1
    later.cancel(job.id)
    later.stop()
    steps = steps_of(jobs, job)
    assert steps[:2] == [10, 20] and steps.count(10) == 1, "it was begun anew, not gone on with"
    assert len(steps) - len(set(steps)) <= 1
    assert not list(jobs.learned.glob(".my-wolf.state"))


def titled(process):
    """Return the name of a process; nothing if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def actors(process=None):
    """The actors of a server that do jobs, of this process by default."""
    return [one for one in (process or psutil.Process()).children(recursive=True) if "ray::FarWorker" in titled(one)]


def addresses(process):
    """Return the addresses on which a process listens and to which it is connected."""
    return [place.ip for one in process.net_connections(kind="inet") for place in (one.laddr, one.raddr) if place]
