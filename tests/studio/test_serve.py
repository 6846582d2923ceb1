"""`studio serve` as a process of its own, killed and started again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from studio.cli import main
from tests.studio.conftest import WOLF
from tests.studio.test_cli import children_seconds
from tests.waiting import LIMIT, until

ROOT = Path(__file__).parents[2]


class Server:
    """A server in a process of its own."""

    def __init__(self, folder, *more, port=0, page=False):
        words = [
            sys.executable,
            "-m",
            "studio.cli",
            "serve",
            "--port",
            str(port),
            "--page" if page else "--no-page",
            "--folder",
            str(folder),
            *more,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads would fill up
        self.process = subprocess.Popen(words, stderr=self.said, text=True, cwd=folder, env=environment)
        try:
            until(lambda: self._told() or self.process.poll() is not None, "the address of the server")
        except BaseException:
            self.kill()
            raise
        self.address = self._told()
        assert self.address, self._all()

    def _all(self):
        return os.pread(self.said.fileno(), 1 << 20, 0).decode()

    def _told(self):
        """The address, once its line is whole."""
        match = re.search(r"(http://\S+)\n", self._all())
        return match and match[1]

    def ask(self, path, body=None, content="application/json"):
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self.address + path, data, {"content-type": content})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def until(self, job, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition(now := self.ask(f"/api/v1/runs/{job}")):
            assert time.monotonic() < end, now
            time.sleep(0.1)
        return now

    def kill(self):
        self.process.kill()
        self.process.wait(LIMIT)
        self.said.close()


def processes(folder):
    """Processes that work for the server of a folder, not itself."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "studio.jobs.worker" in words and str(folder) in " ".join(words):
            found.append(process)
    return found


def steps_of(server, job):
    with urllib.request.urlopen(f"{server.address}/api/v1/runs/{job}/events", timeout=60) as answer:
        text = answer.read().decode()
    told = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    return [one["step"] for one in told if "terms" in one], [one["text"] for one in told if "text" in one]


def begun(server):
    """A training without end."""
    dataset = server.ask("/api/v1/datasets", {"name": "wolves"})["id"]
    picture = WOLF[0].read_bytes()
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + picture + b"\r\n--x--\r\n"
    server.ask(f"/api/v1/datasets/{dataset}/pictures", form, "multipart/form-data; boundary=x")
    settings = {"token": "<my-wolf>", "init": "fox", "steps": 1_000_000, "batch": 1, "keep_every": 5}
    order = {"method": "textual-inversion", "dataset": dataset, "settings": settings}
    job = server.ask("/api/v1/runs", order)["id"]
    return job, server.until(job, lambda now: now["step"] >= 10)


def test_a_training_outlives_its_server_and_then_its_process(tmp_path):
    server = Server(tmp_path)
    try:
        job, _ = begun(server)
        (worker,) = processes(tmp_path)
        server.kill()
        assert worker.is_running()  # it goes on without a server
        server = Server(tmp_path)
        seen = server.ask(f"/api/v1/runs/{job}")
        assert seen["state"] == "running"
        server.until(job, lambda now: now["step"] > seen["step"])
        assert len(processes(tmp_path)) == 1  # there is no second one beside it
        server.kill()
        worker.kill()  # both, as when the power fails
        worker.wait(LIMIT)
        server = Server(tmp_path)
        before = server.ask(f"/api/v1/runs/{job}")["step"]
        server.until(job, lambda now: now["step"] > before + 10)
        server.ask(f"/api/v1/runs/{job}/cancel", b"")
        server.until(job, lambda now: now["state"] == "cancelled")
        steps, notes = steps_of(server, job)
        assert steps[:2] == [10, 20] and steps.count(10) == 1, "it was begun anew, not gone on with"
        server.process.terminate()
        assert server.process.wait(60) is not None and not processes(tmp_path)
        again = [step for number, step in enumerate(steps) if step in steps[:number]]
        assert len(again) <= 1, "more was done again than what was lost since the last state"
        assert len([note for note in notes if "without a word" in note]) == 1
        assert not list((tmp_path / "concepts").glob(".my-wolf.state"))
    finally:
        server.kill()
        for process in processes(tmp_path):
            process.kill()


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, studio.cli; studio.cli.main(['serve', '--help']); print('torch' in sys.modules)"
    start = children_seconds()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=LIMIT
    )
    assert "--password" in done.stdout and done.stdout.rstrip().endswith("False")
    assert children_seconds() - start < 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "other machines"),
        (["--host", "0.0.0.0", "--password", "short"], "8 letters"),
        (["--port", "70000"], "70000"),
        (["--slots", "0"], "0 slots"),
        (["--base", "a/x", "--base", "b/x"], "same name"),
    ],
)
def test_what_would_be_unsafe_or_wrong_is_refused_before_anything_starts(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("STUDIO_PASSWORD", raising=False)
    assert main(["serve", "--folder", str(tmp_path / "none"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_browser_is_opened_at_its_address_if_asked_for(tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    script = tmp_path / "browser.py"
    script.write_text(f"import sys, pathlib; pathlib.Path({str(seen)!r}).write_text(sys.argv[1])")
    monkeypatch.setenv("BROWSER", f"{sys.executable} {script} %s")
    server = Server(tmp_path, "--open", "--models", str(tmp_path))
    try:
        until(seen.is_file, "the browser")
        assert seen.read_text() == server.address
    finally:
        server.kill()
