"""English sentences of the pages, gathered from what they are made of."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from pipelines import errors
from pipelines.concepts.card import ConceptCard
from pipelines.models.known_words import known_words
from pipelines.request.request import InContext, Inpaint, Request
from studio.web import help as helping
from studio.web.panels.subjects import OTHERS, WHATS, advice
from studio.web.panels.watching import ENDS, PROGRAMS, STATES

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "studio" / "web" / "static"
TOLD = {"Note", *(name for name in dir(errors) if name[0].isupper())}
"""Names that are called with a sentence for people: errors, and notes of jobs."""

ROOMS = ("pipelines", "studio/jobs", "studio/library", "studio/web", "studio/work", "trainers")
"""Folders whose errors a page can show."""

FAR = tuple(
    "trainers/pretrain trainers/__main__ pipelines/captions pipelines/masks/sam pipelines/measures "
    "pipelines/concepts/model_export studio/jobs/ray_engine studio/jobs/database".split()
)
"""Of these, what commands and whoever starts a server meet, and no page."""

PLACE = re.compile(r"\{\d\+?\}")


def plain(text: str) -> str:
    return " ".join(html.unescape(text).split())


def spoken(text: str) -> bool:
    """Return whether a text has words beside its values."""
    return len(re.findall(r"[A-Za-z]", PLACE.sub("", text))) > 1


def in_html(text: str) -> Iterator[str]:
    """Return the texts of HTML, and its attributes that are read."""
    yield from re.findall(r'(?:placeholder|title|aria-label|alt)="([^"]*)"', text)
    yield from re.split(r"<[^>]*>", re.sub(r"<(script|style|code)\b.*?</\1>", "<>", text, flags=re.DOTALL))


def of_config(config: dict[str, Any]) -> set[str]:
    """Return labels, help, placeholders, choices, buttons and texts of a page that its framework was told."""
    found: set[str] = set()
    for component in config["components"]:
        told, kind = component["props"], component["type"]
        found |= {told[name] for name in ("label", "info", "placeholder", "title", "empty", "hint") if told.get(name)}
        found |= {str(choice[0]) for choice in told.get("choices") or () if isinstance(choice, list | tuple)}
        found |= {label for _, label in told.get("acts") or ()}
        value = told.get("value")
        if kind in ("button", "markdown") and isinstance(value, str):
            found.add(value.replace("**", ""))
        if kind == "html":
            for text in (value, told.get("html_template")):
                found |= set(in_html(text)) if isinstance(text, str) else set()
    return {plain(text) for text in found if spoken(text)}


def of_help() -> set[str]:
    """Return the help of all controls, the tour, what is said of kinds of learning and jobs, groups of words."""
    controls = helping.controls().values()
    found = {text for one in controls for text in one} | {text for step in helping.TOUR for text in step[1:]}
    found |= {advice(name) for name in WHATS} | {label for label, _ in OTHERS}
    found |= {label for what in WHATS.values() for label, _ in what.offer.words.values()}
    found |= {*ENDS.values(), *STATES.values()}
    found |= set(in_html(re.sub(r"\{\w+\}", "", helping.text("help.html"))))
    base = known_words("pocket")
    return {plain(text) for text in (*found, *(base.things if base else ())) if spoken(text)}


def of_facts() -> set[str]:
    """Return the names of what pictures and concepts say about themselves."""
    told = {
        **Request(prompt="a fox").model_dump(),
        "inpaint": Inpaint.model_fields,
        "in_context": InContext.model_fields,
    }
    names = {f"{name} {one}" for name, value in told.items() if isinstance(value, dict) for one in value}
    names |= {name for name, value in told.items() if not isinstance(value, dict)} | {*ConceptCard.model_fields}
    return {name.replace("_", " ") for name in names} - {"recipe", "scores"}


def written(node: ast.AST) -> str | None:
    """Return a text as it is written in a source, with `{0}`, `{1}` for its values; None for what is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    parts, number = [], 0
    for part in node.values:
        parts.append(part.value if isinstance(part, ast.Constant) else f"{{{number}}}")
        number += not isinstance(part, ast.Constant)
    return "".join(map(str, parts))


def _sources(rooms: tuple[str, ...], without: tuple[str, ...] = ()) -> Iterator[Path]:
    for path in sorted(path for room in rooms for path in (ROOT / room).rglob("*.py")):
        if not path.relative_to(ROOT).as_posix().startswith(without):
            yield path


def of_errors() -> set[str]:
    """Return the sentences of errors and notes that a page can show, where they are written out."""
    found: set[str] = set()
    for path in _sources(ROOMS, FAR):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if getattr(called, "id", getattr(called, "attr", "")) in TOLD and isinstance(node, ast.Call):
                said = [text for text in map(written, node.args) if text]
                found |= {text for number, text in enumerate(said) if not number or not PROGRAMS.search(text)}
    return {plain(text) for text in found if spoken(text)}


def of_scripts() -> set[str]:
    """Return the sentences of the page's scripts; single words are found where a browser shows them."""
    found: set[str] = set()
    for path in sorted(STATIC.glob("*.js")):
        for plainly, template in re.findall(r"'((?:[^'\\\n]|\\.)*)'|`([^`]*)`", path.read_text(encoding="utf-8")):
            number = count()
            text = re.sub(r"\$\{(?:[^{}]|\{[^{}]*\})*\}", lambda _, n=number: f"{{{next(n)}}}", plainly or template)
            letters = len(re.findall(r"[A-Za-z]", PLACE.sub("", text)))
            if letters > 4 and re.match(r"[A-Z“{]", text) and " " in text and not re.search(r"[#\[\]<>=]", text):
                found.add(plain(text))
    return found


def everything() -> str:
    """Return all texts of all sources, a line each: what a catalogue translates has to be written somewhere."""
    lines: list[str] = []
    for path in _sources(("pipelines", "studio", "trainers", "evaluation")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = written(node)
            lines += [plain(one) for one in (text, text.replace("_", " "), *in_html(text))] if text else []
    for path in sorted(STATIC.glob("*.js")):
        text = path.read_text(encoding="utf-8")
        lines += [plain(text), *(plain(one) for one in re.split(r"\$\{[^{}]*\}|['`]", text))]
    lines += [plain(one) for path in STATIC.glob("*.html") for one in in_html(path.read_text(encoding="utf-8"))]
    return "\n".join(lines)
