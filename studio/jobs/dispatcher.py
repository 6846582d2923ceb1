"""The thread that starts waiting jobs, requeues those whose process is gone, and ends those that do not stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import get_args

from studio.jobs.local_engine import LOG, Engine
from studio.jobs.rows import Kind
from studio.jobs.specs import Places, forget_training
from studio.jobs.store import ATTEMPTS, Job, Ledger

TICK = 0.1
"""Seconds between two looks at the queue while a job waits or runs."""

IDLE = 2.0
"""Seconds between two looks at processes while there is no job; one that is asked for is begun at once."""

LOOK = 60.0
"""Seconds that a look at the queue may take before nobody waits for its end."""

GRACE: Mapping[Kind, float] = {kind: 60.0 if kind == "training" else 10.0 for kind in get_args(Kind)}
"""Seconds that a process has to stop by itself; it asks once a step."""

LOST = "Its process ended without a word, as when memory or space on the disk runs out, or it is killed."

_log = logging.getLogger(__name__)


class Dispatcher:
    """Hands jobs to the processes of an engine, up to its number of slots, the oldest first.

    Args:
        places: folders of the server.
        ledger: the record.
        engine: starts processes.
        slots: jobs at a time.
    """

    def __init__(self, places: Places, ledger: Ledger, engine: Engine, slots: int) -> None:
        self.places, self.ledger, self.engine, self.slots = places, ledger, engine, slots
        self._tries: dict[tuple[str, int], int] = {}
        """Job and how often it had been claimed -> how often it was handed to a process since."""
        self._handed: set[str] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to start waiting jobs."""
        if self._thread is None:
            self._stopping = threading.Event()  # a new one: a thread that was left behind stops all the same
            self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="jobs", daemon=True)
            self._thread.start()

    def stop(self, seconds: float = 20.0) -> None:
        """Start no more jobs; running ones keep their state, and are resumed when a server starts again."""
        if self._thread is not None:
            self._stopping.set()
            self.ledger.asked.set()
            self._thread.join(LOOK)
            if self._thread.is_alive():  # what runs is asked to keep its state in any case
                _log.error("The queue did not stop within %g s", LOOK)
            self._thread = None
        self.engine.close(self.ledger.list(states=("running",), limit=1000), seconds)
        for job in self.ledger.list(states=("running",), limit=1000):
            self._lost(job)

    def _run(self, stopping: threading.Event) -> None:
        while True:
            busy = True
            self.ledger.asked.clear()
            if stopping.is_set():  # asked after the clearing, so that the wait below is always ended
                break
            try:
                busy = self.tick()
            except Exception:  # a queue that stands still helps nobody
                _log.exception("The queue stumbled")
                time.sleep(1)
            if busy:
                stopping.wait(TICK)
            else:
                self.ledger.asked.wait(IDLE)
        self.ledger.close()

    def tick(self) -> bool:
        """Do one round: end jobs that do not stop, requeue those whose process is gone, start waiting ones.

        Returns:
            Whether there are jobs, waiting or running.
        """
        running = self.ledger.list(states=("running",), limit=1000)
        for job in running:
            if not self.engine.alive(job):
                self._lost(self.ledger.get(job.id))
            elif job.wish == "cancel" and time.time() - (job.wished or 0) > GRACE[job.kind]:
                self.engine.kill(job)
        queue = self.ledger.queue()
        waiting = {job.id for job in (*running, *queue)}
        for job in self._handed - waiting:
            self.engine.ended(job)
        self._handed &= waiting
        self._tries = {key: count for key, count in self._tries.items() if key[0] in waiting}
        busy = {job.id for job in running} | {job.id for job in queue if self.engine.holds(job)}
        for job in queue:
            if len(busy) >= self.slots:
                break
            if job.id not in busy and self._begin(job):
                busy.add(job.id)
        self.engine.settle(running)
        return bool(running or queue)

    def _begin(self, job: Job) -> bool:
        times = self._tries.get((job.id, job.begun), 0)
        if times >= ATTEMPTS:  # its process never came so far as to claim it
            said = f"No process could begin it: {self._last_words(job)}."
            self.ledger.move(job.id, ("queued",), "failed", error=said, hint="studio doctor may say more.")
            return False
        if not self.engine.begin(job):
            return False
        self._tries[job.id, job.begun] = times + 1
        self._handed.add(job.id)
        return True

    def _last_words(self, job: Job) -> str:
        """Return the last line that the process of a job left in its log."""
        for path in (self.places.job(job.id) / LOG, self.places.folder / LOG):
            if path.is_file() and (lines := path.read_text(encoding="utf-8", errors="replace").strip().splitlines()):
                return lines[-1][:300]
        return "it said nothing"

    def _lost(self, job: Job) -> None:
        """Requeue a job whose process is gone."""
        if job.state != "running" or self.engine.alive(job):
            return  # it has ended meanwhile
        if job.wish == "cancel":
            self.ledger.move(job.id, ("running",), "cancelled")
            forget_training(job, self.places)
        elif job.wish == "pause":
            self.ledger.move(job.id, ("running",), "paused")
        elif job.lost + 1 < ATTEMPTS:
            self.ledger.tell(job.id, "note", {"text": f"{LOST} It is begun again."})
            self.ledger.move(job.id, ("running",), "queued", lost=job.lost + 1)
        else:
            hint = f"Try a smaller picture, batch or base. Its last words: {self._last_words(job)}."
            self.ledger.move(job.id, ("running",), "failed", error=LOST, hint=hint)
