"""The page that repaints a part of a picture, with any concept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from pipelines.errors import RequestError, StudioError
from pipelines.request.request import Inpaint
from studio.jobs.jobs import Jobs
from studio.web.components import concept_chips, mask_painter
from studio.web.forms import Form
from studio.web.pages.generate import INSERT, chips_of, concepts_used
from studio.web.panels.answer import Answer
from studio.web.panels.comparing import picture_of
from studio.web.panels.following import told
from studio.web.panels.painted import SHOWN, decoded, fitted, png
from studio.web.panels.watching import picture_uri

LABELS = {
    "strength": "Strength of the change",
    "grow": "Widen by",
    "feather": "Fade over",
    "only_masked": "Generate only around the mask, at full size",
    "padding": "Surroundings",
}
EMPTY = "Drop a picture above, use the example, or choose “Edit this picture” beside one that you generated."
EXAMPLE = Path(__file__).parents[2] / "examples" / "wolf" / "1.png"


class EditPage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs, base: gr.Dropdown) -> None:
        self.jobs, self.base = jobs, base
        with gr.Row(equal_height=False, elem_id="editing"):
            with gr.Column(scale=5, min_width=320):
                self._question()
            with gr.Column(scale=4, min_width=320):
                self.answer = Answer(jobs, "edit", self.go, ("Go on with this picture",))
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
        )
        self.chips = concept_chips(elem_id="edit-chips")
        with gr.Row():
            self.count = gr.Slider(1, 16, value=4, step=1, label="Pictures", min_width=150, buttons=[])
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=110)
        with gr.Accordion("More settings", open=False):
            self.form = Form(Inpaint, LABELS)
        self.go = gr.Button("Repaint", variant="primary", elem_id="edit-go")

    def _wire(self) -> None:
        asked = [self.base, self.painter, self.prompt, self.chips, self.seed, self.count, *self.form.components]
        self.answer.wire(self.submit, asked)
        self.chips.input(None, [self.chips, self.prompt], self.prompt, js=INSERT)
        self.file.upload(self.take_file, self.file, [self.painter, self.file], api_visibility="private")
        self.example.click(self.take_example, None, [self.painter, self.prompt], api_visibility="private")
        self.answer.uses[0].click(
            self.take_result, [self.answer.job, self.answer.chosen], self.painter, api_visibility="private"
        )

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
        on = {str(chip.get("id")): float(chip.get("strength", 1.0)) for chip in chips or () if chip.get("on")}
        return chips_of(self.jobs, base, list(on), on)

    def submit(
        self,
        base: str,
        painted: Mapping[str, Any] | None,
        prompt: str,
        concepts: list[dict[str, Any]],
        seed: float,
        count: float,
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
            mask = self.jobs.pictures.add(png(fitted(decoded(str(painted.get("mask") or "")), size)), "the mask")
            fields = {
                "prompt": prompt or "",
                "concepts": concepts_used(concepts, prompt or ""),
                "inpaint": {"image": picture, "mask": mask, **self.form.given(more)},
                "seed": int(seed or 0),
                "count": int(count or 1),
            }
            return self.jobs.submit_generation(fields, base).id
        except StudioError as error:
            raise told(error) from None
