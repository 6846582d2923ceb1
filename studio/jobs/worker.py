"""The process that does jobs, one after the other; their ids come on standard input.

    python -m studio.jobs.worker SETUP

What it says goes into the record; only what nobody expected goes to standard error, which is a log of each job.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.concepts.card import read_card
from pipelines.concepts.compatibility import Stamp, stamp
from pipelines.errors import Cancelled, NoSpace, StudioError
from pipelines.events import Event, Note, Preview, StepDone
from pipelines.exhaustion import hardship
from pipelines.files import stem_of, whole_file
from pipelines.models.hub import fetch
from pipelines.request.axes import axes_of
from pipelines.request.request import Request
from pipelines.request.texts import without_folders
from studio.jobs.captioning import wording_of
from studio.jobs.downloads import folder_of
from studio.jobs.local_engine import BEAT, LOG, birth
from studio.jobs.specs import Places, forget_training, scores_key, training_of_job, with_paths
from studio.jobs.store import Job, Ledger, Record, State
from studio.library.concepts import meant
from studio.library.import_export import import_concept
from studio.settings import DrawingMachine, Machine, Picking
from studio.work import captions, runner
from studio.work import measure as measuring
from studio.work.compare import draw
from studio.work.reproduce import overlays
from trainers.loop.launch import pausing
from trainers.run import Run, forget_state


@dataclass
class Worker:
    """Does jobs, one at a time.

    Attributes:
        places: folders of the server.
        machine: device settings.
        ledger: the record.
        over: whether this process is to end; set from another thread, it keeps the state of the job first.
    """

    places: Places
    machine: Machine
    ledger: Record
    over: bool = False
    _bases: dict[tuple[str, Stamp], Any] = field(default_factory=dict)
    """The base of the last generation, which stays in memory."""

    def run(self, identity: str) -> None:
        """Do a job if it still waits, and record how it ended."""
        if self.over or not self.ledger.claim(identity, os.getpid(), birth(os.getpid())):
            return
        job = self.ledger.get(identity)
        try:
            with _logged(self.places.job(identity) / LOG), pausing() as asked:
                made = self._carry_out(job, lambda: asked() or self.over or bool(self.ledger.wished(job.id)))
        except (Cancelled, KeyboardInterrupt):
            self._stopped(job)
        except Exception as error:
            if not isinstance(error, StudioError):
                traceback.print_exc()
            if known := hardship(error):  # asked again with the same key, it is another job
                self._ended(job, "failed", error=known.message, hint=known.hint, key=None)
            elif isinstance(error, StudioError):
                self._ended(job, "failed", error=error.message, hint=error.hint)
            else:
                said = f"{type(error).__name__}: {str(error)[:300]}"
                self._ended(job, "failed", error=said, hint="This is a defect; the log has the rest.")
        else:
            relative = [path.absolute().relative_to(self.places.folder).as_posix() for path in made]
            self._ended(job, "done", results=relative)
        # The memory of a GPU comes back whole only with the process.
        self.over = self.over or (job.kind == "training" and runner.on_gpu(self.machine))

    def _carry_out(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        others = {
            "generation": self._generate,
            "import": self._import,
            "score": self._score,
            "download": self._download,
            "attention": self._attention,
            "caption": self._caption,
        }
        return others.get(job.kind, self._train)(job, should_stop)

    def _train(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        self._bases.clear()  # a training gets all the memory
        self._phase(job, "loading the base, and looking at the pictures")
        spec = job.spec
        run = training_of_job(job, self.places)
        if spec["dry_run"]:
            for line in runner.preflight(run, self.machine):
                self.tell(job, Note(line))
            return []
        if job.begun > 1 and run.whole:  # killed when its concept was whole, before that was recorded
            paths = run.outputs
            forget_state(paths[0])
        else:
            paths = runner.write_concepts(
                run, self.machine, on_event=lambda event: self.tell(job, event), should_stop=should_stop
            )
        with suppress(NoSpace):  # what was learned is worth more than what comes after
            self._after(job, run, paths)
        return paths

    def _after(self, job: Job, run: Run, paths: Sequence[Path]) -> None:
        """Bring the last preview of a run of one concept into the library, and order measurements of candidates."""
        newest = sorted(self.places.job(job.id).glob("preview-*.png"))[-1:]
        if newest and len(paths) == 1:  # else it shows what others learned too, and each has one of its own
            with whole_file(paths[0].with_name(f"{stem_of(paths[0])}.preview.png")) as picture:
                shutil.copyfile(newest[0], picture)
        for concept, (folder, _) in zip(paths, run.config.folders(run.data.images), strict=False):
            if not (run.train.candidates and folder) or read_card(concept).kind == "slider":
                continue  # a slider has nothing to be compared with
            asked = {"concept": concept.stem, "dataset": folder.name, "base": job.spec["base"]}
            key = scores_key(job.id)
            self.ledger.add("score", asked, key if concept == paths[0] else f"{key} {concept.stem}")

    def _score(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        spec, sheet = job.spec, self.places.job(job.id) / "scores.png"
        choice = measuring.measure(
            self._base_for(job),
            self.places.concept(spec["concept"]),
            self.places.datasets.folder(spec["dataset"]),
            on_event=lambda event: self.tell(job, event),
            should_stop=should_stop,
        )
        self.ledger.tell(job.id, "scores", measuring.told(choice))
        return [choice.sheet().save(sheet, colours=256)]

    def _generate(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        request = with_paths(Request.read(job.spec["request"]), self.places)
        base = self.places.base(job.spec["base"])
        axes = axes_of(job.spec.get("compare", ()))
        used = [use.source for use in request.concepts]
        texts = [request.prompt, *(box.phrase for box in request.boxes)]
        if near := meant(texts, used, self.places.learned):
            self.tell(job, Note(near))
        _forget_pictures(self.places.job(job.id))
        return draw(
            request,
            axes,
            without_folders(base),  # what the pictures tell; its parts are here
            self.places.job(job.id),
            self.machine,
            components=self._base_for(job),
            picking=Picking(best_of=job.spec.get("best_of", 1)),
            on_event=lambda event: self.tell(job, event),
            should_stop=should_stop,
        )

    def _caption(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        self._phase(job, "looking at the pictures")
        captions.write_captions(
            self.places.datasets,
            job.spec["dataset"],
            wording_of(job),
            captions.captioner(self.places.captioner, self.machine),
            on_event=lambda event: self.tell(job, event),
            should_stop=should_stop,
        )
        return []  # they stand beside the pictures

    def _attention(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        words, paths = overlays(
            self.places.picture_of(self.ledger.get(job.spec["generation"]), job.spec["picture"]),
            self._base_for(job),
            self.places.job(job.id),
            self.machine,
            on_event=lambda event: self.tell(job, event),
            should_stop=should_stop,
        )
        told = [{"word": word, "most": round(most, 4)} for word, most in words.items()]
        self.ledger.tell(job.id, "words", {"words": told})
        return paths

    def _import(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        source = self.places.folder / job.spec["file"]
        try:
            named = job.spec.get("base")
            bases = [self.places.base(named)] if named else list(self.places.catalogue.values())
            return [import_concept(source, job.spec["token"], self.places.learned, bases=bases)]
        finally:
            shutil.rmtree(source.parent, ignore_errors=True)

    def _download(self, job: Job, should_stop: Callable[[], bool]) -> list[Path]:
        self._phase(job, "asking the hub what there is")
        fetch(
            job.spec["model"],
            self.places.models[0] / folder_of(job.spec["model"]),
            on_event=lambda event: self.tell(job, event),
            should_stop=should_stop,
        )
        return []  # it is a base of the server from now on, and no file of the job

    def _base_for(self, job: Job) -> Any:
        """Return the base of a job; that it is loaded is told, since that takes a while."""
        name = self.places.base(job.spec["base"])
        if (name, stamp(Path(name))) not in self._bases:
            self._phase(job, "loading the base")
        base = self.base(name)
        self._phase(job, "reading the words")
        return base

    def _phase(self, job: Job, said: str) -> None:
        """Tell what a job does before its first step."""
        with suppress(NoSpace):
            self.ledger.tell(job.id, "phase", {"text": said})

    def base(self, name: str) -> Any:
        """Return a base model, from memory if it was the last one used."""
        key = (name, stamp(Path(name)))  # another model may have taken its place
        if key not in self._bases:
            self._bases.clear()  # two large ones need not fit
            self._bases[key] = runner.open_base(name, self.machine)
        return self._bases[key]

    def warm(self) -> None:
        """Load the base before the first job asks for it, if there is only one."""
        if len(self.places.bases) == 1:
            try:
                self.base(next(iter(self.places.bases.values())))
            except StudioError as error:  # it is said again with the first job
                sys.stderr.write(f"{error}\n")

    def tell(self, job: Job, event: Event) -> None:
        """Record an event; on a full disk it is left out, since the work is worth more."""
        with suppress(NoSpace):
            self._tell(job, event)

    def _tell(self, job: Job, event: Event) -> None:
        """Record an event; a preview picture becomes a file of the job."""
        if isinstance(event, StepDone):
            data = {"step": event.step, "steps": event.steps, "terms": event.terms, "seconds": event.seconds}
            self.ledger.tell(job.id, "step", data)
        elif isinstance(event, Note):
            self.ledger.tell(job.id, "note", {"text": event.text})
        elif isinstance(event, Preview):
            path = self.places.job(job.id) / f"preview-{event.step:07d}.png"
            picture: Any = event.picture
            with whole_file(path) as temporary:
                picture.save(temporary, format="PNG")
            data = {"step": event.step, "caption": event.caption, "file": path.name}
            self.ledger.tell(job.id, "preview", data)

    def _stopped(self, job: Job) -> None:
        """Record how a job stopped: as wished, or for later if the process was told to end."""
        wish = self.ledger.wished(job.id)
        self.over = self.over or not wish
        if wish == "cancel":
            forget_training(job, self.places)
            self.ledger.move(job.id, ("running",), "cancelled")
        else:
            self.ledger.move(job.id, ("running",), "paused" if wish == "pause" else "queued")

    def _ended(self, job: Job, state: State, **changes: Any) -> None:
        """Record how a job ended; on a full disk as soon as there is room for that."""
        while True:
            try:
                self.ledger.move(job.id, ("running",), state, **changes)
            except NoSpace:
                if self.over:  # it is begun again by the next server
                    return
                time.sleep(1)
            else:
                return


def _forget_pictures(folder: Path) -> None:
    """Remove files of a lost attempt at a generation, also half-written; previews stay, as events name them."""
    for path in (*folder.glob("*.png"), *folder.glob(".*.png.*")):
        if not path.name.startswith("preview-"):
            path.unlink(missing_ok=True)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send output and errors of this process, its libraries included, to a file inside the `with`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    before = [os.dup(1), os.dup(2)]
    with path.open("a", encoding="utf-8") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def worker(setup: str, record: Record | None = None) -> Worker:
    """Return a worker from the settings of the server, in the server's folder.

    Args:
        setup: as `studio.jobs.local_engine.setup_of` gives it.
        record: of all jobs; by default the file in the folder.
    """
    about = json.loads(setup)
    models, upscalers = (tuple(map(Path, about[name])) for name in ("models", "upscalers"))
    places = Places(
        Path(about["folder"]), about["bases"], models=models, upscalers=upscalers, captioner=about["captioner"]
    )
    os.chdir(places.folder)
    return Worker(
        places, DrawingMachine.model_validate(about["machine"]), record or Ledger(places.folder / "jobs.sqlite")
    )


def _beat(path: Path) -> None:
    """Record a sign of life once a second until the process ends."""
    while True:
        with suppress(OSError):
            path.touch(mode=0o600)
        time.sleep(1)


def main(arguments: list[str]) -> int:
    """Do the jobs whose ids come on standard input, until it ends."""
    one = worker(arguments[0])
    threading.Thread(target=_beat, args=(one.places.folder / f"{BEAT}-{os.getpid()}",), daemon=True).start()
    one.warm()
    for line in sys.stdin:
        one.run(line.strip())
        if one.over:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
