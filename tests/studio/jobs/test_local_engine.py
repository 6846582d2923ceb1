"""Processes of jobs that are told apart by no clock, and not waited for when they are stuck; one server a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from pipelines.errors import ConfigError
from pipelines.locks import sole_training
from studio.cli import main
from studio.jobs import local_engine as engine
from studio.jobs.jobs import Jobs
from studio.jobs.local_engine import BEAT, LocalEngine, birth, lives_here
from studio.jobs.specs import Places
from studio.jobs.store import Ledger
from studio.settings import Machine
from tests.waiting import LIMIT, until


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait(LIMIT)


def test_a_stepped_clock_changes_nothing(tmp_path, sleeper, monkeypatch):
    ledger = Ledger(tmp_path / "jobs.sqlite")
    job = ledger.add("generation", {"prompt": "x"})
    assert ledger.claim(job.id, sleeper.pid, birth(sleeper.pid))
    before = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: before + 3600)
    assert lives_here(ledger.get(job.id))
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert birth(other.pid) >= birth(sleeper.pid) > 0
    other.kill()
    other.wait(LIMIT)
    sleeper.kill()
    sleeper.wait(LIMIT)
    assert birth(sleeper.pid) == 0 and not lives_here(ledger.get(job.id))


def test_a_process_that_is_stuck_before_it_claims_is_ended_and_another_begins(tmp_path, monkeypatch):
    ledger, places = Ledger(tmp_path / "jobs.sqlite"), Places(tmp_path, {"pocket": "pocket"})
    hands = LocalEngine(places, Machine(), warm=False)
    job = ledger.add("generation", {"request": {"prompt": "x"}, "base": "pocket"})
    try:
        assert hands.begin(job) and hands.holds(job)
        first = hands._hands[0].process
        os.kill(first.pid, signal.SIGSTOP)
        (tmp_path / f"{BEAT}-{first.pid}").touch()
        assert hands.holds(job)  # it has just given a sign
        monkeypatch.setattr(engine, "STILL", 0.2)
        until(lambda: not hands.holds(job), "the end of a process that is stuck")
        assert first.poll() is not None
        monkeypatch.undo()
        assert hands.begin(job) and hands.holds(job)
        assert hands._hands[0].process.pid != first.pid and not (tmp_path / f"{BEAT}-{first.pid}").exists()
    finally:
        hands.close([], 0)


def test_a_worker_says_that_it_is_not_stuck(tmp_path):
    Ledger(tmp_path / "jobs.sqlite")
    hands = LocalEngine(Places(tmp_path, {"a": "none", "b": "none"}), Machine())
    hands.settle()
    (beat,) = [hand.beat for hand in hands._hands]
    try:
        until(lambda: beat.exists() or not hands._hands[0].lives, "its first sign of life")
        before = beat.stat().st_mtime_ns
        until(lambda: beat.stat().st_mtime_ns != before or not hands._hands[0].lives, "its next sign of life")
        assert hands._hands[0].lives
    finally:
        hands.close([], 0)
    assert not beat.exists()


def test_two_servers_in_one_folder_are_one_too_many(tmp_path, capsys):
    with Jobs(tmp_path, warm=False):
        with pytest.raises(ConfigError, match="Another server works in"):
            Jobs(tmp_path, warm=False).start()
        assert main(["serve", "--no-page", "--port", "0", "--folder", str(tmp_path)]) == 2
        assert "another --folder" in capsys.readouterr().err
    with Jobs(tmp_path, warm=False):
        pass


def test_one_training_at_a_time_writes_a_file(tmp_path):
    output = tmp_path / "x.safetensors"
    with sole_training(output):
        with (
            pytest.raises(ConfigError, match=r"x.safetensors is being learned by another process"),
            sole_training(output),
        ):
            pass
        with sole_training(tmp_path / "y.safetensors"):
            pass
    with sole_training(output):
        pass
    assert list(tmp_path.iterdir()) == []
