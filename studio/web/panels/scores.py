"""The panel of a measurement: figures of each step beside the initial word, and the proposed step."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from pipelines.errors import ConfigError, StudioError
from studio.jobs.jobs import Jobs
from studio.web.panels.following import Following, shown, told
from studio.web.panels.watching import JobMessages, curve, picture_uri, progress, report
from trainers.loop.candidates import kept_step

SHEET = 1100  # pixels of the longer side as it is shown


MEANINGS = {
    "likeness": "how like your pictures the thing is, at most 1",
    "alignment": "how well pictures fit the prompt said with “{word}”, at most 1",
    "error": "of predicting your pictures, less is better",
    "class_kept": "share of its alignment that “{word}” keeps",
    "both_there": "share of pictures with both things, of pairs never shown",
}
"""Meaning of each figure, for people."""


def figures(said: Mapping[str, Any]) -> str:
    """Return HTML of a measurement: a row for each step, and curves of the figures."""
    rows = [(f"“{said['word']}”, before", said["baseline"])]
    rows += [(f"step {row['step']}", row["figures"]) for row in said["rows"]]
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    best = f"step {said['step']}"
    lines = "".join(
        f'<tr class="{"proposed" if name == best else ""}"><th>{escape(name)}</th>'
        + "".join(f"<td>{values[one]:.3f}</td>" if one in values else "<td></td>" for one in names)
        + "</tr>"
        for name, values in rows
    )
    drawn = "".join(
        curve(
            [(row["step"], row["figures"][name]) for row in said["rows"] if name in row["figures"]],
            name.replace("_", " "),
        )
        for name in names
    )
    meanings = {name: MEANINGS[name].replace("{word}", said["word"]) for name in names if name in MEANINGS}
    told_ = "<br>".join(
        f"<b>{escape(name.replace('_', ' '))}</b>: <span>{escape(one)}</span>" for name, one in meanings.items()
    )
    return (
        f'<details><summary>The figures</summary><p class="hint">{told_}</p>'
        f'<div class="scroll"><table class="scores"><tr><th></th>{head}</tr>{lines}</table></div>'
        f'<div class="curves">{drawn}</div></details>'
    )


class ScoresPanel(Following):
    """The measurement of one concept; made inside `gr.Blocks`.

    Args:
        jobs: of the server.
        name: in the address of the page and in the names of components.
    """

    def __init__(self, jobs: Jobs, name: str) -> None:
        super().__init__(jobs, name, "score")
        self.progress = gr.HTML(elem_id=f"{name}-progress", js_on_load=None)
        self.stop = gr.Button("Cancel measuring", visible="hidden", size="sm", elem_id=f"{name}-stop")
        self.reason = gr.HTML(elem_id=f"{name}-reason", js_on_load=None)
        self.figures = gr.HTML(elem_id=f"{name}-figures", js_on_load=None)
        self.step = gr.Radio([], label="Keep the concept as it was after", visible="hidden", elem_id=f"{name}-step")
        self.take = gr.Button("Keep it so", visible="hidden", size="sm", elem_id=f"{name}-take")
        self.stop.click(self.cancel, self.job, api_name=f"cancel_{name}")
        kept = [self.reason, self.take, self.figures, self.step]
        self.take.click(self.keep, [self.job, self.step], kept, api_name=f"keep_{name}")

    def said(self) -> list[Any]:
        """The components that show progress, figures and buttons."""
        return [self.progress, self.stop, self.reason, self.take, self.figures, self.step]

    def nothing(self) -> tuple[Any, ...]:
        """Return an empty panel."""
        return "", shown(False), "", shown(False), "", shown(False)

    def seen(self, seen: JobMessages) -> tuple[Any, ...]:
        """Return the state of a measurement."""
        latest = [] if seen.job.ended else self.jobs.previews(seen.job.id)[-1:]
        heading = report(seen.notes)
        if seen.job.state != "done":
            line = progress(seen, picture_uri(latest[0][1]) if latest else "")
            heading = f'<p class="hint">Measuring what was learned, step by step.</p>{line}'
        return heading, shown(not seen.job.ended), *self._result(seen.job.id)

    def _result(self, job_id: str) -> tuple[str, Any, str, Any]:
        """Return the reason, whether steps can be kept, pictures and figures, and the steps."""
        events = self.jobs.events(job_id, limit=100_000, kinds=("scores",))
        if not events:
            return "", shown(False), "", shown(False)
        said = events[-1].data
        try:
            kept = kept_step(self.jobs.places.concept(self.jobs.get(job_id).spec["concept"]))
        except StudioError:  # it has been deleted or renamed since
            kept = None
        now = f" The concept is that of step {kept} now." if kept is not None else ""
        reason = f'<p class="learned">Proposed: <b>step {said["step"]}</b>. {escape(said["reason"] + now)}</p>'
        sheet = "".join(
            f'<img class="sheet" src="{picture_uri(path, SHEET)}" alt="The same prompts and seeds for every step">'
            for path in self.jobs.results(job_id)
        )
        steps = [(f"step {row['step']}", row["step"]) for row in said["rows"]] if kept is not None else []
        several = len(steps) > 1
        choice = gr.update(choices=steps, value=said["step"], visible=True if several else "hidden")
        return reason, shown(several), sheet + figures(said), choice

    def keep(self, job_id: str, step: float | None) -> tuple[str, Any, str, Any]:
        """Replace the concept by the candidate of a step; the others stay."""
        try:
            if step is None:
                raise ConfigError("No step is chosen.", "Choose one first.")
            self.jobs.take_step(self.jobs.get(job_id).spec["concept"], int(step))
            return self._result(job_id)
        except StudioError as error:
            raise told(error) from None
