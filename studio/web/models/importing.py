"""A place to drop files of other programs, which become concepts of the library."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr

from pipelines.errors import StudioError
from studio.jobs.jobs import Jobs
from studio.web.models.commands import concept_command
from studio.web.panels.following import said
from studio.web.panels.watching import for_people

TYPES = (".safetensors", ".pt", ".bin", ".png")


class Importing:
    """The place; made inside `gr.Blocks`. What it takes in is told, and errors leave the page as it was.

    Args:
        jobs: of the server.
        label: for people.
        name: of the component.
    """

    def __init__(self, jobs: Jobs, label: str, name: str) -> None:
        self.jobs = jobs
        self.file = gr.File(label=label, file_types=list(TYPES), height=100, elem_id=name, elem_classes="drop")
        end = "import_concept" if name == "import" else name.replace("-", "_")
        self.taken = self.file.upload(self.ask, self.file, self.file, api_name=end)
        """What follows an import."""

    async def ask(self, path: str | None) -> None:
        """Import an uploaded file into the library."""
        if path is None:
            return
        try:
            # Only the process that reads it knows its name, which may be that of a training.
            with TemporaryDirectory() as folder:
                # Whole weights and IA3 are read beside their base; others need none.
                bases = [word for base in self.jobs.bases.values() for word in ("--base", base)]
                read = await concept_command("import", path, "--library", folder, *bases)
                added = await asyncio.to_thread(self.jobs.add_copy, Path(read))
        except StudioError as error:  # the place to drop files must stay as it is
            gr.Warning(said(for_people(error.message, error.hint)))
            return
        gr.Info(said(f"{added.stem} is in the library of concepts now."))
