"""The page of generation: words, concepts and boxes in, pictures out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.concepts.card import read_card
from pipelines.concepts.compatibility import base_files
from pipelines.errors import StudioError
from pipelines.pictures.foreign_metadata import not_taken
from pipelines.pictures.metadata import Made, read_foreign, read_made
from pipelines.request.request import Request
from pipelines.request.texts import without_folders
from studio.jobs.jobs import Jobs
from studio.library import concepts
from studio.web.components import box_editor, concept_chips, records
from studio.web.forms import Form
from studio.web.panels.answer import Answer
from studio.web.panels.comparing import Comparing, picture_of
from studio.web.panels.following import said, shown, told
from studio.web.panels.watching import picture_uri

LABELS = {
    "negative_prompt": "Negative prompt",
    "guidance.scale": "Guidance scale",
    "guidance.rescale": "Guidance rescale",
    "guidance.start": "Guidance from",
    "guidance.stop": "Guidance until",
    "scheduler": "Sampler",
    "spacing": "Noise levels",
    "eta": "Eta",
    "clip_skip": "Clip skip",
    "steps": "Steps",
    "width": "Width",
    "height": "Height",
}
PRESETS: dict[str, dict[str, float]] = {
    "as the base likes it": {},
    "off": {"scale": 1.0},
    "gentle": {"scale": 1.5},
    "strict": {"scale": 4.0, "rescale": 0.7},
    "in the middle steps only": {"start": 0.2, "stop": 0.8},
}
EXAMPLES: tuple[tuple[str, str, tuple[dict[str, Any], ...]], ...] = (
    ("A fox and a house", "a fox to the left of a house on a yellow background", ()),
    ("Three in a row", "three of a penguin on a blue background", ()),
    (
        "Two boxes",
        "a cat and a pizza on a green background",
        (
            {"phrase": "a cat", "box": [0.05, 0.4, 0.5, 0.92]},
            {"phrase": "a pizza", "box": [0.55, 0.08, 0.95, 0.48]},
        ),
    ),
)
INSERT = """(chips, prompt) => {
  let text = prompt || '';
  for (const chip of chips || []) {
    const there = text.includes(chip.token);
    if (chip.on && !there) text = (text.trim() ? text.trim() + ' ' : 'a ') + chip.token;
    if (!chip.on && there) text = text.split(chip.token).join('').replace(/ +/g, ' ').trim();
  }
  return text;
}"""


def chips_of(
    jobs: Jobs, base: str, on: Sequence[str] = (), strengths: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return the library as values of `concept_chips`; `on` are ids that are switched on, if they go with the base."""
    if not jobs.learned.is_dir():
        return []
    files = base_files(jobs.bases.get(base, ""))
    return [
        {
            "id": entry.name,
            "token": entry.card.token,
            "kind": entry.card.kind,
            "picture": picture_uri(entry.path.with_suffix(".preview.png"), 64),
            "on": entry.name in on and not problem,
            "strength": (strengths or {}).get(entry.name, 1.0),
            "problem": problem,
        }
        for entry in concepts.scan(jobs.learned)
        if entry.card is not None
        for problem in [files.misfit(entry.card)]
    ]


def offered(jobs: Jobs) -> bool:
    """Return whether the example concept can be added: it exists, and is not in the library."""
    return concepts.EXAMPLE.is_file() and not (jobs.learned / concepts.EXAMPLE.name).exists()


def offer_button(jobs: Jobs) -> gr.Button:
    """Return the button that adds the example concept; made inside `gr.Blocks`."""
    there = True if offered(jobs) else "hidden"
    return gr.Button("Add the example concept: a wolf", size="sm", min_width=90, visible=there, elem_classes="offer")


def concepts_used(chips: Sequence[dict[str, Any]], *texts: str) -> list[dict[str, Any]]:
    """Return the concepts of a request: those switched on, and those whose word a text says."""
    said = "\n".join(texts)
    return [
        {"source": str(chip.get("id", "")), "strength": chip.get("strength", 1.0)}
        for chip in records(chips)
        if chip.get("on") or (chip.get("token") and chip["token"] in said)
    ]


class GeneratePage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs, base: gr.Dropdown) -> None:
        self.jobs, self.base = jobs, base
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._question()
            with gr.Column(scale=4, min_width=320):
                self.answer = Answer(jobs, "generation", self.go, ("Use these settings again", "Edit this picture"))
                self.dropped = gr.File(
                    label="Drop a picture of this or another program to use its settings",
                    file_types=[".png"],
                    height=96,
                    elem_id="dropped",
                    elem_classes="drop",
                )
        self._wire()

    def _question(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            lines=2,
            placeholder="a fox to the left of a house on a yellow background",
            elem_id="prompt",
        )
        self.chips = concept_chips(elem_id="chips")
        with gr.Row(elem_classes="examples"):
            self.examples = [gr.Button(name, size="sm", min_width=90) for name, _, _ in EXAMPLES]
            self.offer = offer_button(self.jobs)
            self.dice = gr.Button("New seed", size="sm", min_width=90, elem_id="dice")
        with gr.Accordion("Where things stand", open=True):
            self.boxes = box_editor(elem_id="boxes")
        with gr.Row():
            self.preset = gr.Dropdown(list(PRESETS), value=next(iter(PRESETS)), label="Guidance", min_width=210)
            self.count = gr.Slider(1, 16, value=4, step=1, label="Pictures", min_width=150, buttons=[])
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=110, elem_id="seed")
        with gr.Accordion("More settings", open=False):
            self.form = Form(Request, LABELS)
        self.comparing = Comparing()
        self.go = gr.Button("Generate", variant="primary", elem_id="go")

    def _wire(self) -> None:
        asked = [self.base, self.prompt, self.chips, self.boxes, self.seed, self.count, *self.form.components]
        self.answer.wire(self.submit, [*asked, *self.comparing.components])
        self.comparing.wire(self.prompt, self.seed, self.chips)
        self.dice.click(lambda: random.randrange(2**31), None, self.seed, api_visibility="private")
        self.chips.input(None, [self.chips, self.prompt], self.prompt, js=INSERT)
        self.preset.input(self.guide, self.preset, self._fields("guidance."), api_visibility="private")
        for button, (_, prompt, boxes) in zip(self.examples, EXAMPLES, strict=True):
            button.click(
                lambda prompt=prompt, boxes=boxes: (prompt, list(boxes)),
                None,
                [self.prompt, self.boxes],
                api_visibility="private",
            )
        restored = [self.prompt, self.chips, self.boxes, self.seed, self.count, *self.form.components]
        chosen = [self.base, self.answer.job, self.answer.chosen]
        reused = self.answer.uses[0].click(self.reuse, chosen, restored, api_visibility="private")
        compared = self.comparing.components
        reused.success(self.comparing.cleared, None, compared, api_visibility="private")  # one of them was chosen
        self.dropped.upload(self.reuse_dropped, [self.base, self.dropped], restored, api_visibility="private")
        size = self._fields("width", "height")
        for component in size:
            component.change(self.shape, size, self.boxes, api_visibility="private")

    def _fields(self, *starts: str) -> list[Any]:
        """Return components of the fields whose paths begin so."""
        pairs = zip(self.form.paths, self.form.components, strict=True)
        return [component for path, component in pairs if path.startswith(starts)]

    def refresh(self, base: str, chips: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
        """Return the chips as the library is now, with their switches; words for boxes; the example on offer."""
        on = {str(chip.get("id", "")): float(chip.get("strength", 1.0)) for chip in records(chips) if chip.get("on")}
        now = chips_of(self.jobs, base, list(on), on)
        return now, gr.update(choices=[chip["token"] for chip in now]), shown(offered(self.jobs))

    def add_example(self, base: str, chips: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
        """Put the example concept into the library, and switch its chip on."""
        try:
            added = self.jobs.add_example().stem
        except StudioError as error:
            raise told(error) from None
        return self.refresh(base, [*records(chips), {"id": added, "on": True}])

    def take(self, base: str, concept: str) -> tuple[Any, ...]:
        """Begin a prompt with a concept, on this page."""
        try:
            card = read_card(self.jobs.places.concept(concept))
        except StudioError as error:
            raise told(error) from None
        chips = chips_of(self.jobs, base, [concept])
        words = gr.update(choices=[chip["token"] for chip in chips])
        return gr.update(selected="generate"), card.example or f"a {card.token}", chips, words

    def take_learned(self, base: str, job_id: str) -> tuple[Any, ...]:
        """Begin a prompt with the result of a training."""
        try:
            return self.take(base, self.jobs.results(job_id)[0].stem)
        except (StudioError, IndexError):
            raise gr.Error("That concept is no longer in the library.", print_exception=False) from None

    def submit(
        self,
        base: str,
        prompt: str,
        concepts: list[dict[str, Any]],
        boxes: list[dict[str, Any]],
        seed: float,
        count: float,
        *more: Any,
    ) -> str:
        """Queue pictures, or a comparison if one is set; return the id of the job."""
        more, compared = more[: len(self.form.paths)], more[len(self.form.paths) :]
        fields = self.form.given(more) | {"prompt": prompt or "", "seed": int(seed or 0), "count": int(count or 1)}
        named = [
            {"phrase": box.get("phrase"), "box": box.get("box")}
            for box in records(boxes)
            if str(box.get("phrase", "")).strip()
        ]
        if len(named) < len(boxes or []):
            gr.Info("A box without words is left out.")
        fields["boxes"] = named
        phrases = [str(box["phrase"]) for box in named]
        fields["concepts"] = concepts_used(concepts, prompt or "", str(fields.get("negative_prompt", "")), *phrases)
        try:
            if axes := self.comparing.axes(compared):
                fields["count"] = 1
            return self.jobs.submit_generation(fields, base, compare=axes).id
        except StudioError as error:
            raise told(error) from None

    @staticmethod
    def guide(preset: str) -> list[Any]:
        """Return values of the guidance fields for a preset."""
        chosen = PRESETS.get(preset, {})
        open_ = [str(chosen[name]) if name in chosen else "" for name in ("scale", "rescale")]
        return [*open_, chosen.get("start", 0.0), chosen.get("stop", 1.0)]

    @staticmethod
    def shape(width: str, height: str) -> Any:
        """Return the canvas of the boxes in the shape of the picture; a missing side is as long as the other."""
        sides = [int(side) if side.strip().isdecimal() and int(side) else 0 for side in (width, height)]
        longest = max(*sides, 1)
        return gr.update(width=sides[0] or longest, height=sides[1] or longest)

    def reuse(self, base: str, job_id: str, index: int) -> list[Any]:
        """Return the form as it was for a picture of a job."""
        try:
            return self._form_of(base, read_made(picture_of(self.jobs, job_id, int(index))))
        except StudioError as error:
            raise told(error) from None

    def reuse_dropped(self, base: str, path: str | None) -> list[Any]:
        """Return the form as it was for any picture, with a warning about settings of another program."""
        if path is None:
            return [gr.skip()] * (5 + len(self.form.components))
        try:
            if (theirs := read_foreign(Path(path))) is None:
                return self._form_of(base, read_made(Path(path)))
            request = Request.read(theirs.fields)
        except StudioError as error:
            raise told(error) from None
        if theirs.left:
            gr.Warning(said(not_taken("the picture", theirs.left)))
        seed = request.seed if "seed" in theirs.fields else gr.skip()
        return [request.prompt, chips_of(self.jobs, base), [], seed, 1, *self.form.shown(request)]

    def _form_of(self, base: str, made: Made) -> list[Any]:
        request = made.request
        used = without_folders(made.base)
        if used not in (base, without_folders(self.jobs.bases.get(base, ""))):
            gr.Warning(said(f"It was made with the base {used}, not with {base}."))
        # A picture may come from anywhere: of its paths only the names count, and only those that are in the library.
        strengths = {Path(use.source).stem: use.strength for use in request.concepts}
        chips = chips_of(self.jobs, base, list(strengths), strengths)
        missing = strengths.keys() - {chip["id"] for chip in chips}
        if missing:
            gr.Warning(said(f"Not in the library: {', '.join(sorted(missing))}. Import it to make the same picture."))
        boxes = [{"phrase": box.phrase, "box": list(box.box)} for box in request.boxes]
        return [request.prompt, chips, boxes, request.seed + made.index, 1, *self.form.shown(request)]
