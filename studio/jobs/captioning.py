"""Captions of training pictures, ordered here and written by the process that works."""

from __future__ import annotations

from pipelines.captions.wording import Wording
from pipelines.errors import DataError
from studio.jobs.specs import Places
from studio.jobs.store import Job, Ledger


class Captioning:
    """Orders captions.

    Args:
        ledger: the record.
        places: folders of the server.
    """

    def __init__(self, ledger: Ledger, places: Places) -> None:
        self.ledger, self.places = ledger, places

    def submit(self, dataset: str, wording: Wording, key: str | None = None) -> Job:
        """Order captions of the pictures that have none.

        Args:
            dataset: id of the pictures.
            wording: of the captions.
            key: asking again with the same key gives the same job.

        Raises:
            Unknown: if there are no such pictures.
            DataError: if all of them have a caption, or there are none.
        """
        listed = self.places.datasets.entries(dataset)
        if key is None or self.ledger.keyed(key) is None:
            if not listed:
                raise DataError("There are no pictures yet.", "Add some first.")
            if all(one.caption for one in listed):
                raise DataError("All pictures have a caption.", "Empty those that are to be written anew.")
        asked = {"dataset": dataset, **wording.model_dump(mode="json", exclude_defaults=True)}
        return self.ledger.add("caption", asked, key)


def wording_of(job: Job) -> Wording:
    """Return the wording that captions were ordered in."""
    return Wording.model_validate({name: one for name, one in job.spec.items() if name != "dataset"})
