"""State on disk: what is kept, when, for how long, and what is gone on from when something is damaged."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.errors import Cancelled, ConfigError
from pipelines.events import Note
from tests.waiting import LIMIT, run
from trainers.loop import checkpoints
from trainers.loop.checkpoints import KEPT, LATEST, LOG, MANIFEST, STATE, Checkpoint, read, states, whole
from trainers.loop.loop import optimise
from trainers.loop.schedule import Schedule

ROOT = Path(__file__).parents[3]


def keeping(path, every=2):
    weight = torch.nn.Parameter(torch.zeros(2))

    def restore(kept):
        assert set(kept) == {"weight"}, "the step and the loop's own are not the caller's business"
        with torch.no_grad():
            weight.copy_(kept["weight"])

    checkpoint = Checkpoint(path, every, lambda: {"weight": weight.detach()}, restore)
    return weight, torch.optim.SGD([weight], 1.0), checkpoint


def go(path, steps, every=2, **more):
    weight, optimizer, checkpoint = keeping(path, every)
    calls = []
    optimise(
        lambda i, _: (calls.append(i), {"a": weight.sum() + i})[1],
        [optimizer], Schedule(steps, report=3), checkpoint=checkpoint, **more,
    )  # fmt: skip
    return weight.tolist(), calls


def steps(path):
    return [int(place.name.removeprefix("step-")) for place in states(path)]


def test_the_state_is_kept_every_so_many_steps_and_at_the_end_and_older_ones_go(tmp_path):
    seen = []
    go(tmp_path / "s", 10, every=3, after_step=lambda done: seen.append(steps(tmp_path / "s")))
    assert seen == [[], [], [], [3], [3], [3], [6, 3], [6, 3], [6, 3], [9, 6]] and steps(tmp_path / "s") == [10, 9]
    assert (tmp_path / "s" / LATEST).read_text() == "step-00000010\n"
    assert all(whole(place) for place in states(tmp_path / "s"))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [LATEST, "step-00000009", "step-00000010"]


def test_a_manifest_names_every_file_with_its_length_and_sum(tmp_path):
    import hashlib

    go(tmp_path / "s", 4)
    place = states(tmp_path / "s")[0]
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest["step"] == 4 and set(manifest["files"]) == {path.name for path in place.iterdir()} - {MANIFEST}
    for name, about in manifest["files"].items():
        content = (place / name).read_bytes()
        assert about == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_finished_run_is_not_run_again_and_one_that_is_lengthened_goes_on(tmp_path):
    assert go(tmp_path / "s", 4) == ([-4, -4], [0, 1, 2, 3])
    events = []
    assert go(tmp_path / "s", 4, on_event=events.append) == ([-4, -4], [])
    assert events == [Note("resumed after step 4")]
    assert go(tmp_path / "s", 6) == ([-6, -6], [4, 5])


def test_reports_and_log_go_on_in_the_middle_of_a_mean(tmp_path):
    go(tmp_path / "whole", 9, every=4)
    asked = iter([False] * 4 + [True])
    with pytest.raises(Cancelled, match=r"after step 4 of 9.*goes on from step 4"):
        go(tmp_path / "s", 9, every=100, should_stop=lambda: next(asked))
    go(tmp_path / "s", 9, every=4)
    logs = [read(states(tmp_path / name)[0])[1] for name in ("whole", "s")]
    # The second mean is over steps 4, 5 and 6, of which the first was done before the stop.
    assert logs[0] == logs[1] == [{"step": 3, "a": -1.0}, {"step": 6, "a": -4.0}, {"step": 9, "a": -7.0}]


def test_asking_for_fewer_steps_than_are_done_says_both_numbers(tmp_path):
    go(tmp_path / "s", 4)
    with pytest.raises(ConfigError, match="4 steps are done already, 3 were asked for"):
        go(tmp_path / "s", 3)


def test_stopping_at_once_leaves_nothing_and_says_so(tmp_path):
    with pytest.raises(Cancelled, match="Nothing was done yet"):
        go(tmp_path / "s", 4, should_stop=lambda: True)
    assert not (tmp_path / "s").exists()


# -- time --------------------------------------------------------------------------------------------------------


def test_a_state_that_takes_long_to_write_is_written_less_often(tmp_path, monkeypatch):
    """A clock of our own: a step takes a second, a write thirty; a tenth of the time may go into writing."""
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    written = []

    def state():
        now[0] += 30
        written.append(now[0])
        return {}

    weight, optimizer, _ = keeping(tmp_path / "s")
    slow = Checkpoint(tmp_path / "s", 10, state, lambda kept: None)

    def after(done):
        now[0] += 1

    optimise(lambda *_: {"a": weight.sum()}, [optimizer], Schedule(700), checkpoint=slow, after_step=after)
    # After 10 steps, then whenever nine times thirty seconds have passed, and at the end.
    assert [round(at) for at in written] == [40, 340, 640, 820]


# -- damage ------------------------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self):
        return print, ("code of a stranger was run",)


def spoil(place, how):
    path = place / STATE
    content = path.read_bytes()
    if how == "bit":
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how in ("gone", "no log", "no manifest"):
        (place / {"gone": STATE, "no log": LOG, "no manifest": MANIFEST}[how]).unlink()
    elif how == "manifest":
        (place / MANIFEST).write_text('{"files": []}')
    elif how == "log":
        (place / LOG).write_text("{}")
    else:  # whole by its manifest, and a stranger's
        path.write_bytes(pickle.dumps(Malicious(), protocol=2))
        import hashlib

        manifest = json.loads((place / MANIFEST).read_text())
        sums = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        manifest["files"][STATE] = sums
        (place / MANIFEST).write_text(json.dumps(manifest))


WAYS = ["bit", "cut", "empty", "gone", "no log", "no manifest", "manifest", "log", "code"]


@pytest.mark.parametrize("how", WAYS)
def test_when_the_newest_is_damaged_the_one_before_is_gone_on_from(tmp_path, capsys, how):
    go(tmp_path / "s", 5)
    assert steps(tmp_path / "s") == [5, 4]
    spoil(states(tmp_path / "s")[0], how)
    events = []
    assert go(tmp_path / "s", 6, on_event=events.append) == ([-6, -6], [4, 5])
    assert "step-00000005 is damaged" in events[0].text and events[1] == Note("resumed after step 4")
    assert steps(tmp_path / "s") == [6, 4] and "stranger" not in capsys.readouterr().out


@pytest.mark.parametrize("how", WAYS)
def test_when_all_are_damaged_it_is_said_and_nothing_is_removed(tmp_path, capsys, how):
    go(tmp_path / "s", 5)
    for place in states(tmp_path / "s"):
        spoil(place, how)
    with pytest.raises(ConfigError, match=r"is damaged\. Delete that folder to begin anew"):
        go(tmp_path / "s", 6)
    assert steps(tmp_path / "s") == [5, 4] and "stranger" not in capsys.readouterr().out


def test_the_file_of_an_earlier_version_is_said_to_be_one(tmp_path):
    (tmp_path / "s").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="earlier version"):
        go(tmp_path / "s", 2)
    assert (tmp_path / "s").read_bytes() == b"broken"


def test_a_state_that_is_refused_is_left_alone(tmp_path):
    go(tmp_path / "s", 2)

    def refuse(kept):
        raise ConfigError("Begun with something else.")

    with pytest.raises(ConfigError, match="something else"):
        Checkpoint(tmp_path / "s", 1, dict, refuse).load()
    assert steps(tmp_path / "s") == [2]


def test_what_a_killed_write_left_is_swept_away_and_never_gone_on_from(tmp_path):
    go(tmp_path / "s", 2)
    shutil.copytree(states(tmp_path / "s")[0], tmp_path / "s" / ".part-0")
    (tmp_path / "s" / f".{LATEST}.xyz").write_text("step")
    assert go(tmp_path / "s", 3) == ([-3, -3], [2])
    assert not list((tmp_path / "s").glob(".*"))


def test_none_is_removed_while_the_newest_cannot_be_read_back(tmp_path, monkeypatch):
    go(tmp_path / "s", 4)
    monkeypatch.setattr(checkpoints, "whole", lambda place: place.name != "step-00000006")
    _, _, checkpoint = keeping(tmp_path / "s")
    checkpoint.save(6)
    assert steps(tmp_path / "s") == [6, 4, 2] and KEPT == 2


# -- a disk that is full or fails --------------------------------------------------------------------------------


def full(monkeypatch, call, at):
    """The disk is full from the `at`-th such call on."""
    counted = [0]
    real = getattr(*call) if isinstance(call, tuple) else call

    def fails(*arguments, **keywords):
        counted[0] += 1
        if counted[0] >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **keywords)

    monkeypatch.setattr(*call, fails)
    return counted


class Disk:
    """A file that a state is written to; its `write` can be made to fail underneath torch."""

    def __init__(self, stream):
        self.stream, self.flush, self.fileno = stream, stream.flush, stream.fileno

    def write(self, data):
        return self.stream.write(data)


CALLS = [(os, "fsync"), (Path, "mkdir"), (Path, "rename"), (Path, "replace"), (Disk, "write")]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[1])
def test_wherever_the_disk_gets_full_the_training_goes_on_and_what_was_kept_is_whole(tmp_path, monkeypatch, call):
    summed = checkpoints._Summed
    monkeypatch.setattr(checkpoints, "_Summed", lambda stream: summed(Disk(stream)))
    reference = go(tmp_path / "alone", 6)[0]
    for at in range(1, 100):
        path = tmp_path / f"s{at}"
        go(path, 2)
        events = []
        with monkeypatch.context() as patched:
            count = full(patched, call, at)
            assert go(path, 4, on_event=events.append)[0] == [-4, -4]
        assert whole(states(path)[0]) and not [p for p in states(path) if not whole(p)]
        said = [event.text for event in events if "could not be kept" in getattr(event, "text", "")]
        if steps(path)[0] == 2:
            assert said and "No space left on device" in said[0] and "step 2 is still there" in said[0]
        assert go(path, 6)[0] == reference
        assert not list(path.glob(".part-*"))
        if count[0] < at:
            break
    assert 2 <= at < 99, "every such call of a write was made to fail once, and then none"


def test_a_limit_on_the_size_of_files_is_a_full_disk_too(tmp_path):
    """A real one, of the kernel's making, in a process of its own."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from trainers.loop.checkpoints import Checkpoint, states
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, size = Path(sys.argv[1]), [1000]
checkpoint = Checkpoint(path, 1, lambda: {"w": torch.zeros(size[0])}, lambda kept: None)
checkpoint.save(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
size[0] = 100_000
try:
    checkpoint.save(2)
except OSError as error:
    print(error.strerror)
print([place.name for place in path.iterdir()], checkpoint.load()[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=LIMIT,
    )
    assert done.stdout.splitlines()[0] == "File too large"
    assert "part" not in done.stdout and done.stdout.endswith(" 1\n")


# -- numbers that are none ---------------------------------------------------------------------------------------


def test_a_loss_that_breaks_is_never_kept_and_what_is_trained_goes_back(tmp_path):
    weight, optimizer, checkpoint = keeping(tmp_path / "s", every=2)

    def losses(index, generator):
        return {"good": weight.sum(), "bad": weight.sum() * (float("nan") if index == 5 else 1.0)}

    with pytest.raises(ConfigError) as error:
        optimise(losses, [optimizer], Schedule(20, report=10), checkpoint=checkpoint)
    # Nothing is reported before step 10; the state of step 6 would have been the first spoilt one.
    said = str(error.value)
    assert "the loss (bad) stopped being a number by step 6" in said and "state of step 4" in said
    assert "--steps 4" in said and "Lower the learning rate" in said
    assert weight.tolist() == [-8, -8] and steps(tmp_path / "s") == [4, 2]


def test_weights_that_break_behind_a_good_loss_are_not_kept_either(tmp_path):
    weight, optimizer, checkpoint = keeping(tmp_path / "s", every=2)
    weight.register_hook(lambda gradient: gradient * (float("inf") if len(states(tmp_path / "s")) else 1.0))
    with pytest.raises(ConfigError, match=r"what is trained stopped being a number by step 3|4.*state of step 2"):
        optimise(lambda *_: {"a": weight.sum().clamp(-9, 9)}, [optimizer], Schedule(20), checkpoint=checkpoint)
    assert weight.tolist() == [-2, -2] and steps(tmp_path / "s") == [2]


# -- killed ------------------------------------------------------------------------------------------------------


def test_killed_twenty_times_it_ends_bit_for_bit_like_one_that_was_left_alone():
    command = [sys.executable, "-m", "tests.torture.kills", "--kills", "20"]
    done = run(command, cwd=ROOT, seconds=240)
    assert done.returncode == 0, done.stderr
    count = json.loads(done.stdout.splitlines()[-1])
    assert count["kills"] >= 20 and count["runs"] >= 1
