"""Processes for jobs on this machine; those of a cluster are in `studio/jobs/ray_engine.py`.

A process takes a job by claiming it in the record, so an engine only has to start one and to know whether it lives.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from studio.jobs.specs import Places
from studio.jobs.store import Job
from studio.settings import Machine

LOG = "worker.log"
TOLERANCE = 0.5  # seconds between two readings of when a process began
BEAT = ".beat"
"""Name, before the number of its process, of the file that a worker touches as long as it is not stuck."""

STILL, FIRST = 60.0, 300.0
"""Seconds without a beat after which a process that was handed a job is given up; at first it loads its libraries."""


class Engine(Protocol):
    """Starts what runs jobs."""

    def begin(self, job: Job) -> bool:
        """Hand a queued job to a process; return false if none is free for it now."""
        ...

    def holds(self, job: Job) -> bool:
        """Return whether a living process was handed this queued job and has yet to claim it."""
        ...

    def ended(self, job: str) -> None:
        """Mark the process of a job that is over as free."""
        ...

    def alive(self, job: Job) -> bool:
        """Return whether the process that claimed a job lives."""
        ...

    def kill(self, job: Job) -> None:
        """End the process that claimed a job, at once."""
        ...

    def settle(self, running: Sequence[Job] = ()) -> None:
        """Look after processes that have ended, and start one that is ready for the next job."""
        ...

    def close(self, running: Sequence[Job], seconds: float) -> None:
        """Ask all processes, and those of `running`, to keep their state and end; wait so long, then end them."""
        ...


def birth(pid: int) -> float:
    """Return the start time of a process, by a clock that nobody sets; 0 if there is none.

    On Linux in seconds since the machine was started, beside what tells this start from others; elsewhere in seconds
    since 1970, which move when the clock is set.
    """
    with suppress(psutil.Error, OSError, ValueError, IndexError):
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0.0
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():
            return process.create_time()
        # The name of the program may hold anything; the fields behind it are numbers. Field 22 is the start in ticks.
        ticks = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
        boot = int(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")[:5], 16)
        return ticks / os.sysconf("SC_CLK_TCK") + 1e7 * boot
    return 0.0


def lives_here(job: Job) -> bool:
    """Return whether the process that claimed a job lives on this machine."""
    return job.pid is not None and job.born is not None and abs(birth(job.pid) - job.born) < TOLERANCE


def kill_here(job: Job) -> None:
    """End the process that claimed a job at once, if it lives on this machine."""
    if lives_here(job) and job.pid is not None:
        with suppress(OSError):
            os.kill(job.pid, signal.SIGKILL)


def end_processes(pids: Iterable[int], seconds: float) -> None:
    """Ask processes of this machine to end; wait so long, then end them."""
    processes: list[psutil.Process] = []
    for pid in dict.fromkeys(pids):
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, seconds)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, 5)


def setup_of(places: Places, machine: Machine) -> str:
    """Return the settings of the server for a process of jobs, as JSON."""
    about = {
        "folder": str(places.folder),
        "bases": dict(places.bases),
        "models": [str(root) for root in places.models],
        "captioner": places.captioner,
        "upscalers": [str(root) for root in places.upscalers],
        "machine": machine.model_dump(mode="json", exclude_unset=True),
    }
    return json.dumps(about)


@dataclass
class _Hand:
    """A process and the jobs it was handed."""

    process: subprocess.Popen[str]
    beat: Path
    jobs: dict[str, int] = field(default_factory=dict)
    """Job -> how often it had been claimed before."""
    _seen: tuple[float, float] = field(default_factory=lambda: (0.0, time.monotonic()))
    """Time of the last beat as its file has it, and when it was seen."""

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    @property
    def stuck(self) -> bool:
        """Return whether it has given no sign of life for too long, by the clock of the files alone."""
        try:
            beaten = self.beat.stat().st_mtime
        except OSError:
            beaten = 0.0
        if beaten != self._seen[0]:
            self._seen = (beaten, time.monotonic())
        return time.monotonic() - self._seen[1] > (STILL if beaten else FIRST)


class LocalEngine:
    """Processes on this machine, as many as there are slots, each with torch loaded and the last base in memory.

    They are in sessions of their own, so a server that is killed leaves them at work; the next one finds them in the
    record. As they read their jobs from the server, they end by themselves once it is gone and their job done.

    Args:
        places: folders of the server.
        machine: device settings.
        slots: number of processes.
        warm: have them ready before they are needed.
    """

    def __init__(self, places: Places, machine: Machine, slots: int = 1, warm: bool = True) -> None:
        self.places, self.machine, self.slots, self.warm = places, machine, slots, warm
        self._hands: list[_Hand] = []
        for beat in places.folder.glob(f"{BEAT}-*"):  # of processes whose server was killed
            if not birth(int(beat.name.rpartition("-")[2])):
                beat.unlink(missing_ok=True)

    def begin(self, job: Job) -> bool:
        """Hand a queued job to a process; return false if none is free for it now."""
        self.settle()
        hand = min(self._hands, key=lambda hand: len(hand.jobs), default=None)
        if hand is None or (hand.jobs and len(self._hands) < self.slots):
            hand = self._start()
        assert hand.process.stdin is not None
        try:
            hand.process.stdin.write(f"{job.id}\n")
            hand.process.stdin.flush()
        except OSError:  # it has just ended
            return False
        hand.jobs[job.id] = job.begun
        return True

    def holds(self, job: Job) -> bool:
        """Return whether a living process was handed this queued job and has yet to claim it; a stuck one is ended."""
        for hand in self._hands:
            if hand.jobs.get(job.id) == job.begun and hand.lives:
                if not hand.stuck:
                    return True
                hand.process.kill()
                with suppress(subprocess.TimeoutExpired):  # held by the kernel, as by a drive that does not answer
                    hand.process.wait(5)
        return False

    def ended(self, job: str) -> None:
        """Mark the process of a job that is over as free."""
        for hand in self._hands:
            hand.jobs.pop(job, None)

    def alive(self, job: Job) -> bool:
        """Return whether the process that claimed a job lives."""
        return lives_here(job)

    def kill(self, job: Job) -> None:
        """End the process that claimed a job, at once."""
        kill_here(job)

    def settle(self, running: Sequence[Job] = ()) -> None:
        """Look after processes that have ended, and start one that is ready for the next job."""
        for hand in self._hands:
            if not hand.lives:
                hand.beat.unlink(missing_ok=True)
                if hand.process.stdin is not None:
                    with suppress(OSError):
                        hand.process.stdin.close()
        self._hands = [hand for hand in self._hands if hand.lives]
        adopted = {job.pid for job in running} - {hand.process.pid for hand in self._hands}
        if self.warm and not self._hands and len(adopted) < self.slots:
            self._start()

    def close(self, running: Sequence[Job], seconds: float) -> None:
        """Ask all processes, and those of `running`, to keep their state and end; wait so long, then end them."""
        for hand in self._hands:
            if hand.process.stdin is not None:
                with suppress(OSError):
                    hand.process.stdin.close()
        adopted = [job.pid for job in running if job.pid is not None and lives_here(job)]
        end_processes((*(hand.process.pid for hand in self._hands if hand.lives), *adopted), seconds)
        self.warm = False
        self.settle()

    def _start(self) -> _Hand:
        root = Path(__file__).parents[2]  # the process works in another folder than this one
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        log = self.places.folder / LOG
        log.touch(mode=0o600)
        with log.open("w", encoding="utf-8") as said:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "studio.jobs.worker", setup_of(self.places, self.machine)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                text=True,
                cwd=self.places.folder,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        hand = _Hand(process, self.places.folder / f"{BEAT}-{process.pid}")
        self._hands.append(hand)
        return hand
