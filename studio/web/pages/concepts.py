"""The page of concepts: cards, search, import and export, another word, the trash."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.concepts.headers import FAMILY_NAMES
from pipelines.errors import ConceptError, StudioError
from pipelines.words import check_word
from studio.jobs.jobs import Jobs
from studio.library import concepts
from studio.web.components import concept_cards, told_by
from studio.web.models.commands import concept_command
from studio.web.models.importing import Importing
from studio.web.panels.chips import address, offer_button, offered
from studio.web.panels.following import shown, told
from studio.web.panels.watching import facts

DIALECTS = {"A1111, ComfyUI, kohya": "a1111", "ComfyUI by itself": "comfyui", "diffusers": "diffusers", "PEFT": "peft"}
EMPTY = "Nothing is here yet. Teach something, or import a file of another program."


SHOWN = 60
"""Concepts that are shown at first, and more at each press."""


def cards_of(jobs: Jobs, search: str = "", most: int = SHOWN) -> list[dict[str, Any]]:
    """Return the first of the library, that hold all words of `search`, as values of `concept_cards`."""
    return [_card(entry) for entry in concepts.search(jobs.learned, search)[:most]]


def _card(entry: concepts.Entry) -> dict[str, Any]:
    name, card = entry.name, entry.card
    if card is None:
        return {"id": name, "token": name, "kind": "damaged", "base": "", "picture": "", "words": entry.problem}
    figures = [f"{key.replace('_', ' ')} {value:.2f}" for key, value in card.scores.items() if "_" not in key]
    return {
        "id": name,
        "token": card.token,
        "kind": f"{card.kind}, {card.method}",
        "base": f"for {FAMILY_NAMES.get(card.family, 'an unknown base')}",
        "picture": address(entry.path),
        "words": ", ".join(figures),
    }


def told_of(path: Path) -> str:
    """Return the card of a concept as HTML."""
    card = concepts.read_card(path)
    rows = card.model_dump(exclude={"recipe", "scores"}) | {name: f"{one:.3f}" for name, one in card.scores.items()}
    plain = [(name.replace("_", " "), value) for name, value in rows.items() if value != ""]
    plain.append(("elsewhere", concepts.elsewhere(path)))
    recipe = [(name, value) for name, value in card.recipe.items() if value is not None]
    more = f"<details><summary>How it was taught</summary>{facts(recipe)}</details>" if recipe else ""
    return facts(plain) + more


def offers(path: Path) -> Any:
    """Return an update of the export formats to choose from."""
    possible = concepts.dialects(path)
    names = [name for name, dialect in DIALECTS.items() if dialect in possible]
    return gr.update(choices=names, value=names[0] if names else None)


class LibraryPage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.chosen = gr.Textbox(visible="hidden", label="Concept", elem_id="concept-id")
        self.thrown = gr.State("")
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=320):
                self.search = gr.Textbox(label="Search", placeholder="a word, a kind, a base", elem_id="search")
                self.offer = offer_button(self.jobs)
                self.undo = gr.Button("Undo", visible="hidden", size="sm", elem_id="undo")
                self.cards = concept_cards(EMPTY, elem_id="cards")
                self.more = gr.Button("Show more", size="sm", visible="hidden", elem_id="more-concepts")
                self.importing = Importing(self.jobs, "Import a file of another program", "import")
            with gr.Column(scale=4, min_width=300):
                self._actions()
        self._wire()

    def _actions(self) -> None:
        with gr.Column(visible=False) as self.one:
            self.facts = gr.HTML(js_on_load=None, elem_id="concept-facts")
            self.use = gr.Button("Generate with it", variant="primary")
            with gr.Row():
                self.word = gr.Textbox(label="Another word for it", max_length=100, scale=3, min_width=140)
                self.rename = gr.Button("Rename", scale=1, min_width=90, elem_classes="beside")
            with gr.Row():
                self.dialect = gr.Dropdown(
                    list(DIALECTS), label="For other programs", scale=3, min_width=140, elem_id="dialect"
                )
                self.export = gr.Button("Export", scale=1, min_width=90, elem_classes="beside")
            self.exported = gr.File(label="Exported", visible=False, file_count="multiple", interactive=False)
            self.delete = gr.Button("Delete", variant="stop", elem_id="delete")

    def _wire(self) -> None:
        picked = [self.chosen, self.one, self.facts, self.word, self.exported, self.dialect]
        self.search.change(self.refresh, self.search, self.cards, api_visibility="private")
        around = [self.offer, self.more]
        self.cards.change(self.around, [self.search, self.cards], around, api_visibility="private")
        self.more.click(self.further, [self.search, self.cards], self.cards, api_visibility="private")
        self.cards.pick(self.pick, None, picked, api_visibility="private")
        changed = [self.cards, self.chosen, self.one]
        for button, busy, act, inputs, outputs, name in (
            (
                self.rename,
                "Renaming…",
                self.ask_rename,
                [self.chosen, self.word, self.search],
                changed,
                "rename_concept",
            ),
            (
                self.export,
                "Exporting…",
                self.ask_export,
                [self.chosen, self.dialect],
                [self.exported],
                "export_concept",
            ),
        ):  # each starts a process that takes seconds, and says so meanwhile
            button.click(
                lambda said=busy: gr.update(value=said, interactive=False), None, button, api_visibility="private"
            )
            button.click(act, inputs, outputs, api_name=name).then(
                lambda said=str(button.value): gr.update(value=said, interactive=True),
                None,
                button,
                api_visibility="private",
            )
        self.delete.click(
            self.ask_delete, [self.chosen, self.search], [*changed, self.undo, self.thrown], api_name="delete_concept"
        )
        self.undo.click(
            self.ask_undo, [self.thrown, self.search], [self.cards, self.undo, self.thrown], api_visibility="private"
        )
        self.importing.taken.then(self.refresh, self.search, self.cards, api_visibility="private")

    def refresh(self, search: str) -> list[dict[str, Any]]:
        """Return the first cards as they are now."""
        return cards_of(self.jobs, search)

    def further(self, search: str, cards: Sequence[Any]) -> list[dict[str, Any]]:
        """Return more cards than are shown."""
        return cards_of(self.jobs, search, len(cards) + SHOWN)

    def around(self, search: str, cards: Sequence[Any]) -> tuple[Any, Any]:
        """Return whether the example is on offer, and the button for more cards with how many there are."""
        hidden = len(concepts.search(self.jobs.learned, search)) - len(cards)
        more = gr.update(visible=True if hidden > 0 else "hidden", value=f"Show more of {hidden:,}")
        return shown(offered(self.jobs)), more

    def pick(self, picked: gr.EventData) -> tuple[Any, ...]:
        """Show the card that was clicked."""
        try:
            path = self.jobs.places.concept(told_by(picked, "id"))
            card = concepts.read_card(path)
        except StudioError as error:
            raise told(error) from None
        return path.stem, gr.update(visible=True), told_of(path), card.token, gr.update(visible=False), offers(path)

    async def ask_rename(self, concept: str, word: str, search: str) -> tuple[Any, ...]:
        """Give a concept another word."""
        try:
            path = self.jobs.places.concept(concept)
            word = (word or "").strip()
            check_word(word, "Use one plain word without spaces, for example <my-cat>.")
            if word.startswith("-"):
                raise ConceptError(f"{word!r:.60} is no word to use in prompts.", "For example <my-cat>.")
            self.jobs.require_renamable(path.stem, word)
            new = await concept_command("rename", path.stem, word, "--library", str(self.jobs.learned))
        except StudioError as error:
            raise told(error) from None
        return self.refresh(search), Path(new).stem, gr.update(visible=False)

    async def ask_export(self, concept: str, dialect: str) -> Any:
        """Write a concept for other programs."""
        try:
            path = self.jobs.places.concept(concept)
            if dialect not in DIALECTS:
                raise ConceptError(f"There is no layout {dialect!r:.60}.", f"There are: {', '.join(DIALECTS)}.")
            output = self.jobs.folder / "exports" / f"{path.stem}-{DIALECTS[dialect]}"
            shutil.rmtree(output, ignore_errors=True)
            words = ("export", path.stem, "--for", DIALECTS[dialect], "--output", str(output))
            written = await concept_command(*words, "--library", str(self.jobs.learned))
        except StudioError as error:
            raise told(error) from None
        # PEFT's layout is a folder, with a configuration beside the numbers.
        files = [shutil.make_archive(str(output), "zip", output)] if dialect == "PEFT" else written.splitlines()
        return gr.update(value=files, visible=True)

    def ask_delete(self, concept: str, search: str) -> tuple[Any, ...]:
        """Move a concept to the trash."""
        try:
            thrown = self.jobs.discard_concept(concept)
        except StudioError as error:
            raise told(error) from None
        return (
            self.refresh(search),
            "",
            gr.update(visible=False),
            gr.update(visible=True, value=f"Undo: bring {concept} back"),
            thrown,
        )

    def ask_undo(self, thrown: str, search: str) -> tuple[Any, ...]:
        """Bring back the concept that was deleted last."""
        try:
            self.jobs.restore(thrown)
        except StudioError as error:
            raise told(error) from None
        return self.refresh(search), gr.update(visible="hidden"), ""
