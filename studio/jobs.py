"""Long work: asked for here, done by other processes, one at a time, and not lost when server or page go away."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pipelines.card import file_stem
from pipelines.errors import StudioError
from pipelines.files import require_room
from studio import catalogue
from studio.engine import LOG, Engine, LocalEngine
from studio.ledger import ATTEMPTS, LIVE, Conflict, Event, Job, Kind, Ledger
from studio.orders import Places, checked_comparison, checked_request, lesson, outputs
from studio.settings import Machine

TICK = 0.1
"""Seconds between two looks at the queue."""

GRACE = {"generation": 10.0, "training": 60.0, "import": 10.0}
"""Seconds that a process has to stop by itself; it asks once a step."""

LOST = "Its process ended without a word, as when memory runs out or it is killed."

IMPORTED = ("safetensors", "pt", "bin", "png")
"""Endings of files that may hold a concept."""

_log = logging.getLogger(__name__)


class Jobs:
    """All jobs of a server, and the thread that begins what waits.

    Args:
        folder: of everything: record, concepts, datasets, pictures.
        bases: id -> base model that may be asked for.
        machine: what to compute on.
        slots: jobs at a time.
        warm: keep a process ready for generations.
        engine: makes where processes come from; those of this machine by default.
    """

    def __init__(
        self,
        folder: Path = Path("outputs"),
        *,
        bases: Mapping[str, str] | None = None,
        machine: Machine = Machine(),  # noqa: B008 - frozen
        slots: int = 1,
        warm: bool = True,
        engine: Callable[[Places], Engine] | None = None,
    ) -> None:
        given = {"pocket": "pocket"} if bases is None else bases
        # Processes work in the folder, where a path as seen from here would mean another file.
        whole = {name: str(Path(base).resolve()) if Path(base).exists() else base for name, base in given.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.slots = folder.resolve(), slots
        self.places = Places(self.folder, whole)
        self.bases, self.learned = dict(whole), self.places.learned
        self.datasets, self.pictures = self.places.datasets, self.places.pictures
        self.learned.mkdir(exist_ok=True)
        self.ledger = Ledger(self.folder / "jobs.sqlite")
        self.engine = engine(self.places) if engine else LocalEngine(self.places, machine, slots, warm)
        self._tries: dict[tuple[str, int], int] = {}
        """Job and how often it had been claimed -> how often it was handed to a process since."""
        self._handed: set[str] = set()
        self._asking = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- asking ----------------------------------------------------------------------------------------------

    def submit_generation(
        self,
        request: Mapping[str, Any],
        base: str = "pocket",
        key: str | None = None,
        compare: Sequence[Any] = (),
    ) -> Job:
        """Ask for pictures.

        Args:
            request: fields of a `Request`, with ids in the place of files.
            base: id of the base model.
            key: asking again with the same key gives the same job.
            compare: one or two `Axis`, or their fields, along which the request is compared; the results are then a
                sheet and the pictures on it, row by row.

        Raises:
            StudioError: if it cannot be carried out.
        """
        self.places.base(base)
        spec: dict[str, Any] = {"request": checked_request(request, self.places), "base": base}
        if compare:
            spec["compare"] = checked_comparison(request, compare)
        require_room(self.folder, 64 << 20)
        return self.ledger.add("generation", spec, key)

    def submit_training(
        self,
        method: str,
        settings: Mapping[str, Any],
        dataset: str,
        base: str = "pocket",
        dry_run: bool = False,
        key: str | None = None,
    ) -> Job:
        """Ask for a training.

        Args:
            method: its name.
            settings: fields of the method's settings, `DataConfig` and `TrainConfig`, and `keep_every`.
            dataset: id of the pictures.
            base: id of the base model.
            dry_run: only look at the pictures and say what training would take.
            key: asking again with the same key gives the same job.

        Raises:
            StudioError: if it cannot be carried out, or its concept is there already or being learned.
        """
        one = lesson(method, settings, dataset, base, self.places)
        spec = {"method": method, "settings": dict(settings), "dataset": dataset, "base": base, "dry_run": dry_run}
        require_room(self.folder, 64 << 20)
        with self._asking:
            if not dry_run:
                self._require_free([path.name for path in outputs(one)], key)
            return self.ledger.add("training", spec, key)

    def submit_import(self, content: bytes, name: str, token: str | None = None) -> Job:
        """Ask that a file of another program is taken into the library; it is read in a process of its own.

        Args:
            content: of an embedding or a LoRA.
            name: what the file was called, which says its word if nothing else does.
            token: the word to use it by; its own by default.
        """
        require_room(self.folder, len(content) + (64 << 20))
        stem, _, suffix = name.replace("\\", "/").rpartition("/")[2].rpartition(".")
        kind = suffix.lower() if suffix.lower() in IMPORTED else "safetensors"
        place = self.folder / "imports" / secrets.token_hex(8)
        place.mkdir(parents=True)
        file = place / f"{file_stem(stem or suffix)[:80]}.{kind}"
        file.write_bytes(content)
        return self.ledger.add("import", {"file": file.relative_to(self.folder).as_posix(), "token": token})

    def add_example(self) -> Path:
        """Put the example concept into the library; gives its file.

        Raises:
            Conflict: if a concept of its name is there or being learned.
        """
        with self._asking:
            self._require_free([catalogue.EXAMPLE.name], None)
            return catalogue.add_copy(catalogue.EXAMPLE, self.learned)

    def delete_dataset(self, dataset: str) -> None:
        """Remove pictures for good.

        Raises:
            Conflict: if a training still needs them.
        """
        self.datasets.folder(dataset)
        for job in self.ledger.list("training", LIVE, 1000):
            if dataset == job.spec["dataset"] or dataset in json.dumps(job.spec["settings"]):
                raise Conflict(f"The training {job.id} needs these pictures.", "Cancel it first.")
        self.datasets.delete(dataset)

    def _require_free(self, names: Sequence[str], key: str | None) -> None:
        if len(set(names)) < len(names):
            raise Conflict(f"Two subjects would be written to {names[0]}.", "Choose other tokens.")
        if key is not None and self.ledger.keyed(key):
            return
        for name in names:
            if (self.learned / name).exists():
                raise Conflict(
                    f"The concept {name.removesuffix('.safetensors')} is there already.",
                    "Choose another token, or rename or delete it.",
                )
        for job in self.ledger.list("training", LIVE, 1000):
            spec = job.spec
            if spec["dry_run"]:
                continue
            try:
                theirs = outputs(lesson(spec["method"], spec["settings"], spec["dataset"], spec["base"], self.places))
            except StudioError:  # what it needs has been deleted; it will say so itself
                continue
            if taken := [path.name for path in theirs if path.name in names]:
                raise Conflict(
                    f"The concept {taken[0].removesuffix('.safetensors')} is being learned already.",
                    f"Choose another token, or cancel the job {job.id}.",
                )

    # -- looking ---------------------------------------------------------------------------------------------

    def get(self, job: str) -> Job:
        """A job by its id; raises `Unknown`."""
        return self.ledger.get(job)

    def list(self, kind: Kind | None = None, states: Sequence[str] = (), limit: int = 100) -> list[Job]:
        """Jobs, the newest first."""
        return self.ledger.list(kind, states, limit)

    def events(self, job: str, after: int = 0, limit: int = 1000, kinds: Sequence[str] = ()) -> list[Event]:
        """Events with a number above `after`, in order; raises `Unknown`."""
        return self.ledger.events(job, after, limit, kinds)

    def results(self, job: str) -> list[Path]:
        """The files a job made that are still there."""
        paths = [self.folder / name for name in self.get(job).results]
        return [path for path in paths if path.is_file()]

    def previews(self, job: str) -> list[tuple[int, Path, str]]:
        """Step, file and caption of each preview picture."""
        shown = [event.data for event in self.events(job, limit=100_000, kinds=("preview",))]
        return [(one["step"], self.job_folder(job) / one["file"], one["caption"]) for one in shown]

    def job_folder(self, job: str) -> Path:
        """Where the pictures of a job are; raises `Unknown`."""
        return self.places.job(self.get(job).id)

    # -- steering --------------------------------------------------------------------------------------------

    def cancel(self, job: str) -> Job:
        """Stop a job for good: at once if it waits, within a step if it runs.

        Raises:
            Conflict: if it has ended.
        """
        before = self.get(job)
        if self.ledger.move(job, ("queued", "paused"), "cancelled"):
            self._forget_state(before)
        elif not self.ledger.wish(job, "cancel") and self.get(job).state != "running":
            raise Conflict(f"The job has ended: it is {self.get(job).state}.", "There is nothing to cancel.")
        return self.get(job)

    def pause(self, job: str) -> Job:
        """Stop a training with its state kept, so that it can go on later.

        Raises:
            Conflict: if it is no training, or has ended.
        """
        if self.get(job).kind != "training":
            raise Conflict("Only a training can be paused.", "Cancel it, and ask for it again.")
        moved = self.ledger.move(job, ("queued",), "paused") or self.ledger.wish(job, "pause")
        now = self.get(job)
        if not moved and now.state not in ("paused", "running"):
            raise Conflict(f"The job has ended: it is {now.state}.", "There is nothing to pause.")
        return now

    def resume(self, job: str) -> Job:
        """Put a paused training back into the queue; it goes on where it stopped.

        Raises:
            Conflict: if it is not paused.
        """
        self.get(job)
        if not self.ledger.requeue(job):
            raise Conflict(f"The job is {self.get(job).state}, not paused.", "Only what is paused goes on.")
        return self.get(job)

    def delete(self, job: str) -> None:
        """Forget a job that has ended, with its pictures and events; a concept it made stays.

        Raises:
            Conflict: if it has not ended.
        """
        self.ledger.delete(job)
        shutil.rmtree(self.places.job(job), ignore_errors=True)

    def _forget_state(self, job: Job) -> None:
        """Remove the training state of a job that was cancelled."""
        if job.kind != "training" or job.spec["dry_run"]:
            return
        spec = job.spec
        try:
            first = outputs(lesson(spec["method"], spec["settings"], spec["dataset"], spec["base"], self.places))[0]
        except StudioError:  # its pictures are gone; the next training of this name says so if the state is in its way
            return
        shutil.rmtree(first.with_name(f".{first.stem}.state"), ignore_errors=True)

    # -- the thread ------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin what waits, from now on."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()
        return self

    def stop(self, seconds: float = 20.0) -> None:
        """Begin nothing more; what runs keeps its state, and goes on when a server starts again."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None
        self.engine.close(self.ledger.list(states=("running",), limit=1000), seconds)
        for job in self.ledger.list(states=("running",), limit=1000):
            self._lost(job)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except Exception:  # a queue that stands still helps nobody
                _log.exception("The queue stumbled")
                time.sleep(1)
            self._stopping.wait(TICK)
        self.ledger.close()

    def tick(self) -> None:
        """Look once: end what does not stop, take back what lost its process, begin what waits."""
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
        """The last line that the process of a job left in its log."""
        for path in (self.places.job(job.id) / LOG, self.folder / LOG):
            if path.is_file() and (lines := path.read_text(encoding="utf-8", errors="replace").strip().splitlines()):
                return lines[-1][:300]
        return "it said nothing"

    def _lost(self, job: Job) -> None:
        """Take a job back whose process is gone."""
        if job.state != "running" or self.engine.alive(job):
            return  # it has ended meanwhile
        if job.wish == "cancel":
            self.ledger.move(job.id, ("running",), "cancelled")
            self._forget_state(job)
        elif job.wish == "pause":
            self.ledger.move(job.id, ("running",), "paused")
        elif job.lost + 1 < ATTEMPTS:
            self.ledger.tell(job.id, "note", {"text": f"{LOST} It is begun again."})
            self.ledger.move(job.id, ("running",), "queued", lost=job.lost + 1)
        else:
            hint = f"Try a smaller picture, batch or base. Its last words: {self._last_words(job)}."
            self.ledger.move(job.id, ("running",), "failed", error=LOST, hint=hint)
