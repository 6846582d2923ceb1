"""The panel of results: progress while a job makes pictures, the pictures, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.errors import StudioError
from pipelines.pictures.metadata import read_made
from studio.jobs.jobs import Job, Jobs
from studio.web.panels.comparing import about_sheet, captions, is_sheet
from studio.web.panels.following import Following, shown, told
from studio.web.panels.watching import Seen, facts, picture_uri, progress


def told_of(path: Path) -> str:
    """Return HTML of everything a picture says about itself."""
    made = read_made(path)
    rows: dict[str, Any] = {}
    for name, value in made.request.model_dump(exclude={"concepts"}).items():
        if isinstance(value, dict):
            rows |= {f"{name} {inner}": one for inner, one in value.items()}
        else:
            rows[name] = value
    if boxes := rows.pop("boxes", ()):
        rows["boxes"] = "; ".join(f"{one['phrase']} at {', '.join(f'{x:g}' for x in one['box'])}" for one in boxes)
    rows["concepts"] = ", ".join(f"{use.source} at {use.strength:g}" for use in made.request.concepts)
    rows |= {"seed": made.request.seed + made.index, "base": f"{made.base} ({made.fingerprint})"}
    return facts([(name.replace("_", " "), value) for name, value in rows.items() if value not in (None, "", (), [])])


def told_in(job: Job, path: Path) -> str:
    """Return HTML about a picture of a job."""
    return about_sheet(job) if is_sheet(job, path) else told_of(path)


class Answer(Following):
    """A panel with the pictures of one job; made inside `gr.Blocks`.

    Args:
        jobs: of the server.
        name: of the page, in the address and in the names of components.
        go: the button that asks.
        uses: actions for the chosen picture; a button each.
    """

    def __init__(self, jobs: Jobs, name: str, go: gr.Button, uses: Sequence[str]) -> None:
        super().__init__(jobs, name, "generation")
        self.go = go
        self.progress = gr.HTML(elem_id=f"{name}-progress", js_on_load=None)
        self.stop = gr.Button("Cancel", elem_id=f"{name}-stop", visible="hidden", size="sm")
        self.gallery = gr.Gallery(
            label="Pictures",
            show_label=False,
            columns=2,
            object_fit="contain",
            height="auto",
            buttons=["download", "download_all", "fullscreen"],
            elem_id=f"{name}-gallery",
            elem_classes="pictures",
        )
        self.chosen = gr.State(0)
        with gr.Accordion("How it was made", open=False, visible=False) as self.made:
            self.facts = gr.HTML(js_on_load=None)
        with gr.Row(elem_classes="examples"):
            self.uses = [
                gr.Button(use, size="sm", min_width=120, visible="hidden", elem_id=f"{name}-use-{number}")
                for number, use in enumerate(uses)
            ]

    def wire(self, submit: Callable[..., str], asked: Sequence[Any]) -> None:
        """Submit with `submit`, which returns the id of a job, when the button is clicked."""
        self.submitted(self.go.click(submit, list(asked), self.job, api_name=self.name))
        self.stop.click(self.cancel, self.job, api_name=f"cancel_{self.name}")
        self.gallery.select(self.look, self.job, [self.chosen, self.facts], api_visibility="private")

    def said(self) -> Sequence[Any]:
        """The components that show progress, pictures, buttons, and settings."""
        return [self.progress, self.gallery, self.go, self.stop, self.made, self.facts, self.chosen, *self.uses]

    def nothing(self) -> tuple[Any, ...]:
        """Return an empty panel."""
        return ("", [], *self._buttons(None), "", 0, *(shown(False) for _ in self.uses))

    def seen(self, seen: Seen) -> tuple[Any, ...]:
        """Return the pictures of a job, or the newest preview while it runs."""
        identity = seen.job.id
        results = self.jobs.results(identity) if seen.job.ended else []
        pictures = list(zip(map(str, results), captions(seen.job, results), strict=True))
        latest = [] if seen.job.ended else self.jobs.previews(identity)[-1:]
        preview = picture_uri(latest[0][1]) if latest else ""
        facts_of_first = told_in(seen.job, results[0]) if results else ""
        uses = [shown(bool(results)) for _ in self.uses]
        return (progress(seen, preview), pictures, *self._buttons(seen), facts_of_first, 0, *uses)

    @staticmethod
    def _buttons(seen: Seen | None) -> tuple[Any, Any, Any]:
        """Return updates of the buttons to start and cancel, and of the facts."""
        busy = seen is not None and not seen.job.ended
        done = seen is not None and seen.job.state == "done"
        return gr.update(interactive=not busy), shown(busy), gr.update(visible=done)

    def cancel(self, job_id: str) -> None:
        """Stop a job."""
        try:
            self.jobs.cancel(job_id)
        except StudioError as error:
            raise told(error) from None

    def look(self, job_id: str, chosen: gr.SelectData) -> tuple[int, str]:
        """Return the facts of the picture that was clicked."""
        try:
            results = self.jobs.results(job_id)
            index = min(int(chosen.index), len(results) - 1)
            return index, told_in(self.jobs.get(job_id), results[index])
        except StudioError as error:
            raise told(error) from None
