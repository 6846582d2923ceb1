"""The page of generation: words, concepts and boxes in, pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.concepts.card import read_card
from pipelines.errors import ConceptError, StudioError
from pipelines.pictures.foreign_metadata import not_taken
from pipelines.pictures.metadata import Made, read_foreign, read_made
from pipelines.request.axes import WORDS, values_in
from pipelines.request.request import Request
from pipelines.request.texts import without_folders
from studio.jobs.jobs import Job, Jobs
from studio.web.components import base_words, box_editor, concept_chips, fold, plan, records
from studio.web.forms import Form, upscalers
from studio.web.pages.offers import CLOSENESS, EXAMPLES, LABELS, PRESETS, TRIES
from studio.web.panels import planning
from studio.web.panels.answer import AnswerPanel, larger
from studio.web.panels.chips import (
    INSERT,
    chips_of,
    concepts_used,
    offer_button,
    offered,
    switched_on,
    tokens_for,
    wire_search,
)
from studio.web.panels.comparing import Comparing, picture_of, suggestion
from studio.web.panels.following import said, shown, told
from studio.web.panels.looking import Looking
from studio.web.panels.phrasing import Phrasing, by_lot, lists_of, several, words_of
from studio.web.panels.placed import drawn_in, placed
from studio.web.panels.planning import Plan, seeded

OFFERED = 200
"""Learned words that the fields of boxes offer; others can be typed."""

GONE = ConceptError("That concept is no longer in the library.", "Bring it back, or teach it again.")
EMPTY = "Your pictures appear here."
USES = ("Use this seed", "Use these settings", "Edit this picture", "Make it larger", "Where words look")
CHOSEN_OPENS = "(boxes) => { if ((boxes || []).length) window.studio.unfold('boxes-fold'); }"
"""Opens the fold of the boxes where there are some."""


class GeneratePage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs, base: gr.Dropdown) -> None:
        self.jobs, self.base = jobs, base
        with gr.Row(elem_id="generating", elem_classes="page", equal_height=False):
            with gr.Column(elem_classes="ask", min_width=300):
                self._ask()
            with gr.Column(elem_classes="result", min_width=300):
                self.answer = AnswerPanel(jobs, "generation", self.go, USES, EMPTY)
                self.looking = Looking(jobs, self.answer, 4)
            with gr.Column(elem_classes="options", min_width=300):
                self._options()
        self._wire()

    def _ask(self) -> None:
        with gr.Group(elem_classes="bar"):
            self.prompt = gr.Textbox(
                label="Prompt",
                lines=2,
                max_lines=6,
                placeholder="Say what to draw, for example: a fox to the left of a house on a yellow background",
                elem_id="prompt",
                elem_classes="completing",
            )
            self.go = gr.Button("Generate", variant="primary", elem_id="go", elem_classes="go")
        first = next(iter(self.jobs.bases.values()))
        self.plan = plan(planning.sizes(first), elem_id="plan")

    def _options(self) -> None:
        first = next(iter(self.jobs.bases))
        self.words = base_words("#prompt textarea", elem_id="words", value=words_of(self.jobs, first, ()))
        self.chips = concept_chips(elem_id="chips")
        with gr.Row(elem_classes="examples"):
            self.examples = [gr.Button(name, size="sm", min_width=90) for name, _, _ in EXAMPLES]
            self.offer = offer_button(self.jobs)
        with fold("Boxes and parts of the picture", "boxes-fold"):
            self.boxes = box_editor(elem_id="boxes")
        with fold("Start from a picture", "start-fold") as start:
            pass
        with fold("More settings", "settings-fold"):
            names = list(PRESETS)
            self.preset = gr.Dropdown(names, value=names[0], label="Keep to the prompt", elem_id="guidance")
            with gr.Row(elem_classes="dials"):
                self.form = Form(Request, LABELS, "generation")
        (given,) = self._fields("inpaint")
        given.unrender()
        with start:
            given.render()
        self.phrasing = Phrasing(self.jobs)
        self.comparing = Comparing()
        self.dropped = gr.File(
            label="Drop a picture of this or another program to use its settings",
            file_types=[".png"],
            height=84,
            elem_id="dropped",
            elem_classes="drop",
        )

    def _wire(self) -> None:
        asked = [self.base, self.prompt, self.chips, self.boxes, self.plan, self.phrasing.style, *self.form.components]
        self.answer.wire(self.submit, [*asked, *self.comparing.components])
        self.phrasing.wire(self.prompt)
        self.looking.wire()
        self.answer.asking.success(self.drawn, [self.answer.job, self.plan], self.plan, api_visibility="private")
        self.comparing.wire(self.prompt, self.plan, self.chips)
        self.chips.input(None, [self.chips, self.prompt], self.prompt, js=INSERT)
        wire_search(self.jobs, self.base, self.chips)
        self.preset.input(self.guide, self.preset, self._fields(*CLOSENESS), api_visibility="private")
        for button, (_, prompt, boxes) in zip(self.examples, EXAMPLES, strict=True):
            given = button.click(
                lambda prompt=prompt, boxes=boxes: (prompt, list(boxes)),
                None,
                [self.prompt, self.boxes],
                api_visibility="private",
            )
            given.success(None, self.boxes, None, js=CHOSEN_OPENS)
        restored = [self.prompt, self.chips, self.boxes, self.plan, *self.form.components]
        chosen = [self.base, self.answer.job, self.answer.chosen]
        self.answer.used(0, self.same_seed, [*chosen[1:], self.plan], [self.plan])
        for event in self.answer.used(1, self.reuse, chosen, restored):
            compared = self.comparing.components
            event.success(self.comparing.cleared, None, compared, api_visibility="private")  # one of them was chosen
        for event in self.answer.used(3, self.enlarge, chosen[1:], [self.answer.job]):
            self.answer.submitted(event, api_visibility="private")
        self.dropped.upload(self.reuse_dropped, [self.base, self.dropped], restored, api_visibility="private")
        size = self._fields("width", "height")
        for component in size:
            component.change(
                self.shape, [self.base, *size, self.plan], [self.boxes, self.plan], api_visibility="private"
            )
        network = self._fields("enlarge.upscaler", "enlarge.factor")
        network[1].input(self.twice, network, network[0], api_visibility="private")
        self.plan.select(self.resize, [self.base, self.plan], size, api_visibility="private")  # pyright: ignore[reportAttributeAccessIssue]

    def follow_on(self, page: gr.Blocks) -> None:
        """Show the job that the address names when the page is opened, with the form as it was asked."""
        self.answer.follow_on(page)
        asked = [self.base, self.prompt, self.chips, self.boxes, self.plan, *self.form.components]
        opened = page.load(self.restored, None, [*asked, *self.comparing.components], api_visibility="private")
        opened.success(self.refresh, [self.base, self.chips], self.kept, api_visibility="private").success(
            None, self.boxes, None, js=CHOSEN_OPENS
        )

    @property
    def kept(self) -> list[Any]:
        """The components that show the library."""
        shown_ = [self.chips, self.boxes, self.offer, self.words, self.phrasing.earlier, self.phrasing.style]
        return [*shown_, *self._fields("enlarge.upscaler")]

    def _fields(self, *starts: str) -> list[Any]:
        """Return components of the fields whose paths begin so."""
        pairs = zip(self.form.paths, self.form.components, strict=True)
        return [component for path, component in pairs if path.startswith(starts)]

    def refresh(self, base: str, chips: list[dict[str, Any]]) -> tuple[Any, ...]:
        """Return the chips as the library is now, with their switches; words for boxes and prompt; the example."""
        on = switched_on(chips)
        now, learned = chips_of(self.jobs, base, list(on), on), tokens_for(self.jobs, base)
        words = words_of(self.jobs, base, learned)
        names = [name for group in words.get("things", {}).values() for name in group]
        boxes = gr.update(choices=[*learned[:OFFERED], *names])
        networks = gr.update(choices=upscalers(self.jobs.places.enlarging.there()))
        return now, boxes, shown(offered(self.jobs)), words, *self.phrasing.refresh(), networks

    def sized(self, base: str) -> Any:
        """Return the small fields with the sizes of a base."""
        return gr.update(sizes=planning.sizes(self.jobs.bases.get(base, "")))

    def add_example(self, base: str, chips: list[dict[str, Any]]) -> tuple[Any, ...]:
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
        chips, boxes, _, words, *_ = self.refresh(base, [{"id": concept, "on": True}])
        return gr.update(selected="generate"), card.example or f"a {card.token}", chips, boxes, words

    def take_learned(self, base: str, job_id: str) -> tuple[Any, ...]:
        """Begin a prompt with the result of a training."""
        try:
            return self.take(base, self.jobs.results(job_id)[0].stem)
        except (StudioError, IndexError):
            raise told(GONE) from None

    def submit(
        self,
        base: str,
        prompt: str,
        concepts: list[dict[str, Any]],
        boxes: list[dict[str, Any]],
        plan: dict[str, Any],
        style: str | None,
        *more: Any,
    ) -> str:
        """Queue pictures, or a comparison if one is set; return the id of the job.

        Where words of the prompt are drawn by lot, several pictures are a comparison of several prompts.
        """
        more, compared = more[: len(self.form.paths)], more[len(self.form.paths) :]
        try:
            named, parts = placed(self.jobs, boxes)
            if len(named) + len(parts) < len(boxes or []):
                gr.Info("A box without words is left out.")
            planned = Plan.read(plan)
            axes = self.comparing.axes(compared)
            said_ = self.phrasing.said(prompt or "", style)
            prompts = self._drawn(base, said_, planned, 1 if axes else planned.count)
            fields = self.form.given(more) | {"prompt": prompts[0], "seed": planned.seed, "count": planned.count}
            fields |= {"boxes": named} | ({"regions": parts} if parts else {})
            phrases = [*(str(box["phrase"]) for box in named), *(str(part["prompt"]) for part in parts)]
            phrases += [str(one["prompt"]) for one in fields.get("also", ())]
            used = concepts_used(self.jobs, concepts, *prompts, str(fields.get("negative_prompt", "")), *phrases)
            fields["concepts"] = used
            if len(prompts) > 1:
                axes = [{"field": "prompt", "values": prompts}]
            if axes:
                fields["count"] = 1
            return self.jobs.submit_generation(fields, base, compare=axes, best_of=self.comparing.best(compared)).id
        except StudioError as error:
            raise told(error) from None

    def _drawn(self, base: str, prompt: str, planned: Plan, count: int) -> list[str]:
        """Return the prompts of a job: one, or several where words are drawn by lot."""
        lists = lists_of(self.jobs.bases.get(base, ""))
        return several(prompt, planned.seed, count, lists) if by_lot(prompt) else [prompt]

    def drawn(self, job_id: str, plan: Any) -> dict[str, Any]:
        """Return the small fields with the seed that was drawn for a job."""
        keep = bool(plan.get("keep")) if isinstance(plan, dict) else False
        return seeded(plan, int(self.jobs.get(job_id).spec["request"].get("seed", 0)), keep)

    @staticmethod
    def guide(preset: str) -> list[Any]:
        """Return values of the guidance fields for a preset."""
        chosen = PRESETS.get(preset, {})
        return [chosen.get("scale"), chosen.get("rescale"), chosen.get("start", 0.0), chosen.get("stop", 1.0)]

    @staticmethod
    def twice(factor: float | None, upscaler: str | None) -> Any:
        """Return twice the size for an upscaler that would have nothing to do."""
        return 2.0 if upscaler and (factor or 1) <= 1 else gr.skip()

    def resize(self, base: str, plan: Any) -> list[Any]:
        """Return width and height for the size that was chosen; the base's own are left to it."""
        name = Plan.read(plan).size
        shapes = planning.shapes(self.jobs.bases.get(base, ""))
        if name == planning.OWN:
            return [gr.skip(), gr.skip()]
        return [None, None] if name == planning.SQUARE else list(shapes.get(name, (None, None)))

    def shape(self, base: str, width: float | None, height: float | None, plan: Any) -> tuple[Any, Any]:
        """Return the canvas of the boxes in the shape of the picture, and the name of its size."""
        side = planning.side_of(self.jobs.bases.get(base, ""))
        across, down = (int(one) if one else None for one in (width, height))
        named = planning.size_of(self.jobs.bases.get(base, ""), across, down)
        told_ = (plan if isinstance(plan, dict) else {}) | {"size": named}
        return gr.update(width=across or side, height=down or side), told_

    def use_again(self, base: str, made: Any, parts: Sequence[str]) -> list[Any]:
        """Return the parts of the form that are to be used again, as a picture was made; the others stay."""
        prompt, chips, boxes, plan, *form = self._form_of(base, made)
        given = {"prompt": prompt, "concepts": chips, "boxes": boxes, "seed": plan}
        found = [value if name in parts else gr.skip() for name, value in given.items()]
        return [*found, *(form if "settings" in parts else [gr.skip()] * len(form))]

    def try_three(self, base: str, job_id: str) -> str:
        """Queue three prompts with the result of a training, from one seed; return the id of the job."""
        try:
            concept = self.jobs.results(job_id)[0].stem
            card = read_card(self.jobs.places.concept(concept))
            prompts = [f"a {card.token}", *(f"a {card.token} {more}" for more in TRIES)]
            if card.kind == "slider":
                axis = {"field": "concepts.1.strength", "values": ["-1", "0", "1"]}
            elif card.kind in ("relation", "style") and card.example:
                axis = {"field": WORDS, "values": list(values_in(suggestion(WORDS, card.example, 0)))[:3]}
            else:
                axis, card = {"field": "prompt", "values": prompts}, card.model_copy(update={"example": prompts[0]})
            fields = {"prompt": card.example, "concepts": [{"source": concept}]}
            job = self.jobs.submit_generation(fields | {"seed": planning.Plan.read({}).seed}, base, compare=[axis])
            with suppress(StudioError):  # it is at work already
                self.jobs.waiting.put(job.id, True)
            return job.id
        except (StudioError, IndexError) as error:
            raise told(error if isinstance(error, StudioError) else GONE) from None

    # -- settings that come back -----------------------------------------------------------------------------------

    def same_seed(self, job_id: str, index: int, plan: Any) -> dict[str, Any]:
        """Return the small fields with the seed of a picture, kept."""
        try:
            made = read_made(picture_of(self.jobs, job_id, int(index)))
        except StudioError as error:
            raise told(error) from None
        return seeded(plan, made.request.seed + made.index, True)

    def enlarge(self, job_id: str, index: int) -> str:
        """Queue a picture at twice its size; return the id of the job."""
        try:
            job, path = self.jobs.get(job_id), picture_of(self.jobs, job_id, int(index))
            return self.jobs.submit_generation(larger(job, path), job.spec["base"]).id
        except StudioError as error:
            raise told(error) from None

    def reuse(self, base: str, job_id: str, index: int) -> list[Any]:
        """Return the form as it was for a picture of a job."""
        try:
            return self._form_of(base, read_made(picture_of(self.jobs, job_id, int(index))))
        except StudioError as error:
            raise told(error) from None

    def reuse_dropped(self, base: str, path: str | None) -> list[Any]:
        """Return the form as it was for any picture, with a warning about settings of another program."""
        if path is None:
            return [gr.skip()] * (4 + len(self.form.components))
        try:
            if (theirs := read_foreign(Path(path))) is None:
                return self._form_of(base, read_made(Path(path)))
            request = Request.read(theirs.fields)
        except StudioError as error:
            raise told(error) from None
        if theirs.left:
            gr.Warning(said(not_taken("the picture", theirs.left)))
        found = self._fields_of(base, request, 1, "seed" in theirs.fields)
        return found

    def _form_of(self, base: str, made: Made) -> list[Any]:
        used = without_folders(made.base)
        if used not in (base, without_folders(self.jobs.bases.get(base, ""))):
            gr.Warning(said(f"It was made with the base {used}, not with {base}."))
        one = made.request.model_copy(update={"seed": made.request.seed + made.index})
        return self._fields_of(base, one, 1, True)

    def _fields_of(self, base: str, request: Request, count: int, keep: bool) -> list[Any]:
        """Return the values of prompt, chips, boxes, small fields and settings."""
        # A picture may come from anywhere: of its paths only the names count, and only those that are in the library.
        strengths = {Path(use.source).stem: use.strength for use in request.concepts}
        chips = chips_of(self.jobs, base, list(strengths), strengths)
        missing = strengths.keys() - {chip["id"] for chip in chips}
        if missing:
            gr.Warning(said(f"Not in the library: {', '.join(sorted(missing))}. Import it to make the same picture."))
        boxes, lost = drawn_in(self.jobs, request)
        if lost:
            gr.Warning(said(f"The painted mask is no longer here for: {', '.join(lost)}. Paint that part again."))
        size = planning.size_of(self.jobs.bases.get(base, ""), request.width, request.height)
        planned = {"count": count, "size": size, "seed": request.seed, "keep": keep}
        return [request.prompt, chips, boxes, planned, *self.form.shown(request)]

    def restored(self, request: gr.Request) -> list[Any]:
        """Return the whole form as the job that the address names was asked with."""
        nothing = [gr.skip()] * (5 + len(self.form.components) + len(self.comparing.components))
        if not (job_id := self.answer.restore(request)):
            return nothing
        job = self.jobs.get(job_id)
        return nothing if (found := self.form_of_job(job)) is None else found

    def form_of_job(self, job: Job) -> list[Any] | None:
        """Return base, form and comparison as a job was asked with; None if this page did not ask it."""
        try:
            asked = Request.read(job.spec["request"])
            compared = self.comparing.restored(job.spec)
        except (StudioError, KeyError):
            return None
        painted = asked.inpaint is not None and not asked.inpaint.whole  # that is asked for on Edit
        if painted or asked.in_context or job.spec["base"] not in self.jobs.bases:
            return None
        base = job.spec["base"]
        keep = False  # the next press draws another picture, as the first one did
        return [base, *self._fields_of(base, asked, asked.count, keep), *compared]
