"""Jobs on the machines of a Ray cluster: `studio serve --engine ray`. Needs `pip install promptstudio[ray]`.

Each slot is an actor with a `Worker` of its own; it has a GPU or a CPU core to itself, on whichever machine Ray finds
one. All machines see the server's folder under the same path. The record alone stays with the server: SQLite's
write-ahead log needs memory that all its users share, so actors ask an actor on the server's machine that has it open.

Actors end with the server that made them, however it ends; the next one takes their jobs back, and trainings go on
from their last state.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from studio.deadlines import within
from studio.jobs.local_engine import LOG, end_processes, kill_here, lives_here, setup_of
from studio.jobs.specs import Places
from studio.jobs.store import Job, Kind, Ledger, State
from studio.settings import Machine

IDLE = 600.0
"""Seconds after which an actor without work gives its place on the cluster back."""

ANSWER = 5.0
"""Seconds that a cluster has to answer."""

START = 180.0
"""Seconds that Ray has to begin, or to let this process join; a busy machine takes one minute."""

RECORD = 300.0
"""Seconds that the record has to answer an actor, whose server is taken for gone after that."""

BEGIN = "Begin a Ray with `ray start --head`, or leave --cluster out for one on this machine alone."

STORE = 80 << 20
"""Bytes of memory that a Ray of our own shares; nothing large travels, and this is about the least it takes."""


class FarRecord:
    """The record, through the actor that has it open; a process that cannot reach it any more ends at once.

    Args:
        keeper: handle of a `Ledger` on the server's machine.
    """

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def claim(self, job: str, pid: int, born: float) -> bool:
        """Assign a queued job to a process; return false if another was first or it waits no more."""
        return self._ask("claim", job, pid, born)

    def get(self, job: str) -> Job:
        """Return a job by its id; raises `Unknown`."""
        return self._ask("get", job)

    def add(self, kind: Kind, spec: dict[str, Any], key: str | None = None) -> Job:
        """Enter a job that follows from this one."""
        return self._ask("add", kind, spec, key)

    def wished(self, job: str) -> str:
        """Return what the process of a job is asked to do."""
        return self._ask("wished", job)

    def move(self, job: str, before: Sequence[str], state: State, **changes: Any) -> bool:
        """Change a job's state if it is one of `before`; return whether it was."""
        return self._ask("move", job, before, state, **changes)

    def tell(self, job: str, kind: str, data: dict[str, Any]) -> None:
        """Add an event."""
        self._ask("tell", job, kind, data)

    def _ask(self, what: str, *values: Any, **named: Any) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            return ray.get(getattr(self._keeper, what).remote(*values, **named), timeout=RECORD)
        except (RayActorError, GetTimeoutError):  # no error of the job: its server takes it back and begins it again
            raise SystemExit("The record of jobs is out of reach.") from None


class FarWorker:
    """The actor of a slot; its second thread receives the order to end.

    Args:
        setup: settings of the server.
        keeper: handle of a `Ledger` on the server's machine.

    Raises:
        ConfigError: if the machine does not see the server's folder.
    """

    def __init__(self, setup: str, keeper: Any) -> None:
        folder = Path(json.loads(setup)["folder"])
        if not (folder / "jobs.sqlite").is_file():
            raise ConfigError(
                f"The machine {platform.node()} does not see the server's folder {folder}.",
                "Put --folder on a drive that all machines of the cluster have under the same path.",
            )
        from studio.jobs.worker import worker  # torch comes with it

        self._worker = worker(setup, FarRecord(keeper))

    def ready(self) -> None:
        """Load torch and the base into memory."""
        self._worker.warm()

    def run(self, job: str) -> bool:
        """Do a job if it still waits; return whether the actor is to end."""
        self._worker.run(job)
        return self._worker.over

    def end(self) -> None:
        """Keep the state of the running job, and begin no other."""
        self._worker.over = True


@dataclass
class _Hand:
    """An actor and its jobs.

    Attributes:
        actor: its handle.
        ready: Ray's reference to its start.
        able: whether it has started.
        job: its job.
        task: Ray's reference to the work on that; none before it has started.
        rested: when it last had nothing to do, in seconds of the monotonic clock.
    """

    actor: Any
    ready: Any
    able: bool = False
    job: Job | None = None
    task: Any = None
    rested: float = field(default_factory=time.monotonic)

    def has(self, job: Job) -> bool:
        """Return whether it was handed this job."""
        return self.job is not None and self.job.id == job.id

    def hand(self, job: Job) -> None:
        """Hand it a job, which waits here until the actor has started."""
        self.job = job
        self.send()

    def send(self) -> None:
        """Let it work on the jobs it was handed."""
        if self.able and self.task is None and self.job is not None:
            self.task = self.actor.run.remote(self.job.id)


class RayEngine:
    """Actors of a Ray cluster, as many as there are slots, each with torch loaded and the last base in memory.

    To be made in a thread that lives as long as the server: a Ray of our own ends with the thread that began it.

    Args:
        places: folders of the server, the same on every machine.
        machine: device settings; with `device` auto a GPU each if the cluster has any.
        slots: number of processes.
        address: of a Ray that this machine is part of, as HOST:PORT or auto; by default one of our own on this machine.

    Raises:
        ConfigError: if Ray is not installed, there is none at the address, or it has no such device.
    """

    def __init__(self, places: Places, machine: Machine, slots: int = 1, address: str | None = None) -> None:
        connect(address, slots)
        self.places, self.machine, self.slots = places, machine, slots
        self._gpus = _gpus(machine, ours=address is None)
        self._hands: list[_Hand] = []
        self._keeper: Any = None

    def begin(self, job: Job) -> bool:
        """Hand a queued job to an actor; return false if none is free for it now."""
        self._look()
        free = [hand for hand in self._hands if hand.job is None]
        if not free and len(self._hands) >= self.slots:
            return False
        hand = max(free, key=lambda hand: hand.able) if free else self._start()
        hand.hand(job)
        return True

    def holds(self, job: Job) -> bool:
        """Return whether a living actor was handed this queued job and has yet to claim it."""
        return any(
            hand.has(job) and hand.job is not None and hand.job.begun == job.begun and not _done(hand.task)
            for hand in self._hands
        )

    def ended(self, job: str) -> None:
        """Mark an actor that was yet to be handed a job that is over as free."""
        for hand in self._hands:
            if hand.job is not None and hand.job.id == job and hand.task is None:
                hand.job = None

    def alive(self, job: Job) -> bool:
        """Return whether the actor, or the process of this machine, that claimed a job still works on it."""
        here = any(hand.has(job) and hand.task is not None and not _done(hand.task) for hand in self._hands)
        return here or lives_here(job)

    def kill(self, job: Job) -> None:
        """End the actor that claimed a job, at once."""
        import ray

        for hand in self._hands:
            if hand.has(job):
                ray.kill(hand.actor)
        kill_here(job)

    def settle(self, running: Sequence[Job] = ()) -> None:
        """Look after actors that have ended, and let no job wait for an actor's start while another is free."""
        self._look()
        waiting = [hand for hand in self._hands if hand.job is not None and not hand.able]
        free = [hand for hand in self._hands if hand.job is None and hand.able]
        for late, idle in zip(waiting, free, strict=False):
            if late.job is not None:
                idle.hand(late.job)
                late.job = None
        for hand in free:
            if hand.job is None and time.monotonic() - hand.rested > IDLE:
                self._drop(hand)

    def close(self, running: Sequence[Job], seconds: float) -> None:
        """Ask all actors, and processes of `running`, to keep their state and end; wait so long, then end them."""
        import ray

        end = time.monotonic() + seconds
        working = [hand for hand in self._hands if hand.task is not None]
        for hand in working:
            hand.actor.end.remote()
        if working:
            ray.wait([hand.task for hand in working], num_returns=len(working), timeout=seconds)
        for hand in list(self._hands):
            self._drop(hand)
        if self._keeper is not None:
            ray.kill(self._keeper)
            self._keeper = None
        # What an earlier engine left at work on this machine, and what has just been killed, is gone when this returns.
        left = [job.pid for job in running if job.pid is not None and lives_here(job)]
        end_processes(left, max(0.0, end - time.monotonic()))

    def _look(self) -> None:
        """Let actors work that have started, and forget those that have ended."""
        for hand in list(self._hands):
            if not hand.able and _done(hand.ready):
                _, error = _result(hand.ready)
                if error:
                    (self.places.folder / LOG).write_text(f"{error}\n", encoding="utf-8")
                    self._drop(hand)
                    continue
                hand.able, hand.rested = True, time.monotonic()
            if hand.task is not None and _done(hand.task):
                over, error = _result(hand.task)
                hand.job, hand.task, hand.rested = None, None, time.monotonic()
                if over or error:
                    self._drop(hand)
                    continue
            hand.send()

    def _start(self) -> _Hand:
        import ray

        if self._keeper is None:
            self._keeper = _keeper(self.places.folder / "jobs.sqlite")
        share = {"num_gpus": 1, "num_cpus": 0} if self._gpus else {"num_cpus": 1}
        kind: Any = ray.remote(FarWorker)
        actor = kind.options(max_concurrency=2, **share).remote(setup_of(self.places, self.machine), self._keeper)
        hand = _Hand(actor, actor.ready.remote())
        self._hands.append(hand)
        return hand

    def _drop(self, hand: _Hand) -> None:
        import ray

        self._hands.remove(hand)
        with suppress(Exception):  # it is gone already
            ray.kill(hand.actor)


def connect(address: str | None, slots: int) -> None:
    """Join the Ray at an address, or start one on this machine for this server alone, unless that is done.

    Raises:
        ConfigError: if Ray is not installed, or there is none at the address.
    """
    if address is not None and "://" in address:
        raise ConfigError(
            f"{address} is no cluster that this machine is part of.",
            "Join it with `ray start --address HOST:PORT`, then give --cluster auto.",
        )
    if address is not None and address != "auto":
        _require_listener(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report to its makers
    if address is None and sys.modules.get("ray") is None:
        _keep_to_ourselves()
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("Ray is not installed.", "pip install 'promptstudio[ray]' brings it.") from None
    if ray.is_initialized():
        return
    ours = {"num_cpus": slots, "include_dashboard": False, "object_store_memory": STORE} if address is None else {}
    begin = partial(ray.init, address or "local", log_to_driver=False, logging_level=logging.ERROR, **ours)
    try:
        within(START, begin, TimeoutError(f"no answer within {START:.0f} s"))
    except Exception as error:  # whatever keeps it from starting, it is said in one line
        first, _, _ = str(error).partition("\n")
        raise ConfigError(
            f"There is no Ray at {address}: {first}" if address else f"Ray does not start: {first}", BEGIN
        ) from None


def _require_listener(address: str) -> None:
    """Raise `ConfigError` if nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, ValueError, OverflowError):
        raise ConfigError(f"Nobody answers at {address}.", BEGIN) from None


def _keep_to_ourselves() -> None:
    """Let a Ray of our own listen to this machine alone, with a password that is on no disk.

    Ray reads both when it is imported; a program that has done so itself decides. The first setting is named after the
    systems on which it is the default.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _gpus(machine: Machine, ours: bool) -> int:
    """Return the GPUs an actor needs: 0 or 1."""
    import ray

    if machine.device.startswith("cuda:") and machine.device != "cuda:0":
        raise ConfigError(f"Ray chooses the GPU, so there is no {machine.device} to choose.", "Use --device cuda.")
    some = ray.cluster_resources().get("GPU", 0) >= 1
    if machine.device == "auto":
        return int(some)
    if ours and machine.device.startswith("cuda") and not some:
        raise ConfigError("Ray finds no GPU on this machine.", "Use --device auto or cpu.")
    return int(machine.device.startswith("cuda"))


def _keeper(path: Path) -> Any:
    """Return a `Ledger` in an actor of this machine, which Ray restarts should it end."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(Ledger)
    return kind.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote(path)


def _done(task: Any) -> bool:
    """Return whether a call of Ray is over; false without one."""
    import ray

    return task is not None and bool(ray.wait([task], timeout=0)[0])


def _result(task: Any) -> tuple[Any, str]:
    """Return the result of a task, and its error."""
    import ray

    try:
        return ray.get(task, timeout=RECORD), ""
    except Exception as error:  # of the actor or of its machine; its log has the rest
        return None, str(error)
