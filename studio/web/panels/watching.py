"""Following a job: its messages, live and after a reload alike."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.errors import StudioError
from studio.jobs.jobs import Job, Jobs

PAUSE = 0.4  # seconds between looks
STATES = {
    "queued": "Waiting for its turn",
    "running": "At work",
    "paused": "Paused",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}

ENDS = {
    "generation": "Your pictures are there",
    "training": "It is learned",
    "score": "It is measured",
    "import": "It is imported",
    "download": "It is there",
    "attention": "It is seen where words look",
    "caption": "The captions are written",
}
"""Titles of the page when a job of a kind is done."""


@dataclass
class JobMessages:
    """The messages of a job so far.

    Attributes:
        job: its record.
        notes: sentences it said, in order.
        steps: its step events: `step`, `steps`, `terms`, `seconds`.
        last: number of the last event read.
        phase: what it does now, such as loading its base; empty if it told nothing.
        ahead: what it waits for, in order.
    """

    job: Job
    notes: list[str] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0
    phase: str = ""
    ahead: tuple[str, ...] = ()

    def look(self, jobs: Jobs) -> bool:
        """Read new events; return whether there were any."""
        before = self.job, self.ahead
        self.job = jobs.get(self.job.id)
        waits = self.job.state == "queued"
        self.ahead = tuple(called(one) for one in jobs.waiting.ahead(self.job.id)) if waits else ()
        events = jobs.events(self.job.id, after=self.last)
        for event in events:
            self.last = event.seq
            if event.kind == "note":
                self.notes.append(str(event.data["text"]))
            elif event.kind == "step":
                self.steps.append(dict(event.data))
                self.phase = ""
            elif event.kind == "phase":
                self.phase = str(event.data["text"])
        return bool(events) or before != (self.job, self.ahead)


PROGRAMS = re.compile(r"/api/v1/|\bstudio [a-z]+|--[a-z]")
"""Marks of hints for the command line or REST, which nobody can follow on the page."""


def for_people(message: str, hint: str) -> str:
    """Return an error and what to do about it; what only programs can do is left out.

    >>> for_people("There is no base x.", "studio serve --base adds some."), for_people("No pictures.", "Add some.")
    ('There is no base x.', 'No pictures. Add some.')
    """
    return message if PROGRAMS.search(hint) else f"{message} {hint}".strip()


def called(job: Job) -> str:
    """Return what a job does, in some words."""
    if job.kind == "training":
        what = job.spec["settings"].get("token") or job.spec["method"]
        return f"{'checking pictures for' if job.spec.get('dry_run') else 'teaching'} {what}"
    if job.kind == "generation":
        return f"drawing “{str(job.spec.get('request', {}).get('prompt', ''))[:40]}”"
    if job.kind == "attention":
        return "looking where words look"
    if job.kind == "download":
        return f"fetching {job.spec.get('model')}"
    if job.kind == "caption":
        return "writing captions"
    return f"measuring {job.spec.get('concept')}" if job.kind == "score" else "importing a file"


def behind(ahead: Sequence[str]) -> str:
    """Return what a job waits for, in a sentence.

    >>> behind(["teaching <wolf>", "measuring wolf"])
    'after teaching <wolf> and 1 more'
    """
    more = f" and {len(ahead) - 1} more" if len(ahead) > 1 else ""
    return f"after {ahead[0]}{more}" if ahead else ""


def seen_now(jobs: Jobs, job_id: str) -> JobMessages | None:
    """Return a job as it is, with all its messages so far; None if there is none."""
    try:
        seen = JobMessages(jobs.get(job_id))
    except StudioError:
        return None
    seen.look(jobs)
    return seen


async def watched(jobs: Jobs, job_id: str) -> AsyncIterator[JobMessages]:
    """Yield a job whenever something about it is new, until it has ended.

    Raises:
        StudioError: if there is no such job.
    """
    seen = JobMessages(jobs.get(job_id))
    seen.look(jobs)
    yield seen
    while not seen.job.ended:
        await asyncio.sleep(PAUSE)
        if seen.look(jobs):
            yield seen


def picture_uri(path: Path, side: int = 160) -> str:
    """Return a picture, at most `side` pixels, as the address of an `<img>`; empty if it cannot be read."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return ""
    return _uri(path, (about.st_mtime_ns, about.st_size, about.st_ino), side)


@lru_cache(8192)
def _uri(path: Path, stamp: tuple[int, ...], side: int) -> str:
    """Return the address of a picture as it was when it had this stamp; a library is shown at each key of a search."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def spoken(seconds: float) -> str:
    """Return a duration in words.

    >>> spoken(7), spoken(150), spoken(7300)
    ('7 s', '2 min 30 s', '2 h 1 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def time_left(seen: JobMessages) -> str:
    """Return the time left at the speed of the last reports; empty while that is unknown."""
    if seen.job.state != "running" or len(seen.steps) < 2:
        return ""
    # A resumed run counts its seconds anew, so the pace is that of two reports of one run.
    first, last = seen.steps[-min(len(seen.steps), 20)], seen.steps[-1]
    if last["step"] <= first["step"] or last["seconds"] <= first["seconds"]:
        first = seen.steps[-2]
    done, took = last["step"] - first["step"], last["seconds"] - first["seconds"]
    return f"{spoken(took / done * (last['steps'] - last['step']))} left" if done > 0 and took > 0 else ""


def report(notes: Sequence[str]) -> str:
    """Return HTML of all messages of a job, in order and each once, warnings marked."""
    lines = "".join(
        f'<li class="{"warn" if one.startswith("Warning") else ""}">{escape(one)}</li>' for one in dict.fromkeys(notes)
    )
    return f'<ul class="notes">{lines}</ul>' if lines else ""


def progress(seen: JobMessages | None, picture: str = "") -> str:
    """Return HTML of the state, the bar and all notes.

    Args:
        seen: the job; None for nothing.
        picture: address of a preview.
    """
    if seen is None:
        return ""
    job = seen.job
    share = 1.0 if job.state == "done" else job.step / job.steps if job.steps else 0.0
    figures = (f"{job.step} of {job.steps} MiB" if job.kind == "download" else f"step {job.step} of {job.steps}") * (
        job.steps > 0
    )
    took = (job.finished or time.time()) - job.started if job.started else 0.0
    clock = f'<span data-seconds="{took:.1f}">{spoken(took)} so far</span>' if job.started else ""
    if job.ended:
        clock = escape(spoken(took)) if job.started else ""
    doing = seen.phase if job.state == "running" else behind(seen.ahead) if job.state == "queued" else ""
    words = [escape(word) for word in (doing, figures, time_left(seen)) if word] + [clock] * bool(clock)
    said = for_people(job.error, job.hint) if job.state == "failed" else ""
    image = f'<img src="{picture}" alt="preview">' if picture else ""
    moving = " moving" if job.state == "running" and not job.steps else ""
    return (
        f'<div class="progress {job.state}" data-job="{job.id}" data-state="{job.state}" data-done="{ENDS[job.kind]}"'
        f' data-told="{time.time_ns()}">'
        f'<div class="line"><b role="status">{STATES[job.state]}</b><span>{" · ".join(words)}</span></div>'
        f'<div class="track{moving}"><div class="done" style="width:{share:.1%}"></div></div>'
        + (f'<p class="failure" role="alert">{escape(said)}</p>' if said else "")
        + f"{report(seen.notes)}{image}</div>"
    )


def curve(points: Sequence[tuple[float, float]], title: str, width: int = 320, height: int = 120) -> str:
    """Return an SVG line through (step, value) points, with the ends of both axes written out."""
    if len(points) < 2:
        return ""
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    spread, length = (high - low) or 1.0, (xs[-1] - xs[0]) or 1.0
    line = " ".join(f"{(x - xs[0]) / length * width:.1f},{height - (y - low) / spread * height:.1f}" for x, y in points)
    return (
        f'<figure class="curve"><figcaption>{escape(title)} <b>{ys[-1]:.4g}</b></figcaption>'
        f'<svg viewBox="-2 -4 {width + 4} {height + 8}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)} from {ys[0]:.4g} to {ys[-1]:.4g}"><polyline points="{line}"/></svg>'
        f'<div class="ends"><span>{xs[0]:g}</span><span>{low:.4g} to {high:.4g}</span><span>{xs[-1]:g}</span></div>'
        "</figure>"
    )


def facts(rows: Sequence[tuple[str, object]]) -> str:
    """Return HTML of a table with a name and a value in each row."""
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f'<table class="facts">{lines}</table>'


def curves(seen: JobMessages) -> str:
    """Return HTML of the losses and figures over the steps."""
    names = dict.fromkeys(name for step in seen.steps for name in step.get("terms", {}))
    drawn = [
        curve([(step["step"], step["terms"][name]) for step in seen.steps if name in step.get("terms", {})], name)
        for name in names
    ]
    return f'<div class="curves">{"".join(drawn)}</div>'
