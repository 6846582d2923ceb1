"""The page of figures: stored scores of concepts side by side, and how their trainings went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.card import ConceptCard
from studio import catalogue
from studio.jobs import Jobs
from studio.web.watching import curve

BASELINES = ("_word", "_chance")
"""Ends of figures that stand beside another: of the class word, and of guessing."""

POINTS = 200  # of a curve
LOG_LIMIT = 4 << 20  # bytes
NONE = "Nothing is stored yet. <code>studio score</code> measures a concept; trainings keep their losses by themselves."


def table(cards: Sequence[ConceptCard]) -> str:
    """HTML of the scores: a row for each concept, a column for each figure, a bar in each cell."""
    names = list(dict.fromkeys(name for card in cards for name in card.scores if not name.endswith(BASELINES)))
    if not names:
        return ""
    largest = {name: max(1.0, *(abs(card.scores.get(name, 0.0)) for card in cards)) for name in names}
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(card.token)} <small>{escape(card.method)}</small></th>"
        + "".join(_cell(card.scores, name, largest[name]) for name in names)
        + "</tr>"
        for card in cards
    )
    return f'<div class="scroll"><table class="scores"><tr><th></th>{head}</tr>{rows}</table></div>'


def _cell(scores: Mapping[str, float], name: str, largest: float) -> str:
    if (value := scores.get(name)) is None:
        return "<td></td>"
    beside = [f"{end.removeprefix('_')} {scores[name + end]:.3f}" for end in BASELINES if name + end in scores]
    said = f" <small>{escape(', '.join(beside))}</small>" if beside else ""
    bar = f'<span class="bar{" below" if value < 0 else ""}" style="width:{abs(value) / largest:.0%}"></span>'
    return f"<td>{bar}{value:.3f}{said}</td>"


def losses(path: Path, title: str) -> str:
    """HTML of the losses of a training, from the log beside the concept; empty without one."""
    log = path.with_suffix(".losses.jsonl")
    try:
        if log.stat().st_size > LOG_LIMIT:
            return ""
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line]
        points = [(float(row["step"]), float(row["denoise"])) for row in rows if "denoise" in row]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # no log, or one of another program
    return curve(points[:: max(1, len(points) // POINTS)], title)


class MeasurePage:
    """Components of the page and what happens to them; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.concepts = gr.Dropdown([], multiselect=True, label="Concepts to compare", elem_id="compared")
        self.shown = gr.HTML(f'<p class="hint">{NONE}</p>', js_on_load=None, elem_id="figures")
        self.concepts.change(self.compare, self.concepts, self.shown, api_name="compare")

    def refresh(self, chosen: list[str] | None) -> Any:
        """The concepts there are now; all of them are compared at first."""
        known = [(entry.card.token, entry.path.stem) for entry in catalogue.scan(self.jobs.learned) if entry.card]
        ids = [identity for _, identity in known]
        return gr.update(choices=known, value=[one for one in chosen or () if one in ids] or ids[:8])

    def compare(self, chosen: list[str]) -> str:
        """HTML of the figures of some concepts."""
        entries = [entry for entry in catalogue.scan(self.jobs.learned) if entry.card and entry.path.stem in chosen]
        cards = [entry.card for entry in entries if entry.card]
        drawn = "".join(losses(entry.path, f"Loss of {card.token}") for entry, card in zip(entries, cards, strict=True))
        said = table(cards) + (f'<div class="curves">{drawn}</div>' if drawn else "")
        return said or f'<p class="hint">{NONE}</p>'
