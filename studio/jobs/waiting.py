"""The jobs that are at work or wait, in their order, and another place for one that waits."""

from __future__ import annotations

from pipelines.errors import Conflict
from studio.jobs.store import Job, Ledger

MOST = 1000
"""Most jobs that are looked at."""


class Waiting:
    """The work that is still to be done.

    Args:
        ledger: the record.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def list(self) -> list[Job]:
        """Return running jobs, waiting ones in their order, and paused ones."""
        running, paused = (self.ledger.list(states=(state,), limit=MOST) for state in ("running", "paused"))
        return [*reversed(running), *self.ledger.queue(), *reversed(paused)]

    def places(self) -> dict[str, tuple[int, float, int]]:
        """Return what these jobs are sorted by: by id kind of state, rank, number in the record."""
        return self.ledger.places()

    def ahead(self, job: str) -> list[Job]:
        """Return the jobs that a waiting one waits for, in their order; none if it does not wait."""
        queue = self.ledger.queue()
        before = next((queue[:place] for place, one in enumerate(queue) if one.id == job), None)
        return [] if before is None else [*reversed(self.ledger.list(states=("running",), limit=MOST)), *before]

    def put(self, job: str, first: bool) -> Job:
        """Put a waiting job before or behind all others that wait.

        Raises:
            Unknown: if there is no such job.
            Conflict: if it does not wait.
        """
        self.ledger.get(job)
        if not self.ledger.put(job, first):
            raise Conflict(f"The job is {self.ledger.get(job).state}.", "Only what waits can be put elsewhere.")
        return self.ledger.get(job)
