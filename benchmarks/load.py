"""Fifty clients that look, twenty pictures that wait: is a job lost or done twice, and how long does a look take?

python benchmarks/load.py --clients 50 --jobs 20
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent


def load(clients: int, jobs: int, steps: int, folder: Path) -> dict[str, float]:
    """Start a server, ask for so many pictures, look from so many clients until all are there; the figures."""
    words = [sys.executable, "-m", "studio.cli", "serve", "--port", "0", "--no-page", "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment)
    assert server.stderr is not None
    address = server.stderr.readline().split()[-1]
    looked: list[float] = []
    wrong: list[int] = []
    over = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            while not over.is_set():
                began = time.perf_counter()
                answer = client.get("/api/v1/generations")
                looked.append(time.perf_counter() - began)
                if answer.status_code != 200:
                    wrong.append(answer.status_code)
                over.wait(1.0)

    try:
        with httpx.Client(base_url=address, timeout=60) as client:
            _done(client, [_asked(client, 0, 1)])  # the process is warm from now on
            threads = [threading.Thread(target=look, daemon=True) for _ in range(clients)]
            for thread in threads:
                thread.start()
            began = time.perf_counter()
            asked = [_asked(client, seed, steps) for seed in range(jobs)]
            done = _done(client, asked)
            spent = time.perf_counter() - began
            over.set()
            for thread in threads:
                thread.join(60)
            events = [client.get(f"/api/v1/generations/{one}/events").text for one in asked]
    finally:
        over.set()
        server.terminate()
        try:
            server.wait(60)
        finally:
            server.kill()
    begun = [text.count('"state": "running"') for text in events]
    looked.sort()
    return {
        "clients": clients,
        "jobs": jobs,
        "done": sum(one["state"] == "done" for one in done),
        "lost": sum(count == 0 for count in begun),
        "doubled": sum(count > 1 for count in begun),
        "pictures": sum(len(one["pictures"]) for one in done),
        "wrong answers": len(wrong),
        "seconds": round(spent, 1),
        "looks a second": round(len(looked) / spent, 1),
        "look, median ms": round(1000 * statistics.median(looked), 1),
        "look, 99 % ms": round(1000 * looked[int(0.99 * len(looked))], 1),
    }


def _asked(client: httpx.Client, seed: int, steps: int) -> str:
    order = {"request": {"prompt": "a fox", "seed": seed, "steps": steps}}
    return client.post("/api/v1/generations", json=order).raise_for_status().json()["id"]


def _done(client: httpx.Client, asked: list[str]) -> list[dict]:
    while True:
        now = [client.get(f"/api/v1/generations/{one}").json() for one in asked]
        if all(one["state"] in ("done", "failed", "cancelled") for one in now):
            return now
        time.sleep(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as place:
        print(json.dumps(load(arguments.clients, arguments.jobs, arguments.steps, Path(place)), indent=1))
