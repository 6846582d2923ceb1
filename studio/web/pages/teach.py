"""The page of training: pictures in, a concept out, with live progress."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.concepts.card import read_card
from pipelines.concepts.compatibility import base_files
from pipelines.errors import ConfigError, StudioError
from pipelines.files import stem_of
from studio.jobs.jobs import Job, Jobs
from studio.library import archives
from studio.library.quota import said as size_of
from studio.web.components import fold, picture_rows, told_by
from studio.web.panels.advanced import AdvancedPanel
from studio.web.panels.following import Following, said, shown, told
from studio.web.panels.pictures import Marking, keep_words, reshape, rows_of, squared, turned
from studio.web.panels.scores import ScoresPanel
from studio.web.panels.subjects import KINDS, NAMED, OTHERS, PRESETS, WHATS, What, advice, fields_of, is_hint
from studio.web.panels.watching import JobMessages, curves, picture_uri, progress
from studio.web.teaching.captioning import CaptionPanel
from studio.web.teaching.readiness import pace_of, readiness, wrong_with
from studio.web.teaching.several import SeveralSets, settings_of_others, taken_apart

PREVIEWS = 6
CANDIDATES = 5  # steps of which the best is proposed
OFTEN = 250  # steps between previews where the recipe of a method says how many there are
WAITING = '<p class="hint">What the model learns shows here, step by step.</p>'
WOLF = Path(__file__).parents[2] / "examples" / "wolf"


class TeachPage(Following):
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs, base: gr.Dropdown) -> None:
        super().__init__(jobs, "training", "training")
        self.base = base
        self.dataset = gr.Textbox(visible="hidden", label="Pictures", elem_id="dataset-id")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._question()
            with gr.Column(scale=4, min_width=320):
                self._answer()
        self._wire()

    def _question(self) -> None:
        first = KINDS[0][1]
        self.what = gr.Radio(KINDS, value=first, label="What do the pictures show?", elem_id="what")
        self.says = gr.HTML(f'<p class="hint">{advice(first)}</p>', elem_id="what-says", js_on_load=None)
        self.files = gr.File(
            label="Drag pictures in, or a zip of them",
            file_count="multiple",
            file_types=["image", ".zip"],
            height=110,
            elem_id="files",
            elem_classes="drop",
        )
        with gr.Row(elem_classes="examples"):
            self.example = gr.Button("Use the example: a wolf", size="sm", elem_id="example-wolf")
            self.empty = gr.Button("Remove all pictures", size="sm", visible="hidden")
        self.room = gr.HTML(elem_id="room", js_on_load=None)
        self.rows = picture_rows(elem_id="rows")
        self.captions = CaptionPanel(self.jobs)
        self.marking = Marking(self.jobs)
        with gr.Row():
            token, start = fields_of(first)
            self.token = gr.Textbox(**token, max_length=60, min_width=140, elem_id="token")
            self.start = gr.Textbox(
                **start, max_length=300, min_width=200, elem_id="start", elem_classes="completing words-only"
            )
        self.several = SeveralSets(self.jobs)
        with gr.Row():
            self.preset = gr.Radio(
                list(PRESETS), value="recommended", label="How long", min_width=280, scale=3, elem_id="preset"
            )
            self.steps = gr.Textbox(
                "", label="Steps", placeholder="recommended", max_length=7, min_width=110, elem_id="steps"
            )
        with fold("Other ways of learning", "other-ways"):
            self.other = gr.Radio(OTHERS, label="Instead of the above", elem_id="other-what")
        self.advanced = AdvancedPanel(first)
        self.ready = gr.HTML(elem_id="ready", js_on_load=None)
        with gr.Row():
            self.check = gr.Button("Check the pictures", elem_id="check")
            self.teach = gr.Button("Start teaching", variant="primary", elem_id="teach", elem_classes="go")

    def _answer(self) -> None:
        self.progress = gr.HTML(WAITING, elem_id="training-progress", js_on_load=None)
        with gr.Row():
            self.pause = gr.Button("Pause", visible="hidden", size="sm", elem_id="pause")
            self.resume = gr.Button("Continue", visible="hidden", size="sm", elem_id="resume")
            self.stop = gr.Button("Cancel", visible="hidden", size="sm", elem_id="stop-teaching")
        self.strip = gr.HTML(elem_id="previews", js_on_load=None)
        self.curves = gr.HTML(elem_id="curves", js_on_load=None)
        self.learned = gr.HTML(elem_id="learned", js_on_load=None)
        self.use = gr.Button("Try it in three prompts", variant="primary", visible="hidden", elem_id="try-it")
        self.scores = ScoresPanel(self.jobs, "scores")

    def _wire(self) -> None:
        held = [self.dataset, self.rows, self.empty]
        explained = [self.says, self.token, self.start, self.rows]
        for one, rest in ((self.what, self.other), (self.other, self.what)):  # one of them is chosen
            one.input(self.explain, one, explained, api_visibility="private").success(lambda: None, None, rest)
        columns = list(self.advanced.columns.values())
        for one in self.kinds:
            one.change(self.explain_advanced, self.kinds, columns, api_visibility="private")
        self.files.upload(self.take, [self.files, self.dataset], [*held, self.files], api_visibility="private")
        self.example.click(self.take_example, self.kinds, [*held, self.token, self.start], api_visibility="private")
        self.empty.click(lambda: ("", [], shown(False)), None, held, api_visibility="private")
        self.rows.act(self.act, [self.dataset, self.rows], held, api_visibility="private")
        self.rows.change(self.taken_room, None, self.room, api_visibility="private")
        self.captions.wire(self.kinds, self.dataset, self.rows, [self.token, self.start])
        self.several.wire(self.kinds, self.base, held, [self.token, self.start])
        self.marking.wire(self.dataset, self.rows)
        asked = [*self.kinds, self.dataset, self.rows, self.token, self.start, self.preset, self.steps, self.base]
        asked += [self.several.sets, *self.advanced.components]
        words = [self.token, self.start, self.preset, self.steps, self.base, self.several.sets]
        self.told = [*self.kinds, self.dataset, *words]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
        for one in (*self.kinds, self.rows, *words):
            one.change(self.readiness, self.told, self.ready, **quiet)
        for button, submit, name in ((self.check, self.submit_check, "check"), (self.teach, self.submit, "teach")):
            asking = button.click(submit, asked, self.job, api_name=name)
            self.submitted(asking)
            asking.success(self.scores.nothing, None, self.scores.said(), api_visibility="private")
        self.pause.click(self.ask_pause, self.job, api_name="pause")
        self.stop.click(self.ask_cancel, self.job, api_name="cancel_training")
        self.resume.click(self.ask_resume, self.job, api_name="resume")

    @property
    def kinds(self) -> list[Any]:
        """The components of which one says what is learned."""
        return [self.what, self.other]

    def explain_advanced(self, what: str | None, other: str | None) -> list[Any]:
        """Return updates that show the settings of the method that is chosen."""
        return self.advanced.explain(other or what or next(iter(WHATS)))

    @staticmethod
    def chosen(what: str | None, other: str | None) -> What:
        """Return the kind of learning that is chosen.

        Raises:
            ConfigError: if there is none.
        """
        name = other or what or ""
        if name not in WHATS:
            raise ConfigError("What the pictures show is not chosen.", "Choose it at the top of the page.")
        return WHATS[name]

    def readiness(
        self,
        what: str | None,
        other: str | None,
        dataset: str,
        token: str,
        start: str,
        preset: str,
        steps: str,
        base: str,
        sets: Sequence[Any] = (),
    ) -> str:
        """Return HTML of what is ready and what is missing."""
        (dataset, (token, start)), _ = taken_apart(dataset, (token, start), sets)
        try:
            chosen = self.chosen(what, other)
            pictures = self.jobs.datasets.get(dataset).pictures if dataset else 0
        except StudioError as error:
            return f'<p class="failure">{escape(error.message)}</p>'
        wrong = list(wrong_with(self.jobs, chosen, token, start, base))
        planned = self._pace(chosen, preset, (steps or "").strip(), base, quiet=True).get("steps", "")
        pace = pace_of(self.jobs, chosen.method.name, base)
        seconds = pace * int(planned) if pace and str(planned).isdecimal() else None
        return readiness(wrong, chosen, token, pictures, seconds)

    def afterwards(self, followed: Any) -> None:
        """Follow the measurement of what was learned."""
        found = followed.success(self.measured, self.job, self.scores.job, api_visibility="private")
        self.scores.followed(found, api_visibility="private")

    def measured(self, job_id: str) -> str:
        """Return the job that measures the result of a training, if there is one."""
        scores = self.jobs.scores_after(job_id)
        return scores.id if scores else ""

    def said(self) -> Sequence[Any]:
        """The components that show progress, buttons, previews, curves, and the result."""
        return [self.progress, self.pause, self.resume, self.stop, self.strip, self.curves, self.learned, self.use]

    def nothing(self) -> tuple[Any, ...]:
        """Return an empty state; all else stays as it is."""
        return (WAITING, *(gr.skip() for _ in self.said()[1:]))

    @staticmethod
    def explain(what: str) -> tuple[str, Any, Any, Any]:
        """Return the cost of a kind of learning, and suggestions for its words."""
        token, start = (gr.update(**field) for field in fields_of(what))
        return f'<p class="hint">{advice(what)}</p>', token, start, gr.update(pairs=WHATS[what].offer.pairs)

    def follow_on(self, page: gr.Blocks) -> None:
        """Show the job that the address names when the page is opened, and what it was asked with."""
        super().follow_on(page)
        asked = [self.dataset, self.rows, self.empty, *self.kinds, self.says, self.token, self.start, self.steps]
        restored = page.load(self.restored, None, asked, api_visibility="private")
        restored.success(self.readiness, self.told, self.ready, show_progress="hidden", api_visibility="private")

    def restored(self, request: gr.Request) -> tuple[Any, ...]:
        """Return pictures and words of the training that the address names, if they still exist."""
        nothing = tuple(gr.skip() for _ in range(9))
        if not (job_id := self.restore(request)):
            return nothing
        spec = self.jobs.get(job_id).spec
        settings = spec["settings"]
        kinds = [
            name
            for name, what in WHATS.items()
            if what.method.name == spec["method"] and what.offer.settings.items() <= settings.items()
        ]
        try:
            dataset, rows, empty = self._held(spec["dataset"] or "")
        except StudioError:
            return nothing
        if not kinds:  # asked for by a program, in a way that the page does not offer
            return nothing
        says, *fields, pairs = self.explain(kinds[0])
        words = [settings.get(name, "") for name in WHATS[kinds[0]].words]
        filled = [field | ({"value": word}) for field, word in zip(fields, [*words, "", ""], strict=False)]
        named = kinds[0] in NAMED
        shown_ = (kinds[0] if named else None, None if named else kinds[0])
        return dataset, rows | pairs, empty, *shown_, says, *filled, str(settings.get("steps", ""))

    def taken_room(self) -> str:
        """Return HTML of the room that pictures and uploads take."""
        quota = self.jobs.places.quota
        words = f"Pictures and uploads on this server take {size_of(quota.used())} of {size_of(quota.most)}."
        return f'<p class="hint">{words}</p>'

    # -- pictures ----------------------------------------------------------------------------------------------

    def _held(self, dataset: str) -> tuple[str, Any, Any]:
        rows = rows_of(self.jobs.datasets, dataset) if dataset else []
        return dataset, gr.update(value=rows), shown(bool(rows))

    def take(self, files: list[str] | None, dataset: str) -> tuple[Any, ...]:
        """Store uploaded files; unusable ones are reported, the rest stays."""
        try:
            dataset = dataset or self.jobs.datasets.create("Pictures").id
        except StudioError as error:
            raise told(error) from None
        for name in files or []:
            path = Path(name)
            try:
                if path.suffix.lower() == ".zip":
                    ignored = archives.take(self.jobs.datasets, dataset, path.read_bytes()).ignored
                    if ignored:
                        gr.Warning(" ".join(f"{escape(one)} is left out: {escape(ignored[one])}." for one in ignored))
                else:
                    self.jobs.datasets.add(dataset, path.read_bytes(), path.name)
            except StudioError as error:
                gr.Warning(said(str(error)))
        return (*self._held(dataset), None)

    def take_example(self, what: str | None, other: str | None) -> tuple[Any, ...]:
        """Store the four pictures of the wolf, and suggest words for it."""
        offer = self.chosen(what, other).offer
        words = [value for _, value in offer.words.values()]
        stored = self.take([str(path) for path in sorted(WOLF.glob("*.png"))], "")[:3]
        return *stored, *[*words, "", ""][:2]

    def act(self, dataset: str, rows: list[dict[str, Any]], asked: gr.EventData) -> tuple[Any, ...]:
        """Turn, crop or remove one picture."""
        name, what = told_by(asked, "name"), told_by(asked, "what")
        try:
            keep_words(self.jobs.datasets, dataset, rows)
            if what == "remove":
                self.jobs.datasets.remove(dataset, name)
            elif what in ("turn", "square"):
                reshape(self.jobs.datasets, dataset, name, turned if what == "turn" else squared)
            return self._held(dataset)
        except StudioError as error:
            raise told(error) from None

    # -- teaching ----------------------------------------------------------------------------------------------

    def _submit(
        self,
        dry: bool,
        chosen: What,
        dataset: str,
        rows: Any,
        words: Sequence[str],
        preset: str,
        steps: Any,
        base: str,
        sets: Sequence[Any] = (),
        *advanced: Any,
    ) -> str:
        (dataset, (token, start)), others = taken_apart(dataset, words, sets)
        given = bool(dataset) and self.jobs.datasets.get(dataset).pictures > 0
        if given:
            keep_words(self.jobs.datasets, dataset, rows)
        elif chosen.offer.pictures:
            raise gr.Error("There are no pictures yet. Drag some in, or use the example.", print_exception=False)
        if wrong := list(wrong_with(self.jobs, chosen, token, start, base)):
            raise ConfigError(wrong[0])
        settings: dict[str, Any] = {
            **chosen.offer.settings,
            **dict(zip(chosen.words, (token, start), strict=False)),
            **({"candidates": CANDIDATES} if chosen.compares else {}),
            **settings_of_others(chosen, others),
            **self._pace(chosen, preset, (steps or "").strip(), base),
            **self.advanced.given(chosen.method, advanced),
        }
        job = self.jobs.submit_training(chosen.method.name, settings, dataset if given else None, base, dry_run=dry)
        if given:
            self.jobs.datasets.rename(dataset, f"Pictures of {settings.get('token', chosen.offer.title)}")
        return job.id

    def _pace(self, chosen: What, preset: str, steps: str, base: str, quiet: bool = False) -> dict[str, Any]:
        """Return steps and how often a preview is drawn; for bases other than pocket the method decides the steps."""
        planned: Any = steps
        if not steps and base_files(self.jobs.bases.get(base, "")).family == "pocket":
            planned = round(chosen.recipe_steps * PRESETS.get(preset, 1.0))
        elif not steps:
            if PRESETS.get(preset, 1.0) != 1.0 and not quiet:
                gr.Info("For this base the method decides the number of steps; enter steps for another length.")
            return {"preview_every": OFTEN}
        return {"steps": planned, "preview_every": max(1, int(planned) // PREVIEWS) if str(planned).isdecimal() else 0}

    def submit(self, what: str | None, other: str | None, *more: Any) -> str:
        """Queue a training; return the id of the job. `more` are the other values of the page, as `_submit` names."""
        return self._asked(False, what, other, *more)

    def submit_check(self, what: str | None, other: str | None, *more: Any) -> str:
        """Queue a check of the pictures; return the id of the job."""
        return self._asked(True, what, other, *more)

    def _asked(self, dry: bool, what: str | None, other: str | None, *more: Any) -> str:
        dataset, rows, token, start, *rest = more
        try:
            return self._submit(dry, self.chosen(what, other), dataset, rows, (token, start), *rest)
        except StudioError as error:
            raise told(error) from None

    def seen(self, seen: JobMessages) -> tuple[Any, ...]:
        """Return a training with its curves and previews."""
        job = seen.job
        dry = bool(job.spec.get("dry_run"))
        previews = self.jobs.previews(job.id)
        strip = "".join(
            f'<figure><img src="{picture_uri(path)}" alt="{escape(caption)}"><figcaption>{step}</figcaption></figure>'
            for step, path, caption in previews[-8:]
        )
        done = job.state == "done" and not dry
        return (
            progress(seen),
            shown(job.state in ("queued", "running") and not dry),
            shown(job.state == "paused"),
            shown(not job.ended),
            f'<div class="strip">{strip}</div>' if strip else "",
            "" if dry else curves(seen),
            self._result(job) if done else "",
            shown(done and bool(job.concepts) and not is_hint(job.spec["method"])),
        )

    def _result(self, job: Job) -> str:
        words = [read_card(self.jobs.folder / name).token for name in job.concepts]
        if words:
            said = ", ".join(f"<code>{escape(word)}</code>" for word in words)
            hint = is_hint(job.spec["method"])
            way = "Give it as the hint, By example." if hint else "See whether it is what you meant."
            return f'<p class="learned">Learned: {said}. {way}</p>'
        links = (
            f'<a href="/api/v1/runs/{job.id}/files/{number}" download>{escape(stem_of(Path(name)))}</a>'
            for number, name in job.files.items()
        )
        return f'<p class="learned">Learned: {", ".join(links)}. A model is now one of the bases, see Models.</p>'

    def _ask(self, what: Any, job_id: str) -> None:
        try:
            what(job_id)
        except StudioError as error:
            raise told(error) from None

    def ask_pause(self, job_id: str) -> None:
        """Pause a training; its state is kept."""
        self._ask(self.jobs.pause, job_id)

    def ask_resume(self, job_id: str) -> None:
        """Resume a paused training."""
        self._ask(self.jobs.resume, job_id)

    def ask_cancel(self, job_id: str) -> None:
        """Stop a training for good."""
        self._ask(self.jobs.cancel, job_id)
