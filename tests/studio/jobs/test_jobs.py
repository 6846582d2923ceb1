"""Jobs with the real worker and pocket: what was asked for happens once, stops when told to, and is not lost."""

from __future__ import annotations

import threading

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from pipelines.concepts.card import read_card
from pipelines.enlarging.networks import Compact
from pipelines.errors import ConceptError, ConfigError, Conflict, RequestError, Unknown
from pipelines.pictures.metadata import parameters, read_made
from studio.cli import main
from studio.jobs.store import Ledger
from studio.web.panels.answer import larger
from tests.waiting import joined


def training_order(steps, token="<my-wolf>", **more):
    fields = {"token": token, "init": "fox", "steps": steps, "batch": 1, "warmup": 0, "keep_every": 5}
    return "textual-inversion", fields | more


def test_pictures_are_made_and_tell_how_without_telling_where(jobs, ended):
    done = ended(jobs.submit_generation({"prompt": "a fox", "steps": 3, "count": 2}).id)
    assert done.state == "done" and (done.step, done.steps) == (3, 3)
    made = [read_made(path) for path in jobs.results(done.id)]
    assert [one.index for one in made] == [0, 1] and made[0].request.prompt == "a fox"
    events = jobs.events(done.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.data["state"] for event in events if event.kind == "state"] == ["queued", "running", "done"]
    assert [event.data["step"] for event in jobs.events(done.id, kinds=("step",))] == [1, 2, 3]
    assert [(step, path.is_file()) for step, path, _ in jobs.previews(done.id)] == [(1, True), (2, True)]
    assert str(jobs.folder) not in jobs.results(done.id)[0].read_bytes().decode("latin1")


def test_a_training_pauses_goes_on_and_is_used(jobs, wolves, until, ended):
    job = jobs.submit_training(*training_order(40, preview_every=10), wolves)
    with pytest.raises(Conflict, match="being learned already"):
        jobs.submit_training(*training_order(10), wolves)
    until(job.id, lambda now: now.step >= 10)
    jobs.pause(job.id)
    paused = until(job.id, lambda now: now.state == "paused")
    assert paused.step < 40 and list(jobs.learned.glob(".my-wolf.state/step-*"))
    jobs.resume(job.id)
    done = ended(job.id)
    assert done.state == "done" and [path.name for path in jobs.results(job.id)] == ["my-wolf.safetensors"]
    assert read_card(jobs.results(job.id)[0]).token == "<my-wolf>"
    steps = [event.data["step"] for event in jobs.events(job.id, kinds=("step",))]
    assert steps == sorted(set(steps)) and steps[-1] == 40
    assert [step for step, path, caption in jobs.previews(job.id) if path.is_file()] == [10, 20, 30, 40]
    with pytest.raises(Conflict, match="there already"):
        jobs.submit_training(*training_order(10), wolves)
    used = {"prompt": "a <my-wolf>", "steps": 2, "concepts": [{"source": "my-wolf"}]}
    drawn = ended(jobs.submit_generation(used).id)
    assert read_made(jobs.results(drawn.id)[0]).request.concepts[0].source == "concepts/my-wolf.safetensors"


def test_cancel_stops_within_a_step_and_the_process_goes_on(jobs, until, ended):
    warm = ended(jobs.submit_generation({"prompt": "a fox", "steps": 1}).id)
    job = jobs.submit_generation({"prompt": "a fox", "steps": 999})
    waiting = jobs.submit_generation({"prompt": "a fox", "steps": 1})
    running = until(job.id, lambda now: now.step >= 2)
    jobs.cancel(job.id)
    at = jobs.get(job.id).step
    stopped = until(job.id, lambda now: now.state == "cancelled", 20)
    assert stopped.step <= at + 2 and not jobs.results(job.id)
    assert ended(waiting.id).state == "done" and psutil.pid_exists(running.pid)
    with pytest.raises(Conflict, match="ended"):
        jobs.cancel(job.id)
    assert warm.ended


def test_what_waits_is_cancelled_at_once(jobs, ended):
    first = jobs.submit_generation({"prompt": "a fox", "steps": 200})
    second = jobs.submit_generation({"prompt": "a fox", "steps": 200})
    assert jobs.cancel(second.id).state == "cancelled"
    jobs.cancel(first.id)
    assert ended(first.id).state == "cancelled"


def test_a_training_that_is_cancelled_leaves_its_name_free(jobs, wolves, until, ended):
    job = jobs.submit_training(*training_order(500, "<gone>"), wolves)
    until(job.id, lambda now: now.step >= 10)
    jobs.cancel(job.id)
    assert ended(job.id).state == "cancelled"
    assert not list(jobs.learned.glob("*gone*")) and not list(jobs.learned.glob(".gone*"))


def test_what_cannot_be_done_is_said_when_it_is_asked(jobs, wolves, tmp_path):
    outside = tmp_path / "x.safetensors"
    outside.write_bytes(b"")
    for source in (str(outside), "../concepts/my-wolf", "none", "my-wolf.safetensors", ""):
        with pytest.raises((ConceptError, RequestError)):
            jobs.submit_generation({"prompt": "a fox", "concepts": [{"source": source}]})
    with pytest.raises(RequestError, match="steps"):
        jobs.submit_generation({"prompt": "a fox", "steps": 0})
    with pytest.raises(ConfigError, match="no base"):
        jobs.submit_generation({"prompt": "a fox"}, base="/etc")
    for settings, said in (
        ({"output": "/tmp/x"}, "decided by the server"),
        ({"cache": "/tmp/x"}, "decided by the server"),
        ({"images": "/tmp"}, "decided by the server"),
        ({"stepz": 1}, "no setting"),
        ({"steps": 0, "vectors": 0}, "vectors: .* steps: "),
    ):
        with pytest.raises(ConfigError, match=said):
            jobs.submit_training("textual-inversion", {"token": "<z>", "init": "fox"} | settings, wolves)
    with pytest.raises(Unknown):
        jobs.submit_training(*training_order(1), "../datasets")
    with pytest.raises(Unknown):
        jobs.submit_training("dreambooth", {"token": "z", "class_word": "fox", "also": ["/etc:y:cat"]}, wolves)
    with pytest.raises(Unknown):
        jobs.get("../x")


def test_an_error_of_the_work_is_a_sentence(jobs, wolves, ended):
    job = jobs.submit_training("textual-inversion", {"token": "<a>", "init": "a fox and more", "steps": 1}, wolves)
    failed = ended(job.id)
    assert failed.state == "failed" and "a fox and more" in failed.error and failed.hint


def test_a_key_makes_a_job_once(jobs, ended):
    one = jobs.submit_generation({"prompt": "a fox", "steps": 1}, key="k")
    assert jobs.submit_generation({"prompt": "a fox", "steps": 1}, key="k").id == one.id
    with pytest.raises(Conflict):
        jobs.submit_generation({"prompt": "a cat", "steps": 1}, key="k")
    ended(one.id)
    jobs.delete(one.id)
    with pytest.raises(Unknown):
        jobs.get(one.id)
    assert not jobs.places.job(one.id).exists()


def test_a_job_is_claimed_once_and_events_have_no_gaps_however_many_ask(tmp_path):
    ledger = Ledger(tmp_path / "jobs.sqlite")
    wanted = [ledger.add("generation", {"n": n}).id for n in range(20)]
    won: list[str] = []

    def work() -> None:
        own = Ledger(tmp_path / "jobs.sqlite")
        for job in wanted:
            if own.claim(job, 1, 1.0):
                won.append(job)
            own.tell(job, "note", {"text": "x", "figure": float("nan")})
        own.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    joined(*threads)
    assert sorted(won) == sorted(wanted)
    for job in wanted:
        assert [event.seq for event in ledger.events(job)] == list(range(1, 11))  # queued, running and 8 notes
    assert ledger.events(wanted[0], after=9)[0].data == {"text": "x", "figure": None}
    ledger.close()


def test_an_upscaler_is_named_by_its_file_and_repeats(jobs, ended, tmp_path, capsys):
    network = Compact(4, 1, 2)
    for one in network.parameters():
        one.data.zero_()
    torch.save(network.state_dict(), jobs.folder / "upscalers" / "2x-nearest.pth")
    asked = {"prompt": "a fox", "steps": 1, "seed": 3, "enlarge": {"factor": 2, "upscaler": "2x-nearest.pth"}}
    job = ended(jobs.submit_generation(asked).id)
    assert job.state == "done" and job.step == job.steps == 2  # the step and the tile
    (path,) = jobs.results(job.id)
    made = read_made(path)
    assert made.request.enlarge.upscaler == "upscalers/2x-nearest.pth" and made.request.enlarge.digests
    assert "Hires upscale: 2, Hires upscaler: 2x-nearest" in parameters(made)
    assert main(["generate", "--from", str(path), "--output", str(tmp_path)]) == 0
    assert np.array_equal(Image.open(path), Image.open(capsys.readouterr().out.strip()))
    twice = larger(job, path)["enlarge"]
    assert (twice["factor"], twice["upscaler"], twice["digests"]) == (4, "2x-nearest.pth", [])
    for name in ("../upscalers/2x-nearest.pth", "2x-nearest", str(jobs.folder / "upscalers" / "2x-nearest.pth")):
        with pytest.raises(RequestError, match=r"There are: 2x-nearest\.pth"):
            jobs.submit_generation(asked | {"enlarge": {"factor": 2, "upscaler": name}})
