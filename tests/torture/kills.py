"""Trains, kills the training with SIGKILL at random moments, goes on, and compares with a run that was left alone.

    python -m tests.torture.kills --kills 200

One process imports everything once; each run is a fork of it, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.concepts.concept import Concept
from tests import tiny
from tests.waiting import statuses
from trainers.loop import train as loop_of_a_run
from trainers.loop.checkpoints import states, whole
from trainers.loop.launch import train_and_save
from trainers.methods import methods
from trainers.run import Run
from trainers.settings import DataConfig, Destination, TrainConfig

STEPS = 8
loop_of_a_run.REPORT = 5  # so that states fall into the middle of a mean
SETTINGS = {
    "textual-inversion": {"token": "<thing>", "init": "fox"},
    "dreambooth": {"token": "<thing>", "class_word": "fox", "pivotal": True, "text_encoder": True},
    "custom-diffusion": {"token": "<thing>", "class_word": "fox"},
}


def run(name: str) -> Run:
    method = methods()[name]
    pace = TrainConfig(steps=STEPS, batch=1, learning_rate=1e-2, scale_lr=False, ema=0.9)
    return Run(method, method.Settings(**SETTINGS[name]), pace, DataConfig(images=Path("unused")))


def forked(base, name: str, output: Path) -> int:
    """Begin or go on with a training in a process of its own; gives its id."""
    child = os.fork()
    if child:
        return child
    try:
        where = Destination(output=output, keep_every=1, preview=False)
        train_and_save(base, replace(run(name), where=where), tiny.examples(), on_event=lambda event: None)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def finished(child: int, seconds: float) -> bool:
    """Wait so long for a training, then kill it; whether it came to its end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit("a training failed by itself")
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    statuses(child)
    return False


def newest(folder: Path) -> int:
    """Steps of the newest whole state; 0 if there is none."""
    return max((int(place.name.removeprefix("step-")) for place in states(folder) if whole(place)), default=0)


def torture(kills: int, seed: int, work: Path) -> dict[str, int]:
    """Kill so often, the methods in turn; raises at the first difference."""
    rng, base = random.Random(seed), tiny.sd()
    count = {"kills": 0, "while a state was written": 0, "before a state was kept": 0}
    count |= {"after the concept was there": 0, "runs": 0}
    seconds, alone = {}, {}
    for name in SETTINGS:
        began = time.monotonic()
        alone[name] = work / f"{name}.safetensors"
        finished(forked(base, name, alone[name]), 600)
        seconds[name] = time.monotonic() - began
    while count["kills"] < kills:
        name = list(SETTINGS)[count["runs"] % len(SETTINGS)]
        output = work / f"{count['runs']}.safetensors"
        state, reached = output.with_name(f".{output.stem}.state"), 0
        while not finished(forked(base, name, output), rng.uniform(0, seconds[name])):
            count["kills"] += 1
            assert count["kills"] < 20 * kills + 100, f"it does not end: {count}"
            count["while a state was written"] += any(state.glob(".part-*"))
            if output.exists():  # killed while it cleaned up
                count["after the concept was there"] += 1
                break
            now = newest(state)
            count["before a state was kept"] += not now
            assert now >= reached, f"after {reached} steps were kept there are {now}"
            assert now or not states(state), "there are states and none is whole"
            reached = now
        count["runs"] += 1
        compare(alone[name], output)
    return count


def compare(one: Path, other: Path) -> None:
    """Two results are the same, bit for bit: the concept and the log of losses."""
    first, second = Concept.load(one).tensors(), Concept.load(other).tensors()
    assert set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first), other
    logs = [path.with_name(f"{path.stem}.losses.jsonl").read_text() for path in (one, other)]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 2, logs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        print(json.dumps(torture(arguments.kills, arguments.seed, folder)))
    finally:
        shutil.rmtree(folder)
