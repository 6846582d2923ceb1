"""The page of base models: what there is, what each needs, which is used where, and how more get here."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.errors import ConfigError, StudioError
from studio.jobs.jobs import Jobs
from studio.library.bases import FoundBase, facts_of, size
from studio.web.components import concept_cards, told_by
from studio.web.models.choice import ALL, KEEP, PAGES, BaseChoice
from studio.web.models.importing import Importing
from studio.web.panels.following import Following, shown, told
from studio.web.panels.watching import JobMessages, facts, progress

EMPTY = "There is no base model."
CLOSED = (
    "This server fetches nothing from the network. Whoever starts it can allow that: <code>studio serve --download"
    "</code>."
)


def cards_of(jobs: Jobs) -> list[dict[str, Any]]:
    """Return the bases as values of `concept_cards`."""
    return [
        {
            "id": one.name,
            "token": one.name,
            "kind": "cannot be used" if one.card.problem else one.card.title or "known once it is loaded",
            "base": size(one.card.bytes) if one.card.bytes else "",
            "picture": "",
            "words": one.card.problem or one.card.licence,
        }
        for one in jobs.bases.found()
    ]


def told_of(one: FoundBase) -> str:
    """Return HTML of what a base says of itself."""
    return f"<h2>{escape(one.name)}</h2>{facts(list(facts_of(one.card).items()))}"


class Download(Following):
    """A download from the hub; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(jobs, "download", "download")
        closed = not jobs.downloads.allowed
        gr.HTML(f'<p class="hint">{CLOSED}</p>', js_on_load=None, visible=closed)
        with gr.Row(visible=not closed):
            self.model = gr.Textbox(
                label="Fetch from huggingface.co",
                placeholder="owner/name, for example stable-diffusion-v1-5/stable-diffusion-v1-5",
                max_length=200,
                scale=4,
                elem_id="hub-id",
            )
            self.go = gr.Button("Fetch", scale=1, min_width=90, elem_classes="beside", elem_id="fetch")
        self.progress = gr.HTML(elem_id="download-progress", js_on_load=None)
        self.stop = gr.Button("Cancel", visible="hidden", size="sm", elem_id="download-stop")
        self.stop.click(self.cancel, self.job, api_name="cancel_download")
        self.submitted(self.go.click(self.ask, self.model, self.job, api_name="download"))

    def ask(self, model: str) -> str:
        """Order a download; return the id of its job."""
        try:
            return self.jobs.downloads.submit(model or "").id
        except StudioError as error:
            raise told(error) from None

    def said(self) -> list[Any]:
        """The components that show progress."""
        return [self.progress, self.stop]

    def nothing(self) -> tuple[Any, ...]:
        """Return an empty panel."""
        return "", shown(False)

    def seen(self, seen: JobMessages) -> tuple[Any, ...]:
        """Return the state of a download."""
        return progress(seen), shown(not seen.job.ended)


class ModelsPage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs, choice: BaseChoice) -> None:
        self.jobs, self.choice = jobs, choice
        self.chosen = gr.Textbox(visible="hidden", label="Base model", elem_id="model-id")
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=300):
                self.cards = concept_cards(EMPTY, title="Base models", elem_id="models", elem_classes="bases")
                self._more()
            with gr.Column(scale=4, min_width=300):
                self._one()
        self._wire()

    def _more(self) -> None:
        folder = Path(*self.jobs.places.models[0].parts[-2:])
        gr.HTML(
            f"<h2>More models</h2><p>Put a folder in the layout of diffusers, or a .safetensors checkpoint, into the "
            f"folder <code>{folder}</code> of the studio. Then look again: nothing has to be started anew.</p>",
            js_on_load=None,
        )
        self.look = gr.Button("Look again", size="sm", elem_id="look-again")
        self.download = Download(self.jobs)
        self.importing = Importing(self.jobs, "LoRA and embeddings of other programs become concepts", "models-import")

    def _one(self) -> None:
        with gr.Column(visible=False, elem_id="model") as self.one:
            self.facts = gr.HTML(js_on_load=None, elem_id="model-facts")
            pages = [("all pages", ALL), *((label, page) for page, label in PAGES.items())]
            self.pages = gr.Radio(pages, value=ALL, label="Use it on", elem_id="model-pages")
            self.use = gr.Button("Use this model", variant="primary", elem_id="use-model")

    def _wire(self) -> None:
        picked = [self.chosen, self.one, self.facts, self.use]
        self.cards.pick(self.pick, None, picked, api_visibility="private")
        self.look.click(self.refresh, None, [self.cards, self.choice.list], api_visibility="private")
        asked = [self.chosen, self.pages, self.choice.kept]
        used = self.use.click(self.take, asked, [self.choice.list, self.choice.kept], api_visibility="private")
        used.success(None, self.choice.kept, self.choice.kept, js=KEEP)
        self.download.progress.change(self.refresh, None, [self.cards, self.choice.list], api_visibility="private")

    def refresh(self) -> tuple[list[dict[str, Any]], Any]:
        """Return the cards and the list of bases as they are now."""
        return cards_of(self.jobs), self.choice.update()

    def pick(self, picked: gr.EventData) -> tuple[Any, ...]:
        """Show the base that was clicked."""
        name = told_by(picked, "id")
        one = next((one for one in self.jobs.bases.found() if one.name == name), None)
        if one is None:
            raise told(ConfigError(f"{name!r:.60} is no longer there.", "Look again."))
        return name, gr.update(visible=True), told_of(one), gr.update(interactive=not one.card.problem)

    def take(self, name: str, pages: str, kept: str) -> tuple[Any, str]:
        """Choose a base for one page, or for all."""
        if name not in self.jobs.bases or pages not in (ALL, *PAGES):
            raise told(ConfigError(f"{name!r:.60} cannot be used.", "Choose another one."))
        where = "all pages" if pages == ALL else PAGES[pages]
        gr.Info(f"{escape(name)} is used on {where}.")
        return self.choice.update(name), self.choice.choose(name, pages, kept)
