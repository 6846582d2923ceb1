"""Things that must not happen at once: a concept that one job writes, and another, or a person, changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import Conflict, StudioError
from pipelines.files import stem_of
from studio.jobs.specs import Places, training_of_job
from studio.jobs.store import LIVE, Kind, Ledger


class Clashes:
    """Refuses what would clash with jobs that have not ended.

    Args:
        ledger: the record.
        places: folders of the server.
    """

    def __init__(self, ledger: Ledger, places: Places) -> None:
        self.ledger, self.places = ledger, places

    def require_free(self, outputs: Sequence[Path], key: str | None) -> None:
        """Refuse results that are there, or are going to be; a job that is asked for again is let through.

        Raises:
            Conflict: with the name.
        """
        if len(set(outputs)) < len(outputs):
            raise Conflict(f"Two subjects would be written to {outputs[0].name}.", "Choose other tokens.")
        if key is not None and self.ledger.keyed(key) is not None:
            return
        for path in (path for path in outputs if path.exists()):
            concept = path.parent == self.places.learned
            raise Conflict(
                f"{'The concept ' if concept else ''}{stem_of(path)} is there already.",
                f"Choose another {'token, or rename or delete it' if concept else 'name'}.",
            )
        self.require_unlearned([path.name for path in outputs])

    def require_unneeded(self, dataset: str) -> None:
        """Refuse to remove pictures that a job still needs.

        Raises:
            Unknown: if there are none.
            Conflict: with the job.
        """
        self.places.datasets.folder(dataset)
        needing: tuple[Kind, ...] = ("training", "score", "caption")
        for job in (one for kind in needing for one in self.ledger.list(kind, LIVE, 1000)):
            if dataset == job.spec["dataset"] or dataset in json.dumps(job.spec.get("settings")):
                raise Conflict(f"The {job.kind} {job.id} needs these pictures.", "Cancel it first.")

    def require_idle(self, concept: str) -> None:
        """Refuse to change a concept that a job is going to write.

        Raises:
            Conflict: with the job.
        """
        for job in self.ledger.list("score", LIVE, 1000):
            if job.spec["concept"] == concept:
                raise Conflict(f"{concept} is being measured.", f"Wait, or cancel the job {job.id}.")
        self.require_unlearned([f"{concept}.safetensors"])

    def require_unlearned(self, names: Sequence[str]) -> None:
        """Refuse names of files that a training is going to write.

        Raises:
            Conflict: with the training.
        """
        for job in self.ledger.list("training", LIVE, 1000):
            try:
                theirs = [] if job.spec["dry_run"] else training_of_job(job, self.places).outputs
            except StudioError:  # what it needs has been deleted; it will say so itself
                continue
            if taken := [path.name for path in theirs if path.name in names]:
                raise Conflict(
                    f"{taken[0].removesuffix('.safetensors')} is being learned already.",
                    f"Wait for the job {job.id}, cancel it, or choose another token or name.",
                )
