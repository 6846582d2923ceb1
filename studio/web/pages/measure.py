"""The page of figures: stored scores of concepts side by side, and the losses of their trainings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.concepts.card import ConceptCard
from pipelines.errors import ConfigError, StudioError
from studio.jobs.jobs import Job, Jobs
from studio.library import concepts
from studio.web.panels.chips import choices_of
from studio.web.panels.following import told
from studio.web.panels.scores import ScoresPanel
from studio.web.panels.watching import curve

BASELINES = ("_word", "_chance")
"""Ends of figures that stand beside another: of the class word, and of guessing."""

POINTS = 200  # of a curve
LOG_LIMIT = 4 << 20  # bytes
NONE = "No figures yet. Trainings keep their losses; a concept from Teach is measured when its training ends."


def table(cards: Sequence[ConceptCard]) -> str:
    """Return HTML of the scores: a row for each concept, a column for each figure, a bar in each cell."""
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
    """Return HTML of the losses of a training, from the log beside the concept; empty without one."""
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
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.concepts = gr.Dropdown([], multiselect=True, label="Concepts to compare", elem_id="compared")
        self.shown = gr.HTML(f'<p class="hint">{NONE}</p>', js_on_load=None, elem_id="figures")
        with gr.Accordion("Measure a concept", open=False), gr.Row():
            self.concept = gr.Dropdown([], label="Concept", min_width=160, elem_id="measured")
            self.pictures = gr.Dropdown([], label="Compare with these pictures", min_width=200, elem_id="measured-with")
            self.go = gr.Button("Measure", variant="primary", min_width=120, elem_id="measure", elem_classes="beside")
        self.scores = ScoresPanel(jobs, "score")
        self.concepts.change(self.compare, self.concepts, self.shown, api_name="compare")
        self.concept.change(self.taught_with, self.concept, self.pictures, api_visibility="private")
        self.scores.submitted(
            self.go.click(self.submit, [self.concept, self.pictures], self.scores.job, api_name="score")
        )

    def refresh(self, chosen: list[str] | None, measured: str | None) -> tuple[Any, Any, Any]:
        """Return the concepts there are now, all compared at first, and the pictures they can be measured with."""
        known = choices_of(self.jobs)
        ids = [identity for _, identity in known]
        one = measured if measured in ids else next(iter(ids), None)
        return (
            gr.update(choices=known, value=[one for one in chosen or () if one in ids] or ids[:8]),
            gr.update(choices=known, value=one),
            self.taught_with(one),
        )

    def taught_with(self, concept: str | None) -> Any:
        """Return the pictures there are, those that a concept was taught with first."""
        there = [(f"{one.name}, {one.pictures} pictures", one.id) for one in self.jobs.datasets.list() if one.pictures]
        ids = [identity for _, identity in there]
        own = [job.spec["dataset"] for job in self._trainings(concept) if job.spec["dataset"] in ids]
        return gr.update(choices=there, value=next(iter([*own, *ids]), None))

    def _trainings(self, concept: str | None) -> list[Job]:
        """Return trainings that gave a concept, the newest first."""
        done = self.jobs.list("training", ("done",), 1000)
        return [job for job in done if any(Path(name).stem == concept for name in job.results)]

    def submit(self, concept: str | None, dataset: str | None) -> str:
        """Queue a measurement; return the id of the job."""
        base = next((job.spec["base"] for job in self._trainings(concept)), next(iter(self.jobs.bases)))
        try:
            if not concept or not dataset:
                raise ConfigError("There is nothing to measure yet.", "Teach a concept first; its pictures are kept.")
            return self.jobs.submit_score(concept, dataset, base).id
        except StudioError as error:
            raise told(error) from None

    def compare(self, chosen: list[str]) -> str:
        """Return HTML of the figures of some concepts."""
        entries = [entry for entry in concepts.scan(self.jobs.learned) if entry.card and entry.name in chosen]
        cards = [entry.card for entry in entries if entry.card]
        drawn = "".join(losses(entry.path, f"Loss of {card.token}") for entry, card in zip(entries, cards, strict=True))
        said = table(cards) + (f'<div class="curves">{drawn}</div>' if drawn else "")
        return said or f'<p class="hint">{NONE}</p>'
