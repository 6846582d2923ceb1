"""The page of visual prompts: a picture before and after a change, and another to be changed alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.errors import RequestError, StudioError
from pipelines.request.request import InContext, Request
from studio.jobs.jobs import Jobs
from studio.web.components import fold, plan
from studio.web.forms import Form
from studio.web.panels.answer import AnswerPanel
from studio.web.panels.following import told
from studio.web.panels.planning import Plan

LABELS = {"direction": "Direction of the change", "ensemble": "Arrangements averaged", "engine": "Engine"}
EXAMPLE = Path(__file__).parents[2] / "examples" / "grey"
ANSWER = "The changed picture appears here."
PARTS = ("before", "after", "query")


class ExamplePage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs, base: gr.Dropdown) -> None:
        self.jobs, self.base = jobs, base
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                self._question()
            with gr.Column(scale=4, min_width=300):
                self.answer = AnswerPanel(jobs, "example", self.go, ("Do the same to this picture",), ANSWER)
        self._wire()

    def _question(self) -> None:
        gr.HTML('<p class="hint">Show what is to be done by one example, then give another picture.</p>')
        with gr.Row():
            self.before = self._picture("Before", "before")
            self.after = self._picture("After", "after")
        with gr.Row():
            self.query = self._picture("Do the same to this", "query")
            with gr.Column(min_width=140):
                self.example = gr.Button("Use the example", size="sm", elem_id="example-pair")
                self.hint = gr.Textbox(label="The change in words (optional)", lines=2)
        self.plan = plan(count=1, elem_id="example-plan")
        with fold("More settings", "example-settings"), gr.Row(elem_classes="dials"):
            self.form = Form(InContext, LABELS, "example")
        self.go = gr.Button("Do the same", variant="primary", elem_id="example-go", elem_classes="go")

    @staticmethod
    def _picture(label: str, name: str) -> gr.Image:
        return gr.Image(
            label=label,
            type="filepath",
            sources=["upload", "clipboard"],
            height=220,
            min_width=140,
            buttons=[],
            elem_id=f"example-{name}",
            elem_classes="pair",
        )

    def _wire(self) -> None:
        pictures = [self.before, self.after, self.query]
        self.answer.wire(self.submit, [self.base, *pictures, self.hint, self.plan, *self.form.components])
        self.example.click(
            lambda: [str(EXAMPLE / f"{part}.png") for part in PARTS], None, pictures, api_visibility="private"
        )
        self.answer.used(0, self.take_result, [self.answer.job, self.answer.chosen], [self.query])

    def follow_on(self, page: gr.Blocks) -> None:
        """Show the job that the address names when the page is opened, with the form as it was asked."""
        self.answer.follow_on(page)
        asked = [self.before, self.after, self.query, self.hint, self.plan, *self.form.components]
        page.load(self.restored, None, asked, api_visibility="private")

    def restored(self, request: gr.Request) -> list[Any]:
        """Return pictures, words and settings of the job that the address names, if they still exist."""
        nothing = [gr.skip()] * (5 + len(self.form.components))
        if not (job_id := self.answer.restore(request)):
            return nothing
        try:
            asked = Request.read(self.jobs.get(job_id).spec["request"])
            if (shown := asked.in_context) is None or len(shown.examples) != 1:
                return nothing
            pair = shown.examples[0]
            pictures = [str(self.jobs.pictures.path(one)) for one in (pair.before, pair.after, shown.query)]
        except StudioError:
            return nothing
        planned = {"count": asked.count, "size": "", "seed": asked.seed, "keep": False}
        return [*pictures, asked.prompt, planned, *self.form.shown(shown)]

    def take_result(self, job_id: str, index: int) -> str:
        """Return a picture of a job as the next query."""
        try:
            return str(self.jobs.results(job_id)[int(index)])
        except (StudioError, IndexError):
            raise gr.Error("That picture is no longer there.", print_exception=False) from None

    def submit(
        self, base: str, before: str | None, after: str | None, query: str | None, hint: str, plan: Any, *more: Any
    ) -> str:
        """Queue the answer; return the id of the job."""
        try:
            given = dict(zip(PARTS, (before, after, query), strict=True))
            if missing := [part for part, path in given.items() if not path]:
                raise RequestError(f"The picture {missing[0]!r} is missing.", "Give all three, or use the example.")
            ids = {part: self.jobs.pictures.add(Path(str(path)).read_bytes(), part) for part, path in given.items()}
            asked = {
                "examples": [{"before": ids["before"], "after": ids["after"]}],
                "query": ids["query"],
                **self.form.given(more),
            }
            planned = Plan.read(plan)
            fields = {"prompt": hint or "", "in_context": asked, "seed": planned.seed, "count": planned.count}
            return self.jobs.submit_generation(fields, base).id
        except StudioError as error:
            raise told(error) from None
