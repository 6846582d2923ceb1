"""Prompts: the words of a base, earlier prompts, saved styles, and words that are drawn by lot."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from pipelines.errors import RequestError, StudioError
from pipelines.models.known_words import known_words
from studio.jobs.jobs import Jobs
from studio.library.styles import Styles, applied
from studio.web.components import fold
from studio.web.panels.following import told

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
NAMED = re.compile(r"__([a-z-]+)__")
NONE = ("none", "")
TRIES = 20
"""Draws until a prompt differs from those drawn before."""


def lists_of(base: str) -> dict[str, tuple[str, ...]]:
    """Return the lists that `__name__` draws from: things of each kind, all things, and colours of a base."""
    words = known_words(base)
    if words is None:
        return {}
    groups = {group.replace(" ", "-"): names for group, names in words.things.items()}
    return {**groups, "thing": words.names, "colour": words.colours, "relation": words.relations}


def words_of(jobs: Jobs, base: str, learned: Iterable[str]) -> dict[str, Any]:
    """Return the words that a prompt can use, as the value of `base_words`.

    Args:
        jobs: of the server.
        base: id of the base.
        learned: words of concepts that go with it.
    """
    told: dict[str, Any] = {"base": base, "learned": list(learned)}
    words = known_words(jobs.bases.get(base, ""))
    if words is None:
        return told
    return told | {
        "things": {group: list(names) for group, names in words.things.items()},
        "colours": list(words.colours),
        "relations": list(words.relations),
        "known": sorted(words.words),
        "kinds": dict(words.kinds),
        "plurals": dict(words.plurals),
        "nearest": dict(words.nearest),
    }


def drawn(prompt: str, seed: int, lists: Mapping[str, Sequence[str]]) -> str:
    """Return a prompt with one of the words drawn for each `{a|b|c}` and each `__list__`, the same for a seed.

    Raises:
        RequestError: if there is no list of a name.
    """
    lot = random.Random(seed)

    def named(found: re.Match[str]) -> str:
        if found[1] not in lists:
            known = ", ".join(f"__{name}__" for name in lists) or "none for this base"
            raise RequestError(f"There is no list {found[0]}.", f"There are: {known}.")
        return lot.choice(list(lists[found[1]]))

    text = NAMED.sub(named, prompt)
    return CHOICE.sub(lambda found: lot.choice(found[1].split("|")).strip(), text)


def by_lot(prompt: str) -> bool:
    """Return whether words of a prompt are drawn by lot."""
    return bool(CHOICE.search(prompt) or NAMED.search(prompt))


def several(prompt: str, seed: int, count: int, lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Return up to `count` different prompts drawn from one; raises as `drawn`."""
    found: dict[str, None] = {}
    for more in range(count * TRIES):
        found.setdefault(drawn(prompt, seed + more, lists))
        if len(found) == count:
            break
    return list(found)


class Phrasing:
    """Components for styles and earlier prompts; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.styles = jobs, Styles(jobs.folder)
        with fold("Styles and earlier prompts", "phrasing"):
            self.earlier = gr.Dropdown([], label="Earlier prompts", elem_id="earlier")
            self.style = gr.Dropdown([NONE], value="", label="Style added to the prompt", elem_id="style")
            with gr.Row():
                self.text = gr.Textbox(
                    label="Words of the style",
                    placeholder="on a teal background, or: a flat sticker of {prompt}",
                    min_width=200,
                    elem_id="style-words",
                )
                self.name = gr.Textbox(label="Its name", max_length=60, min_width=110, elem_id="style-name")
            with gr.Row(elem_classes="examples"):
                self.save = gr.Button("Save the style", size="sm", elem_id="save-style")
                self.delete = gr.Button("Delete the chosen style", size="sm", elem_id="delete-style")

    def wire(self, prompt: Any) -> None:
        """Put an earlier prompt into the field, and keep styles."""
        private: dict[str, Any] = {"api_visibility": "private"}
        self.earlier.input(lambda text: text or gr.skip(), self.earlier, prompt, **private)
        self.style.input(self.shown, self.style, [self.text, self.name], **private)
        fields = [self.style, self.text, self.name]
        self.save.click(self.ask_save, [self.name, self.text], fields, **private)
        self.delete.click(self.ask_delete, self.style, fields, **private)

    def refresh(self) -> tuple[Any, Any]:
        """Return the earlier prompts and the styles there are."""
        return gr.update(choices=self.jobs.history.prompts(), value=None), gr.update(choices=[NONE, *self.styles.all()])

    def shown(self, name: str) -> tuple[str, str]:
        """Return words and name of a style."""
        return self.styles.all().get(name, ""), name or ""

    def ask_save(self, name: str, text: str) -> tuple[Any, ...]:
        """Keep a style, and choose it."""
        try:
            self.styles.save(name or "", text or "")
        except StudioError as error:
            raise told(error) from None
        return gr.update(choices=[NONE, *self.styles.all()], value=name.strip()), text, name

    def ask_delete(self, name: str) -> tuple[Any, ...]:
        """Forget the chosen style."""
        self.styles.delete(name or "")
        return gr.update(choices=[NONE, *self.styles.all()], value=""), "", ""

    def said(self, prompt: str, style: str | None) -> str:
        """Return a prompt in a style."""
        return applied(self.styles.all().get(style or "", ""), prompt)
