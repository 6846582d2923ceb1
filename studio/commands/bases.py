"""`studio bases`: base models on the command line. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pipelines.errors import ConfigError
from studio.jobs.downloads import folder_of, require_id
from studio.library.bases import FOLDER, Bases, lines

app = App(name="bases", help="List base models, and get them.", help_format="plaintext")

Models = Annotated[tuple[Path, ...], Parameter(name="--models", negative="")]


@app.command(name="list")
def list_(*, models: Models = (FOLDER,)) -> None:
    """List pocket and the base models of folders, with family, size, memory and licence; no weights are loaded.

    Parameters
    ----------
    models
        A folder with bases in it: folders in the diffusers layout and .safetensors checkpoints. May be repeated.
    """
    for line in lines(Bases({"pocket": "pocket"}, models).found()):
        print(line)


@app.command
def fetch(model: str, *, models: Annotated[Path, Parameter(name="--models")] = FOLDER, download: bool = False) -> None:
    """Download a base model from the hub into a folder of models; what was interrupted goes on.

    Parameters
    ----------
    model
        Its id on the hub: OWNER/NAME.
    models
        The folder it is put into.
    download
        Allow fetching it from the network.
    """
    model = require_id(model)
    if not download:
        raise ConfigError(f"{model} would be fetched from the network.", "Say --download to do it.")
    if (models / folder_of(model)).exists():
        raise ConfigError(
            f"{models / folder_of(model)} is there already.", "Use it with --base, or take it away first."
        )
    from pipelines.models import hub
    from studio.work.progress import Progress

    models.mkdir(parents=True, exist_ok=True)
    print(hub.fetch(model, models / folder_of(model), on_event=Progress("fetch")))
