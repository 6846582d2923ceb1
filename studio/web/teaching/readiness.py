"""The readiness line of a training: what its form still lacks, in words for people, and how long it may take."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pipelines.errors import StudioError
from pipelines.models.known_words import known_words
from pipelines.words import check_word, file_stem
from studio.jobs.jobs import Jobs
from studio.web.panels.subjects import What
from studio.web.panels.watching import spoken

ENOUGH = 3
"""Pictures below which a training is worse than it could be."""


def wrong_with(jobs: Jobs, what: What, token: str, start: str, base: str) -> Iterator[str]:
    """Return what is wrong with the words of a training, or missing; nothing if it can begin with them.

    Args:
        jobs: of the server.
        what: the kind of learning.
        token: the new word.
        start: the word of the base that learning starts from.
        base: id of the base.
    """
    if what.words and not token:
        yield "The new word is missing: write one, for example <my-wolf>."
    elif what.words:
        yield from _wrong_with_new(jobs, token, base, what.says_word)
    if len(what.words) > 1 and what.words[1] == "between":
        yield from _wrong_with_ends(start, what)
    elif len(what.words) > 1:
        yield from _wrong_with_start(what, start, jobs.bases.get(base, ""), base)


def _wrong_with_new(jobs: Jobs, token: str, base: str, said: bool) -> Iterator[str]:
    try:
        check_word(token)
        stem = file_stem(token)
    except StudioError:
        yield f"“{token}” cannot be said in a prompt: use one word without spaces or brackets, such as <my-wolf>."
        return
    words = known_words(jobs.bases.get(base, "")) if said else None
    if words is not None and token.lower() in words.words:
        yield f"{base} knows the word “{token}” already: put yours in angle brackets, <{token}>."
    if (jobs.learned / f"{stem}.safetensors").exists():
        yield f"A concept called {token} is there already: choose another word, or rename that one under Concepts."


def _wrong_with_start(what: What, start: str, path: str, base: str) -> Iterator[str]:
    words, example = known_words(path), list(what.offer.words.values())[1][1]
    if not start:
        yield f"A word that {base} knows is missing, to start from; for example {example}."
    elif words is not None and start.lower() not in words.words:
        if near := words.near(start):
            yield f"{base} has no word “{start}”; near ones: {', '.join(near)}."
        else:
            yield f"{base} has no word “{start}”; choose one that comes near, for example {example}."


def _wrong_with_ends(between: str, what: What) -> Iterator[str]:
    less, arrow, more = (part.strip() for part in between.partition("->"))
    if not (less and arrow and more):
        yield f"The two ends are missing, with an arrow between: {what.offer.words['between'][1]}."


def pace_of(jobs: Jobs, method: str, base: str) -> float | None:
    """Return the seconds that a step of the last training of a kind took on this machine; None if there was none."""
    for job in jobs.list("training", ("done",), 200):
        alike = job.spec["method"] == method and job.spec["base"] == base and not job.spec.get("dry_run")
        if alike and job.steps and job.started and job.finished:
            return (job.finished - job.started) / job.steps
    return None


def readiness(wrong: list[str], what: What, token: str, pictures: int, seconds: float | None) -> str:
    """Return HTML of what is there and what is missing.

    Args:
        wrong: sentences of `wrong_with`.
        what: the kind of learning.
        token: the new word.
        pictures: number of them.
        seconds: that the training may take; None if unknown.
    """
    lines: list[tuple[str, str]] = []
    if not pictures and not what.offer.pictures:
        lines.append(("yes", "No pictures are needed: the model draws its own."))
    elif not pictures:
        lines.append(("no", "Pictures are missing: drag some in, or use the example."))
    elif pictures == 1:
        lines.append(("some", "1 picture: it works, 3 to 10 work better."))
    elif pictures < ENOUGH:
        lines.append(("some", f"{pictures} pictures: it works, 3 to 10 work better."))
    else:
        lines.append(("yes", f"{pictures} pictures"))
    lines += [("no", one) for one in wrong]
    if not wrong and token:
        said = (
            f"You will say {token} in prompts." if what.says_word else f"You will switch {token} on, with a strength."
        )
        lines.append(("yes", said))
    signs = {"yes": "✓", "some": "!", "no": "✗"}
    listed = "".join(
        f'<li class="{kind}"><span aria-hidden="true">{signs[kind]}</span> {escape(said)}</li>' for kind, said in lines
    )
    long = f'<p class="hint">About {spoken(seconds)} on this machine.</p>' if seconds and not wrong else ""
    return f'<ul class="ready" aria-label="What is ready and what is missing">{listed}</ul>{long}'
