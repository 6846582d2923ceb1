"""Captions of training pictures on the page: a button that has them written, each then edited beside its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from pipelines.captions.wording import Wording, words_of
from pipelines.errors import ConfigError, StudioError
from studio.jobs.jobs import Jobs
from studio.web.components import records
from studio.web.panels.following import Following, shown, told
from studio.web.panels.pictures import keep_words, rows_of
from studio.web.panels.subjects import WHATS, What
from studio.web.panels.watching import JobMessages, progress


def wording_for(what: What, token: str, start: str) -> Wording:
    """Return the wording of captions for a kind of learning: what the new word shall hold is not named.

    Args:
        what: the kind of learning.
        token: the new word.
        start: the word of the base that learning starts from.

    Raises:
        ConfigError: if there is no new word.
    """
    if not token:
        raise ConfigError("The new word is missing, which captions say.", "Write it first, for example <my-wolf>.")
    given = dict(zip(what.words, (token, start or "thing"), strict=False))
    said = what.method.Settings(**{**what.offer.settings, **given}).spoken or token
    if what.offer.settings.get("kind") == "style":  # whose pictures differ in all but what is to be learned
        return Wording(template=f"{{}} in the style of {said}")
    named = [word for text in (token, start) for word in words_of(text)]
    return Wording(token=said, leave_out=tuple(dict.fromkeys(named)), shared=True)


class CaptionPanel(Following):
    """The button that writes captions, and how far that is; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(jobs, "captions", "caption")
        with gr.Row(elem_classes="examples"):
            self.go = gr.Button("Write captions", size="sm", visible="hidden", elem_id="write-captions")
            self.stop = gr.Button("Cancel", size="sm", visible="hidden", elem_id="captions-stop")
        self.progress = gr.HTML(elem_id="captions-progress", js_on_load=None)

    def wire(self, kinds: Sequence[Any], dataset: Any, rows: Any, words: Sequence[Any]) -> None:
        """Write captions of the pictures in the rows, and put them there.

        Args:
            kinds: components of which one says what is learned.
            dataset: the component with the id of the pictures.
            rows: that of the pictures.
            words: those of the new word and the one to start from.
        """
        self.dataset, self.rows = dataset, rows
        for one in (*kinds, rows):
            one.change(self.offered, [*kinds, rows], self.go, show_progress="hidden", api_visibility="private")
        dataset.change(lambda: "", None, self.progress, api_visibility="private")  # it is of the former pictures
        self.submitted(self.go.click(self.ask, [*kinds, dataset, rows, *words], self.job, api_name="captions"))
        self.stop.click(self.cancel, self.job, api_name="cancel_captions")

    def afterwards(self, followed: Any) -> None:
        """Put the captions into the rows."""
        followed.success(self.written, [self.job, self.dataset, self.rows], self.rows, api_visibility="private")

    @staticmethod
    def offered(what: str | None, other: str | None, rows: Any) -> Any:
        """Return whether there are pictures to write captions of; pairs have names instead."""
        chosen = WHATS.get(other or what or "")
        return shown(bool(rows) and chosen is not None and bool(chosen.words) and not chosen.offer.pairs)

    def ask(self, what: str | None, other: str | None, dataset: str, rows: Any, token: str, start: str) -> str:
        """Order captions of the pictures that have none; return the id of the job."""
        try:
            keep_words(self.jobs.datasets, dataset, rows)
            wording = wording_for(
                WHATS[other or what or next(iter(WHATS))], (token or "").strip(), (start or "").strip()
            )
            return self.jobs.captioning.submit(dataset, wording).id
        except StudioError as error:
            raise told(error) from None

    def written(self, job_id: str, dataset: str, rows: Any) -> Any:
        """Return the rows with the captions that were written; what was typed meanwhile stays."""
        try:
            if not job_id or not dataset or self.jobs.get(job_id).spec["dataset"] != dataset:
                return gr.skip()
            typed: list[Mapping[str, Any]] = [one for one in records(rows) if str(one.get("caption") or "").strip()]
            keep_words(self.jobs.datasets, dataset, typed)
            return rows_of(self.jobs.datasets, dataset)
        except StudioError as error:
            raise told(error) from None

    def said(self) -> list[Any]:
        """The components that show progress."""
        return [self.progress, self.stop]

    def nothing(self) -> tuple[Any, ...]:
        """Return an empty panel."""
        return "", shown(False)

    def seen(self, seen: JobMessages) -> tuple[Any, ...]:
        """Return how far the captions are; once they are written, the pictures left without."""
        if seen.job.state != "done":
            return progress(seen), shown(not seen.job.ended)
        return "".join(f'<p class="hint">{escape(note)}</p>' for note in seen.notes), shown(False)
