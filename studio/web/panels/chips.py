"""Learned concepts on the page: chips to switch on, the example on offer, and the words they put into a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from pipelines.concepts.compatibility import base_files
from studio.jobs.jobs import Jobs
from studio.library import concepts
from studio.web.components import records
from studio.web.panels.watching import picture_uri

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
            "least": max(entry.card.strengths[0], -2.0) if entry.card.kind == "slider" else 0.0,
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
        if chip.get("on") or (chip.get("token") and chip.get("kind") != "slider" and chip["token"] in said)
    ]
