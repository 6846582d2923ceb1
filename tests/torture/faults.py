"""A real server whose processes are killed, whose disk is full, and which many ask at once: nothing is lost or doubled.

    python -m tests.torture.faults --rounds 20

Each round asks for pictures, uploads and lists from several threads, with a fault in the middle: a worker or the server
is killed, or stopped and let go on, or the disk is filled (by a tmpfs, where this process may mount one). Afterwards
every job has ended as it should, once, and the record, the pictures and the datasets are whole.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from tests.torture.server import Served, served
from tests.waiting import joined, until

SIZE = 400 << 20
"""Bytes of the disk that is filled."""

ALLOWED = (200, 201, 202, 204, 404, 409, 503, 507)


@contextmanager
def disk(place: Path) -> Iterator[bool]:
    """A small disk at a place, if this process may mount one; says whether it may."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], capture_output=True, timeout=60
    )
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], capture_output=True, timeout=60)


def picture(rng: random.Random) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((rng.randrange(8, 90), 40), 60).save(stream, "PNG")
    return stream.getvalue()


class Round:
    """Requests of several people at once, and their answers.

    Args:
        server: that is asked.
        seed: where all chance comes from.
    """

    def __init__(self, server: Served, seed: int) -> None:
        self.server, self.seed = server, seed
        self.answers: Counter[int] = Counter()
        self.asked: dict[str, tuple[str, dict[str, Any]]] = {}
        """Key -> id of the job, and what was asked for."""
        self.odd: list[str] = []
        self._lock = threading.Lock()

    def person(self, number: int) -> None:
        """Ask for one thing after another, again with the same key where no answer came."""
        rng = random.Random(self.seed * 100 + number)
        for turn in range(4):
            key = f"{self.seed}-{number}-{turn}"
            order = {"request": {"prompt": f"a fox {key}", "steps": rng.randrange(1, 4), "seed": turn}}
            for _ in range(40):
                answer = self._one("POST", "/api/v1/generations", json=order, headers={"idempotency-key": key})
                if answer is not None and answer.status_code == 202:
                    with self._lock:
                        before = self.asked.setdefault(key, (answer.json()["id"], order))
                        if before[0] != answer.json()["id"]:
                            self.odd.append(f"{key} is two jobs")
                    break
                time.sleep(0.5)
            files = {"file": ("a.png", picture(rng))}
            self._one("POST", "/api/v1/pictures", files=files)
            self._one("GET", "/api/v1/generations", params={"limit": 20})
            made = self._one("POST", "/api/v1/datasets", json={"name": key})
            if made is not None and made.status_code == 201:
                self._one("POST", f"{made.json()['href']}/pictures", files={"files": ("a.png", picture(rng))})

    def _one(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        try:
            answer = httpx.request(method, self.server.address + path, timeout=60, **more)
        except httpx.HTTPError:  # the server is gone for a while
            return None
        with self._lock:
            self.answers[answer.status_code] += 1
            if answer.status_code not in ALLOWED:
                self.odd.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            if str(self.server.folder) in answer.text:
                self.odd.append(f"{method} {path} tells the folder")
        return answer


def harm(server: Served, rng: random.Random, fault: str) -> None:
    """Do one kind of harm."""
    if fault == "server killed":
        server.kill()
        server.begin_again()
    elif fault == "disk filled":
        filler = server.folder.parent / "filler"
        with suppress(OSError), filler.open("wb") as stream:
            while True:
                stream.write(b"x" * (1 << 16))
        time.sleep(rng.uniform(0.5, 2))
        filler.unlink()
    else:
        for one in server.workers():
            with suppress(psutil.Error):
                one.send_signal(signal.SIGKILL if fault == "worker killed" else signal.SIGSTOP)
                if fault == "worker stopped":
                    time.sleep(rng.uniform(0.2, 1))
                    one.send_signal(signal.SIGCONT)


def torture(rounds: int, seed: int, folder: Path, full: bool) -> dict[str, int]:
    """Do so many rounds; raises at the first thing that is lost, doubled, or a fault of ours."""
    rng, count = random.Random(seed), Counter[str]()
    faults = ["worker killed", "server killed", "worker stopped", *(["disk filled"] if full else [])]
    with served(folder, "--no-page") as server:
        for number in range(rounds):
            fault = faults[number % len(faults)]
            one = Round(server, seed * 1000 + number)
            threads = [threading.Thread(target=one.person, args=(person,), daemon=True) for person in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.1, 3))
            harm(server, rng, fault)
            joined(*threads)
            assert not one.odd, (fault, one.odd[:3])
            assert len(one.asked) == 12, (fault, len(one.asked))
            ended(server, one, fault)
            count[fault] += 1
        count["jobs"] = len(server.web.get("/api/v1/generations", params={"limit": 1000}).json())
        sound(server)
    return dict(count)


def ended(server: Served, one: Round, fault: str) -> None:
    """Wait until all that was asked for has ended, and check that each was done once."""
    jobs = [job for job, _ in one.asked.values()]

    def now() -> list[dict[str, Any]]:
        return [server.web.get(f"/api/v1/generations/{job}").json() for job in jobs]

    until(lambda: all(job["state"] in ("done", "failed") for job in now()), "the end of all jobs")
    for job in now():
        # Only a full disk may end a job otherwise, and says so.
        fair = job["state"] == "done" or (fault == "disk filled" and "space" in job["error"])
        assert fair, (fault, job["state"], job["error"], job["hint"])
        if job["state"] == "done":
            assert len(job["pictures"]) == 1, job
            content = server.web.get(job["pictures"][0]).content
            with Image.open(io.BytesIO(content)) as drawn:
                drawn.load()
    lost = sum(len(list((server.folder / "jobs" / job).glob("[0-9]*.png"))) != 1 for job in jobs)
    assert not lost or fault == "disk filled", (fault, f"{lost} jobs have more or fewer pictures than one")


def sound(server: Served) -> None:
    """The record is sound, events have no gaps, every dataset and picture can be read."""
    with sqlite3.connect(f"file:{server.folder / 'jobs.sqlite'}?mode=ro", uri=True) as record:
        assert record.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        gaps = record.execute("SELECT job FROM events GROUP BY job HAVING MAX(seq) != COUNT(*)").fetchall()
    record.close()
    assert not gaps, gaps
    for dataset in server.web.get("/api/v1/datasets").json():
        assert server.web.get(f"{dataset['href']}/pictures").status_code == 200
    for path in (server.folder / "pictures").glob("*.png"):
        with Image.open(path) as stored:
            stored.load()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as place, disk(Path(place)) as full:
        print(json.dumps(torture(arguments.rounds, arguments.seed, Path(place) / "server", full)))
