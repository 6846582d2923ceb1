"""A real server for torture: `studio serve` in a process and a folder of its own, called over the network."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

START = 120.0
"""Seconds in which a server has to say where it is."""

ROOT = Path(__file__).parents[2]


class Served:
    """A server that runs.

    Args:
        folder: of its files.
        options: further words of `studio serve`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.log = folder.parent / f"{folder.name}.log"
        self.process = self._begun()
        self.address = self._address()
        self.web = httpx.Client(base_url=self.address, timeout=60, headers={"host": "localhost"})

    def _begun(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as said:
            words = [sys.executable, "-m", "studio.cli", "serve", "--port", "0", "--folder", str(self.folder)]
            return subprocess.Popen(
                [*words, *self.options], stdout=said, stderr=said, cwd=self.folder.parent, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def _address(self) -> str:
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            if where := re.search(r"is at (http://\S+)", self.log.read_text(encoding="utf-8", errors="replace")):
                return where[1].replace("localhost", "127.0.0.1")
            time.sleep(0.05)
        raise RuntimeError(f"no server within {START:g} s: {self.log.read_text(encoding='utf-8', errors='replace')}")

    def workers(self) -> list[psutil.Process]:
        """The processes that do the jobs of this folder."""
        found: list[psutil.Process] = []
        for one in psutil.process_iter():
            with suppress(psutil.Error):
                words = one.cmdline()
                if "studio.jobs.worker" in words and str(self.folder.resolve()) in words[-1]:
                    found.append(one)
        return found

    def kill(self) -> None:
        """End the server at once, as when the machine's memory runs out; its workers stay."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def begin_again(self) -> None:
        """Start another server in the same folder."""
        self.process = self._begun()
        self.address = self._address()
        self.web = httpx.Client(base_url=self.address, timeout=60, headers={"host": "localhost"})

    def close(self) -> None:
        """End the server and whoever works for it."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
        for one in self.workers():
            with suppress(psutil.Error):
                one.kill()


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Served]:
    """A server in a folder as long as the `with` lasts."""
    server = Served(folder, *options)
    try:
        yield server
    finally:
        server.close()
