"""Several things in one run on the page: sets of pictures that are put aside, each with its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from pipelines.errors import ConfigError, StudioError
from pipelines.request.settings import file_of
from studio.jobs.jobs import Jobs
from studio.web.components import records
from studio.web.panels.following import shown, told
from studio.web.panels.pictures import keep_words
from studio.web.panels.subjects import WHATS, What
from studio.web.teaching.readiness import wrong_with


def further_setting(what: What) -> str:
    """Return the setting that names further things of a run as DATASET:TOKEN:WORD; empty if its method has none."""
    fields = what.method.Settings.model_fields
    marks = {name: file_of(field) for name, field in fields.items() if len(what.words) > 1}
    return next((name for name, mark in marks.items() if mark is not None and mark.after == 2), "")


def taken_apart(
    dataset: str, words: Sequence[str | None], sets: Sequence[Any]
) -> tuple[tuple[str, tuple[str, str]], list[dict[str, Any]]]:
    """Return the set of pictures of the form with its words, and those put aside.

    Where the form is empty, the last of those is in its place.
    """
    token, start = ((word or "").strip() for word in words)
    others = [one for one in records(sets) if one.get("dataset")]
    if others and not dataset and not token:
        *others, last = others
        return (str(last["dataset"]), (str(last["token"]), str(last["start"]))), others
    return (dataset, (token, start)), others


def settings_of_others(what: What, others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings by which things put aside are learned in the same run.

    Raises:
        ConfigError: if this kind learns one thing at a time.
    """
    if not others:
        return {}
    if not (name := further_setting(what)):
        raise ConfigError(f"“{what.offer.title}” learns one thing at a time.", "Choose another kind, or only the one.")
    return {name: [f"{one['dataset']}:{one['token']}:{one['start']}" for one in others]}


class SeveralSets:
    """The sets of pictures that are put aside, and the buttons that do so; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.sets = gr.State([])
        self.list = gr.HTML(elem_id="sets", js_on_load=None)
        with gr.Row(elem_classes="examples"):
            self.add = gr.Button("Learn another thing in the same run", size="sm", visible="hidden", elem_id="add-set")
            self.forget = gr.Button("Only the one in the form", size="sm", visible="hidden", elem_id="forget-sets")

    def wire(self, kinds: Sequence[Any], base: Any, held: Sequence[Any], words: Sequence[Any]) -> None:
        """Put the pictures of the form aside, and empty it.

        Args:
            kinds: components of which one says what is learned.
            base: the component of the base.
            held: those of the pictures: their id, their rows, and the button that removes them all.
            words: those of the new word and the one to start from.
        """
        dataset, rows, _ = held
        for one in (*kinds, rows):
            one.change(self.offered, [*kinds, rows], self.add, show_progress="hidden", api_visibility="private")
        own = [self.sets, self.list, self.forget]
        asked = [*kinds, base, dataset, rows, *words, self.sets]
        self.add.click(self.put_aside, asked, [*own, *held, *words], api_visibility="private")
        self.forget.click(lambda: ([], "", shown(False)), None, own, api_visibility="private")

    @staticmethod
    def offered(what: str | None, other: str | None, rows: Any) -> Any:
        """Return whether there are pictures, of a kind of which several are learned in one run."""
        chosen = WHATS.get(other or what or "")
        return shown(bool(rows) and chosen is not None and bool(further_setting(chosen)))

    def put_aside(
        self, what: str | None, other: str | None, base: str, dataset: str, rows: Any, *more: Any
    ) -> tuple[Any, ...]:
        """Put the pictures of the form aside with their words; `more` are the two words, and the sets so far."""
        token, start, sets = str(more[0] or "").strip(), str(more[1] or "").strip(), records(more[2])
        try:
            chosen = WHATS[other or what or next(iter(WHATS))]
            if wrong := list(wrong_with(self.jobs, chosen, token, start, base)):
                raise ConfigError(wrong[0])
            if token in [one["token"] for one in sets]:
                raise ConfigError(f"{token} is the word of another thing of this run.", "Choose another.")
            keep_words(self.jobs.datasets, dataset, rows)
            pictures = self.jobs.datasets.rename(dataset, f"Pictures of {token}").pictures
        except StudioError as error:
            raise told(error) from None
        sets = [*sets, {"dataset": dataset, "token": token, "start": start, "pictures": pictures}]
        return sets, listed(sets), shown(True), "", [], shown(False), "", ""


def listed(sets: Sequence[Mapping[str, Any]]) -> str:
    """Return HTML of the sets put aside."""
    words = ", ".join(f"<code>{escape(one['token'])}</code> ({one['pictures']})" for one in sets)
    return f'<p class="hint">Learned in the same run: {words}</p>' if sets else ""
