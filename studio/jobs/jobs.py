"""Long work: ordered here, done by other processes, one at a time, and kept when server or page go away."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

from filelock import BaseFileLock

from pipelines.errors import Conflict
from pipelines.files import require_room
from pipelines.locks import locked
from pipelines.words import file_stem
from studio.jobs.captioning import Captioning
from studio.jobs.clashes import Clashes
from studio.jobs.dispatcher import Dispatcher
from studio.jobs.downloads import Downloads
from studio.jobs.history import History
from studio.jobs.local_engine import Engine, LocalEngine
from studio.jobs.specs import (
    Places,
    checked_attention,
    checked_comparison,
    checked_picking,
    checked_request,
    forget_training,
    places_of,
    scores_key,
    training_of,
)
from studio.jobs.store import Event, Job, Kind, Ledger
from studio.jobs.waiting import Waiting
from studio.library import concepts
from studio.library.model_cards import base_card
from studio.library.names import require_measurable
from studio.library.quota import QUOTA
from studio.library.uploads import put_aside
from studio.settings import Machine
from trainers.loop.candidates import take

UNUSED = 7 * 86_400.0
"""Seconds that an uploaded picture is kept although no job was asked for with it."""


class Jobs:
    """All jobs of a server, and the thread that starts them.

    Args:
        folder: of everything: record, concepts, datasets, pictures.
        bases: id -> base model that may be asked for.
        machine: device settings.
        slots: jobs at a time.
        warm: keep a process ready for generations.
        engine: makes where processes come from; those of this machine by default.
        quota: GiB that datasets, uploaded pictures and files to import may take together.
        models: folders of base models, beside `models` in the folder.
        upscalers: folders of upscalers, beside `upscalers` in the folder.
        captioner: folder of a model that writes captions; by default pocket's reading of stickers.
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
        quota: float = QUOTA,
        models: Sequence[Path] = (),
        upscalers: Sequence[Path] = (),
        captioner: Path | None = None,
    ) -> None:
        roots = {"models": models, "upscalers": upscalers}
        self.places = places_of(folder, bases or {"pocket": "pocket"}, quota, roots, captioner)
        self.folder, self.slots = self.places.folder, slots
        self.bases, self.learned = self.places.catalogue, self.places.learned
        self.datasets, self.pictures = self.places.datasets, self.places.pictures
        self.ledger = Ledger(self.folder / "jobs.sqlite")
        self.engine = engine(self.places) if engine else LocalEngine(self.places, machine, slots, warm)
        self.history, self.waiting = History(self.ledger, self.folder), Waiting(self.ledger)
        self.downloads = Downloads(self.ledger, self.places, machine.download)
        self.captioning = Captioning(self.ledger, self.places)
        self.clashes = Clashes(self.ledger, self.places)
        self.dispatcher = Dispatcher(self.places, self.ledger, self.engine, slots)
        self._asking, self._lock = threading.Lock(), cast("BaseFileLock | None", None)

    # -- asking ----------------------------------------------------------------------------------------------

    def submit_generation(
        self,
        request: Mapping[str, Any],
        base: str = "pocket",
        key: str | None = None,
        compare: Sequence[Any] = (),
        best_of: int = 1,
    ) -> Job:
        """Order pictures.

        Args:
            request: fields of a `Request`, with ids in the place of files.
            base: id of the base model.
            key: asking again with the same key gives the same job.
            compare: one or two `Axis`, or their fields, along which the request is compared; the results are then a
                sheet and the pictures on it, row by row.
            best_of: candidates of each picture, of which the judge's best is kept.

        Raises:
            StudioError: if it cannot be carried out.
        """
        model = self.places.base(base)
        spec: dict[str, Any] = {"request": checked_request(request, self.places), "base": base}
        if compare:
            spec["compare"] = checked_comparison(request, compare, self.places)
        if best_of != 1:
            spec["best_of"] = checked_picking(best_of, request, compare, base_card(model))
        require_room(self.folder, 64 << 20)
        return self.ledger.add("generation", spec, key)

    def submit_training(
        self,
        method: str,
        settings: Mapping[str, Any],
        dataset: str | None,
        base: str = "pocket",
        dry_run: bool = False,
        key: str | None = None,
    ) -> Job:
        """Order a training.

        Args:
            method: its name.
            settings: fields of the method's settings, `DataConfig` and `TrainConfig`, and `keep_every`.
            dataset: id of the pictures; None for those that the base draws.
            base: id of the base model.
            dry_run: only look at the pictures and say what training would take.
            key: asking again with the same key gives the same job.

        Raises:
            StudioError: if it cannot be carried out, or its concept is there already or being learned.
        """
        run = training_of(method, settings, dataset, base, self.places)
        spec = {"method": method, "settings": dict(settings), "dataset": dataset, "base": base, "dry_run": dry_run}
        require_room(self.folder, 64 << 20)
        with self._asking:
            if not dry_run:
                self.clashes.require_free(run.outputs, key)
            return self.ledger.add("training", spec, key)

    def submit_import(self, content: bytes, name: str, token: str | None = None, base: str | None = None) -> Job:
        """Order the import of a file of another program into the library; a process of its own reads it.

        Args:
            content: of an embedding or a LoRA.
            name: original name of the file, which gives its word if nothing else does.
            token: the word to use it by; its own by default.
            base: id of the base that whole weights and IA3 belong to; the first of the server's that fits by default.

        Raises:
            Conflict: if a concept of that word is being learned.
            ConfigError: if there is no such base.
        """
        if base is not None:
            self.places.base(base)
        if token:
            self.clashes.require_unlearned([f"{file_stem(token)}.safetensors"])
        require_room(self.folder, len(content) + (64 << 20))
        file = put_aside(content, name, self.folder / "imports" / secrets.token_hex(8), self.places.quota)
        spec = {"file": file.relative_to(self.folder).as_posix()}
        return self.ledger.add("import", spec | {"token": token, "base": base})

    def submit_score(self, concept: str, dataset: str, base: str = "pocket", key: str | None = None) -> Job:
        """Order a measurement of a concept and the candidates of its training, against its initial word.

        Args:
            concept: its id.
            dataset: id of the pictures it is compared with.
            base: id of the base model it was trained on.
            key: asking again with the same key gives the same job.

        Raises:
            StudioError: if one of them is not there, or the concept is a slider.
        """
        self.places.base(base)
        require_measurable(self.places.concept(concept))
        self.datasets.folder(dataset)
        require_room(self.folder, 64 << 20)
        return self.ledger.add("score", {"concept": concept, "dataset": dataset, "base": base}, key)

    def submit_attention(self, generation: str, picture: int, key: str | None = None) -> Job:
        """Order attention maps of each word of the prompt, in a picture at a place among the results of a generation.

        Raises:
            StudioError: if there is no such picture, or it is a sheet of several.
        """
        require_room(self.folder, 64 << 20)
        return self.ledger.add("attention", checked_attention(self.get(generation), picture, self.places), key)

    def scores_after(self, training: str) -> Job | None:
        """Return the job that measured the result of a training, if there is one."""
        return self.ledger.keyed(scores_key(training))

    def take_step(self, concept: str, step: int) -> None:
        """Replace a concept by the candidate of a step.

        Raises:
            ConceptError: if there is none.
            Conflict: if it is being measured or learned, which would write it anew.
        """
        self.clashes.require_idle(concept)
        take(self.places.concept(concept), step)

    def add_copy(self, source: Path) -> Path:
        """Put a copy of a concept file, with the files beside it, into the library; return its file there.

        Raises:
            Conflict: if a concept of its name is there or being learned.
        """
        with self._asking:
            self.clashes.require_free([self.learned / source.name], None)
            return concepts.add_copy(source, self.learned)

    def add_example(self) -> Path:
        """Put the example concept into the library; return its file. Raises as `add_copy`."""
        return self.add_copy(concepts.EXAMPLE)

    def require_renamable(self, concept: str, word: str) -> None:
        """Refuse another word for a concept that is in use by a job, or one that is being learned.

        Raises:
            Conflict: if it is so.
        """
        self.clashes.require_idle(concept)
        self.clashes.require_unlearned([f"{file_stem(word)}.safetensors"])

    def discard_concept(self, concept: str) -> str:
        """Move a concept into the trash; return the name it has there.

        Raises:
            ConceptError: if there is none.
            Conflict: if it is being measured or learned, which would write it anew.
        """
        path = self.places.concept(concept)
        self.clashes.require_idle(concept)
        return concepts.discard(path)

    def delete_concept(self, concept: str) -> None:
        """Remove a concept for good; raises as `discard_concept`."""
        path = self.places.concept(concept)
        self.clashes.require_idle(concept)
        concepts.delete(path)

    def restore(self, thrown: str) -> Path:
        """Bring a concept back from the trash by the name it has there; return its file.

        Raises:
            ConceptError: if it is not in the trash, or something of its names is there now.
            Conflict: if a concept of its name is being learned.
        """
        with self._asking:
            self.clashes.require_unlearned([concepts.thrown(thrown, self.learned).name])
            return concepts.restore(thrown, self.learned)

    def delete_dataset(self, dataset: str) -> None:
        """Remove pictures for good.

        Raises:
            Conflict: if a training still needs them.
        """
        self.clashes.require_unneeded(dataset)
        self.datasets.delete(dataset)

    # -- looking ---------------------------------------------------------------------------------------------

    def get(self, job: str) -> Job:
        """Return a job by its id; raises `Unknown`."""
        return self.ledger.get(job)

    def list(self, kind: Kind | None = None, states: Sequence[str] = (), limit: int = 100) -> list[Job]:
        """Return jobs, the newest first."""
        return self.ledger.list(kind, states, limit)

    def page(
        self, kind: Kind | None, states: Sequence[str], limit: int, before: int | None
    ) -> tuple[list[Job], int | None]:
        """Return a part of the jobs, the newest first, and the number before which the next are; None for no more."""
        return self.ledger.page(kind, states, limit, before)

    def events(self, job: str, after: int = 0, limit: int = 1000, kinds: Sequence[str] = ()) -> list[Event]:
        """Return events with a number above `after`, in order; raises `Unknown`."""
        return self.ledger.events(job, after, limit, kinds)

    def results(self, job: str) -> list[Path]:
        """Return the files a job made that still exist."""
        paths = [self.folder / name for name in self.get(job).results]
        return [path for path in paths if path.is_file()]

    def previews(self, job: str) -> list[tuple[int, Path, str]]:
        """Return step, file and caption of each preview picture."""
        shown, folder = self.events(job, limit=100_000, kinds=("preview",)), self.job_folder(job)
        return [(one.data["step"], folder / one.data["file"], one.data["caption"]) for one in shown]

    def job_folder(self, job: str) -> Path:
        """Return the folder of the pictures of a job; raises `Unknown`."""
        return self.places.job(self.get(job).id)

    # -- steering --------------------------------------------------------------------------------------------

    def cancel(self, job: str) -> Job:
        """Stop a job for good: at once if it waits, within a step if it runs.

        Raises:
            Conflict: if it has ended.
        """
        before = self.get(job)
        if self.ledger.move(job, ("queued", "paused"), "cancelled"):
            forget_training(before, self.places)
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
        """Put a paused training back into the queue; it is resumed from its state.

        Raises:
            Conflict: if it is not paused.
        """
        self.get(job)
        if not self.ledger.requeue(job):
            raise Conflict(f"The job is {self.get(job).state}, not paused.", "Only what is paused goes on.")
        return self.get(job)

    def delete(self, job: str) -> None:
        """Delete a job that has ended, with its pictures and events; a concept it made stays.

        Raises:
            Conflict: if it has not ended.
        """
        self.ledger.delete(job)
        shutil.rmtree(self.places.job(job), ignore_errors=True)

    # -- the queue -------------------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Keep other servers out of the folder until this one is stopped.

        Raises:
            ConfigError: if there is one.
        """
        if self._lock is None:
            said = f"Another server works in {self.folder}."
            self._lock = locked(self.folder / ".server.lock", said, "Stop that one, or give another --folder.")

    def start(self) -> Self:
        """Start waiting jobs from now on; unused uploads and pictures long thrown away are deleted."""
        self.reserve()
        self.pictures.prune(self.ledger.names, UNUSED)
        self.history.prune(UNUSED)
        self.dispatcher.start()
        return self

    def stop(self, seconds: float = 20.0) -> None:
        """Start no more jobs; running ones keep their state, and are resumed when a server starts again."""
        self.dispatcher.stop(seconds)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
