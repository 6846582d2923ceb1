"""Base models from the hub: asked for here, fetched by the process that works, into the server's folder of models."""

from __future__ import annotations

import re
import threading

from pipelines.errors import ConfigError, Conflict
from studio.jobs.specs import Places
from studio.jobs.store import LIVE, Job, Ledger

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""An owner and a model, as the hub spells them."""


class Downloads:
    """Orders downloads.

    Args:
        ledger: the record.
        places: folders of the server.
        allowed: whether the server was started with `--download`.
    """

    def __init__(self, ledger: Ledger, places: Places, allowed: bool) -> None:
        self.ledger, self.places, self.allowed = ledger, places, allowed
        self._asking = threading.Lock()

    def submit(self, model: str, key: str | None = None) -> Job:
        """Order a base model by its id on the hub.

        Args:
            model: for example `stable-diffusion-v1-5/stable-diffusion-v1-5`.
            key: asking again with the same key gives the same job.

        Raises:
            ConfigError: if the server may not download, or that is no id.
            Conflict: if it is there, or being downloaded.
        """
        if not self.allowed:
            raise ConfigError(
                "This server downloads nothing.",
                "Put the model into its folder of models, or start it with studio serve --download.",
            )
        model = require_id(model)
        with self._asking:
            return self._added(model, key)

    def _added(self, model: str, key: str | None) -> Job:
        name = folder_of(model)
        if key is None or self.ledger.keyed(key) is None:
            if name in self.places.catalogue or (self.places.models[0] / name).exists():
                raise Conflict(f"{name} is there already.", "Choose it, or take its folder away first.")
            for job in self.ledger.list("download", LIVE, 1000):
                if folder_of(job.spec["model"]) == name:
                    raise Conflict(f"{model} is being downloaded.", f"Wait for the job {job.id}, or cancel it.")
        return self.ledger.add("download", {"model": model}, key)


def require_id(text: str) -> str:
    """Return the id of a model without spaces around it.

    Raises:
        ConfigError: if it is none.
    """
    model = text.strip()
    if ID.fullmatch(model) is None or ".." in model or "--" in model:
        raise ConfigError(f"{model!r:.80} is no id of a model on the hub.", "It is OWNER/NAME, as on its page.")
    return model


def folder_of(model: str) -> str:
    """Return the name of the folder that a model of the hub gets.

    >>> folder_of("owner/my-model")
    'my-model'
    """
    return model.rpartition("/")[2]
