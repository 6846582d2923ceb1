"""Space and memory that run out are known as that, in whatever error they come; all errors here are real ones."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from pipelines.errors import ConfigError, NoMemory, NoSpace
from pipelines.events import Note
from pipelines.exhaustion import hardship
from pipelines.files import require_room, whole_file
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.api.problems import status_of
from studio.cli import main
from studio.jobs.jobs import Jobs
from studio.jobs.specs import Places
from studio.jobs.store import Ledger
from studio.jobs.worker import Worker
from studio.library.concepts import EXAMPLE
from studio.library.datasets import Datasets
from studio.library.import_export import import_concept
from studio.settings import Machine
from trainers.loop import launch
from trainers.methods import methods
from trainers.run import run_of

FULL = Path("/dev/full")


def full_database():
    record = sqlite3.connect(":memory:")
    record.execute("CREATE TABLE x (y)")
    record.execute("PRAGMA max_page_count = 3")
    record.execute("INSERT INTO x VALUES (?)", ("x" * 100_000,))


def saved_to_a_full_file():
    with FULL.open("wb") as stream:
        torch.save({"a": torch.ones(100_000)}, stream)


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda: FULL.write_text("x"), NoSpace),
        (saved_to_a_full_file, NoSpace),
        (full_database, NoSpace),
        (lambda: torch.empty(1 << 55), NoMemory),
        (lambda: bytearray(1 << 62), NoMemory),
    ],
)
def test_what_ran_out_is_known(act, kind):
    with pytest.raises(Exception) as caught:
        act()
    found = hardship(caught.value)
    assert isinstance(found, kind) and found.hint
    assert status_of(found) == {NoSpace: 507, NoMemory: 503}[kind]
    hidden = RuntimeError("something else")
    hidden.__cause__ = caught.value
    assert isinstance(hardship(hidden), kind)


def test_other_errors_are_not_taken_for_it():
    for error in (ValueError("x"), FileNotFoundError(2, "no"), ConfigError("This base runs out of memory.")):
        assert hardship(error) is None


def test_a_file_for_which_there_is_no_room_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(NoSpace, match=r"a\.txt cannot be written: no space"), whole_file(path):
        FULL.write_text("new")
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(NoSpace, match="MiB are free") as error:
        require_room(tmp_path, 1 << 60)
    assert isinstance(error.value, OSError) and isinstance(error.value, ConfigError)


def test_a_full_record_says_so_and_stays_sound(tmp_path):
    ledger = Ledger(tmp_path / "jobs.sqlite")
    job = ledger.add("generation", {"prompt": "x"})
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(NoSpace):
        ledger.tell(job.id, "note", {"text": "x" * 100_000})
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    ledger.tell(job.id, "note", {"text": "y"})
    assert [event.data.get("text") for event in ledger.events(job.id, kinds=("note",))] == ["y"]


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (lambda *_: FULL.write_text("x"), 507),
        (full_database, 507),
        (lambda *_: torch.empty(1 << 55), 503),
        (lambda *_: bytearray(1 << 62), 503),
    ],
)
def test_clients_are_told_and_their_connection_stays(tmp_path, monkeypatch, act, status):
    monkeypatch.setattr(Datasets, "create", lambda *_: act())
    web = TestClient(guarded(rest(Jobs(tmp_path / "server", warm=False)), Door()), base_url="http://localhost")
    answer = web.post("/api/v1/datasets", json={})  # what is raised up to the server closes the connection
    assert answer.status_code == status and answer.json()["hint"]


class Short:
    """A record on a disk that is full for a while."""

    def __init__(self, ledger, times):
        self.ledger, self.times = ledger, times

    def __getattr__(self, name):
        return getattr(self.ledger, name)

    def move(self, *given, **changes):
        if self.times:
            self.times -= 1
            raise NoSpace("No space is left on the disk.")
        return self.ledger.move(*given, **changes)


@pytest.mark.parametrize(
    ("fails", "said"),
    [(lambda: FULL.write_text("x"), "No space"), (lambda: torch.empty(1 << 55), "memory")],
)
def test_a_job_that_failed_for_it_says_so_and_is_asked_again_with_its_key(tmp_path, monkeypatch, fails, said):
    ledger = Ledger(tmp_path / "jobs.sqlite")
    worker = Worker(Places(tmp_path, {"pocket": "pocket"}), Machine(), Short(ledger, 1))
    worker.ledger.claim = ledger.claim  # it began while there was room
    monkeypatch.setattr(worker, "_carry_out", lambda *_: fails())
    monkeypatch.setattr("studio.jobs.worker.time.sleep", lambda seconds: None)
    job = ledger.add("generation", {"request": {"prompt": "x"}, "base": "pocket"}, key="k")
    worker.run(job.id)
    failed = ledger.get(job.id)
    assert failed.state == "failed" and said in failed.error and "defect" not in failed.hint
    assert ledger.add("generation", {"request": {"prompt": "x"}, "base": "pocket"}, key="k").id != job.id


def test_what_cannot_be_told_or_shown_stops_no_work(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "jobs.sqlite")
    worker = Worker(Places(tmp_path, {"pocket": "pocket"}), Machine(), ledger)
    job = ledger.add("training", {"dataset": "x", "base": "pocket"})
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    worker.tell(job, Note("x" * 100_000))  # the record is full
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    worker.tell(job, Note("y"))
    assert [event.data.get("text") for event in ledger.events(job.id, kinds=("note",))] == ["y"]
    (tmp_path / "jobs" / job.id).mkdir(parents=True)
    (tmp_path / "jobs" / job.id / "preview-0000001.png").write_bytes(b"x")
    learned = tmp_path / "x.safetensors"
    monkeypatch.setattr("studio.jobs.worker.shutil.copyfile", lambda *_: FULL.write_text("x"))
    with pytest.raises(NoSpace):
        worker._after(job, run_of(methods()["textual-inversion"], {"token": "<x>", "init": "fox"}), [learned])
    assert list(tmp_path.glob("*preview*")) == [] and len(ledger.list()) == 1


def test_an_import_that_finds_no_room_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    source = tmp_path / "source.safetensors"
    shutil.copyfile(EXAMPLE, source)
    source.with_suffix(".preview.png").write_bytes(b"x")
    monkeypatch.setattr("studio.library.concepts.shutil.copyfile", lambda *_: FULL.write_text("x"))
    with pytest.raises(NoSpace):
        import_concept(source, None, tmp_path / "library")
    assert list((tmp_path / "library").iterdir()) == []
    monkeypatch.undo()
    assert import_concept(source, None, tmp_path / "library").is_file()


def test_the_command_line_says_it_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("studio.work.runner.doctor", lambda machine: torch.empty(1 << 55))
    assert main(["doctor"]) == 2
    assert "studio: The memory of the machine" in capsys.readouterr().err


def test_a_concept_outlives_its_log(tmp_path, monkeypatch):
    from tests import tiny
    from tests.studio.test_cli import train as learn  # the smallest training there is

    monkeypatch.chdir(tmp_path)
    tiny.sd_pipeline().save_pretrained(tmp_path / "base")
    (tmp_path / "pictures").mkdir()
    for example in tiny.examples():
        example.picture.save(tmp_path / "pictures" / example.name)
    monkeypatch.setattr(launch.shutil, "copyfile", lambda source, target: FULL.write_text("x"))
    assert learn(str(tmp_path / "base"), str(tmp_path / "pictures")) == 0
    concepts = tmp_path / "outputs" / "concepts"
    assert (concepts / "x.safetensors").is_file() and not (concepts / "x.losses.jsonl").exists()
