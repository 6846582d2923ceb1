"""The page that repaints a part of a picture, with any concept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from pipelines.errors import RequestError, StudioError
from pipelines.request.request import Inpaint, Request
from studio.jobs.jobs import Jobs
from studio.web.components import concept_chips, fold, mask_painter, plan
from studio.web.forms import Form
from studio.web.panels.answer import AnswerPanel
from studio.web.panels.chips import INSERT, chips_of, concepts_used, switched_on, wire_search
from studio.web.panels.comparing import picture_of
from studio.web.panels.following import told
from studio.web.panels.painted import SHOWN, decoded, fitted, png
from studio.web.panels.planning import Plan, seeded
from studio.web.panels.watching import picture_uri

LABELS = {
    "name": "What is repainted, by its name",
    "strength": "Strength of the change",
    "grow": "Widen by",
    "feather": "Fade over",
    "only_masked": "Generate only around the mask, at full size",
    "padding": "Surroundings",
}
EMPTY = "Drop a picture above, use the example, or choose “Edit this picture” beside one that you generated."
ANSWER = "The repainted pictures appear here, to be compared with the one before."
EXAMPLE = Path(__file__).parents[2] / "examples" / "wolf" / "1.png"


class EditPage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs, base: gr.Dropdown) -> None:
        self.jobs, self.base = jobs, base
        with gr.Row(equal_height=False, elem_id="editing"):
            with gr.Column(scale=5, min_width=300):
                self._question()
            with gr.Column(scale=4, min_width=300):
                self.answer = AnswerPanel(jobs, "edit", self.go, ("Go on with this picture",), ANSWER)
        self._wire()

    def _question(self) -> None:
        self.file = gr.File(
            label="Drop a picture", file_types=["image"], height=96, elem_id="edit-file", elem_classes="drop"
        )
        self.example = gr.Button("Use the example: a wolf", size="sm", elem_id="edit-example")
        self.painter = mask_painter(EMPTY, elem_id="painter")
        self.prompt = gr.Textbox(
            label="Description of the new picture",
            lines=2,
            placeholder="a cat on a pink background",
            elem_id="edit-prompt",
            elem_classes="completing",
        )
        self.chips = concept_chips(elem_id="edit-chips")
        self.plan = plan(elem_id="edit-plan")
        with fold("More settings", "edit-settings"), gr.Row(elem_classes="dials"):
            self.form = Form(Inpaint, LABELS, "edit")
        self.go = gr.Button("Repaint", variant="primary", elem_id="edit-go", elem_classes="go")

    def _wire(self) -> None:
        asked = [self.base, self.painter, self.prompt, self.chips, self.plan, *self.form.components]
        self.answer.wire(self.submit, asked)
        self.answer.asking.success(self.drawn, [self.answer.job, self.plan], self.plan, api_visibility="private")
        self.chips.input(None, [self.chips, self.prompt], self.prompt, js=INSERT)
        wire_search(self.jobs, self.base, self.chips)
        self.file.upload(self.take_file, self.file, [self.painter, self.file], api_visibility="private")
        self.example.click(self.take_example, None, [self.painter, self.prompt], api_visibility="private")
        self.answer.used(0, self.take_result, [self.answer.job, self.answer.chosen], [self.painter])

    def follow_on(self, page: gr.Blocks) -> None:
        """Show the job that the address names when the page is opened, with the form as it was asked."""
        self.answer.follow_on(page)
        asked = [self.painter, self.prompt, self.chips, self.plan, *self.form.components]
        page.load(self.restored, self.base, asked, api_visibility="private")

    def restored(self, base: str, request: gr.Request) -> list[Any]:
        """Return picture, marks, prompt and settings of the job that the address names, if they still exist."""
        nothing = [gr.skip()] * (4 + len(self.form.components))
        if not (job_id := self.answer.restore(request)):
            return nothing
        try:
            asked = Request.read(self.jobs.get(job_id).spec["request"])
            if (painted := asked.inpaint) is None:
                return nothing
            picture = picture_uri(self.jobs.pictures.path(painted.image), SHOWN)
            mask = picture_uri(self.jobs.pictures.path(painted.mask), SHOWN) if painted.mask else ""
        except StudioError:
            return nothing
        strengths = {Path(use.source).stem: use.strength for use in asked.concepts}
        chips = chips_of(self.jobs, base, list(strengths), strengths)
        easel = {"id": painted.image, "picture": picture, "mask": mask}
        planned = {"count": asked.count, "size": "", "seed": asked.seed, "keep": False}
        return [easel, asked.prompt, chips, planned, *self.form.shown(painted)]

    def drawn(self, job_id: str, plan: Any) -> dict[str, Any]:
        """Return the small fields with the seed that was drawn for a job."""
        keep = bool(plan.get("keep")) if isinstance(plan, Mapping) else False
        return seeded(plan, int(self.jobs.get(job_id).spec["request"].get("seed", 0)), keep)

    def take(self, path: Path) -> dict[str, str]:
        """Return a picture to paint on."""
        try:
            identity = self.jobs.pictures.add(path.read_bytes(), path.name)
        except StudioError as error:
            raise told(error) from None
        return {"id": identity, "picture": picture_uri(self.jobs.pictures.path(identity), SHOWN), "mask": ""}

    def take_file(self, path: str | None) -> tuple[Any, None]:
        """Return a picture that was dropped."""
        return (gr.skip() if path is None else self.take(Path(path))), None

    def take_example(self) -> tuple[Any, str]:
        """Return the picture of a wolf, and a prompt for it."""
        return self.take(EXAMPLE), "a cat on a pink background"

    def take_result(self, job_id: str, index: int) -> dict[str, str]:
        """Return a picture of a job."""
        try:
            return self.take(picture_of(self.jobs, job_id, int(index)))
        except StudioError as error:
            raise told(error) from None

    def refresh(self, base: str, chips: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the chips as the library is now, those switched on as they were."""
        on = switched_on(chips)
        return chips_of(self.jobs, base, list(on), on)

    def submit(
        self,
        base: str,
        painted: Mapping[str, Any] | None,
        prompt: str,
        concepts: list[dict[str, Any]],
        plan: dict[str, Any],
        *more: Any,
    ) -> str:
        """Queue the repainting; return the id of the job."""
        painted = painted if isinstance(painted, Mapping) else {}
        try:
            if not painted.get("id"):
                raise RequestError("There is no picture yet.", "Drop one, or use the example.")
            picture = str(painted["id"])
            with Image.open(self.jobs.pictures.path(picture)) as stored:
                size = stored.size
            given = self.form.given(more)
            if not given.get("name"):
                drawn = fitted(decoded(str(painted.get("mask") or "")), size)
                given["mask"] = self.jobs.pictures.add(png(drawn), "the mask")
            planned = Plan.read(plan)
            fields = {
                "prompt": prompt or "",
                "concepts": concepts_used(self.jobs, concepts, prompt or ""),
                "inpaint": {"image": picture, **given},
                "seed": planned.seed,
                "count": planned.count,
            }
            return self.jobs.submit_generation(fields, base).id
        except StudioError as error:
            raise told(error) from None
