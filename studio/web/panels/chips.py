"""Learned concepts on the page: chips to switch on, the example on offer, and the words they put into a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from pipelines.concepts.compatibility import base_files
from pipelines.request.texts import encodable
from studio.jobs.jobs import Jobs
from studio.library import concepts
from studio.library.thumbnails import stamp_of
from studio.web.components import records, told_by

INSERT = """(chips, prompt) => {
  let text = prompt || '';
  for (const chip of chips || []) {
    const there = text.includes(chip.token);
    if (chip.kind === 'slider') continue;
    if (chip.on && !there) text = (text.trim() ? text.trim() + ' ' : 'a ') + chip.token;
    if (!chip.on && there) text = text.split(chip.token).join('').replace(/ +/g, ' ').trim();
  }
  return text;
}"""
"""Puts the word of a chip that is switched on into the prompt, and takes it out again; a slider has none."""


SHOWN = 24
"""Chips that are shown beside those switched on; others are found by a search."""


def address(path: Path) -> str:
    """Return the address of the small preview of a concept, which changes with the preview; empty without one."""
    stamp = stamp_of(path)
    return f"/api/v1/concepts/{quote(path.stem, safe='')}/preview?v={stamp}" if stamp and encodable(path.stem) else ""


def chips_of(
    jobs: Jobs, base: str, on: Sequence[str] = (), strengths: dict[str, float] | None = None, search: str = ""
) -> list[dict[str, Any]]:
    """Return concepts as values of `concept_chips`: those switched on, and the first others that hold all words.

    Args:
        jobs: of the server.
        base: id of the base.
        on: ids that are switched on, if they go with the base.
        strengths: of those.
        search: words of those that are looked for.
    """
    if not jobs.learned.is_dir():
        return []
    files, words = base_files(jobs.bases.get(base, "")), search.lower().split()
    usable = [entry for entry in concepts.scan(jobs.learned) if entry.card is not None]
    wanted = {entry.path for entry in islice((one for one in usable if one.holds(words)), SHOWN)}
    chips: list[dict[str, Any]] = []
    for entry in usable:
        if entry.card is None or not (entry.path in wanted or entry.name in on):
            continue
        problem = files.misfit(entry.card)
        chips.append(
            {
                "id": entry.name,
                "token": entry.card.token,
                "kind": entry.card.kind,
                "picture": address(entry.path),
                "on": entry.name in on and not problem,
                "strength": (strengths or {}).get(entry.name, 1.0),
                "least": max(entry.card.strengths[0], -2.0) if entry.card.kind == "slider" else 0.0,
                "problem": problem,
            }
        )
    return chips


def switched_on(chips: Sequence[Any]) -> dict[str, float]:
    """Return the strengths of the chips that are switched on, by id."""
    return {str(chip.get("id", "")): float(chip.get("strength", 1.0)) for chip in records(chips) if chip.get("on")}


def wire_search(jobs: Jobs, base: gr.Dropdown, chips: gr.HTML) -> None:
    """Let the search of chips find concepts of the library."""

    def find(base: str, shown: list[dict[str, Any]], asked: gr.EventData) -> list[dict[str, Any]]:
        on = switched_on(shown)
        return chips_of(jobs, base, list(on), on, told_by(asked, "text"))

    chips.find(find, [base, chips], chips, api_visibility="private", show_progress="hidden")  # pyright: ignore[reportAttributeAccessIssue]


def choices_of(jobs: Jobs) -> list[tuple[str, str]]:
    """Return word and id of all concepts, for a list in which the browser finds what is typed."""
    return [(entry.card.token, entry.name) for entry in concepts.scan(jobs.learned) if entry.card]


def tokens_for(jobs: Jobs, base: str) -> list[str]:
    """Return the words of all concepts that go with a base."""
    if not jobs.learned.is_dir():
        return []
    files = base_files(jobs.bases.get(base, ""))
    cards = [entry.card for entry in concepts.scan(jobs.learned)]
    return [card.token for card in cards if card is not None and not files.misfit(card)]


def offered(jobs: Jobs) -> bool:
    """Return whether the example concept can be added: it exists, and is not in the library."""
    return concepts.EXAMPLE.is_file() and not (jobs.learned / concepts.EXAMPLE.name).exists()


def offer_button(jobs: Jobs) -> gr.Button:
    """Return the button that adds the example concept; made inside `gr.Blocks`."""
    there = True if offered(jobs) else "hidden"
    return gr.Button("Add the example concept: a wolf", size="sm", min_width=90, visible=there, elem_classes="offer")


def concepts_used(jobs: Jobs, chips: Sequence[dict[str, Any]] | None, *texts: str) -> list[dict[str, Any]]:
    """Return the concepts of a request: those switched on, and all of the library whose word a text says."""
    said = "\n".join(texts)
    shown = {str(chip.get("id", "")): chip for chip in records(chips)}
    used = [name for name, chip in shown.items() if chip.get("on")]
    if jobs.learned.is_dir():
        there = ((entry.name, entry.card) for entry in concepts.scan(jobs.learned))
        called = ((name, card) for name, card in there if card is not None and card.kind != "slider")
        used += [name for name, card in called if card.token and card.token in said]
    return [
        {"source": name, "strength": shown.get(name, {}).get("strength", 1.0)} for name in sorted(dict.fromkeys(used))
    ]
