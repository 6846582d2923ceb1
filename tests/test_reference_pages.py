"""The reference of the site is generated from what it describes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from pipelines.request.request import Request
from studio.cli import app
from trainers.methods import methods

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs" / "reference_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_asks_for_a_text_that_there_is(pages):
    asked = set()
    for page in (ROOT / "docs").rglob("*.md"):
        asked |= set(re.findall(r"<!-- generated: (\w+) -->", page.read_text(encoding="utf-8")))
    assert asked == set(pages.GENERATED)


def test_all_commands_stand_in_the_command_line(pages):
    text = pages.cli()
    for name in app.resolved_commands():
        assert name.startswith("-") or f"## studio {name}\n" in text, name
    assert all(f"### studio train {name}\n" in text for name in methods())
    assert "--guidance-scale" in text and "<" not in text.replace("&lt;", "")


def test_settings_tell_range_default_and_meaning(pages):
    rows = [line for line in pages.settings().splitlines() if line.startswith("| `")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert all(row.split("|")[-2].strip() for row in rows), "a setting has no words"
    assert all(any(row.startswith(f"| `{name}` |") for row in rows) for name in Request.model_fields)
    assert "| `batch` | integer >= 1" in "\n".join(rows)
    assert "DreamBoothConfig" in pages.settings()


def test_every_route_stands_in_rest(pages):
    text = pages.rest()
    for route in (
        "POST /api/v1/generations",
        "GET /api/v1/storage",
        "POST /sdapi/v1/txt2img",
        "PATCH /api/v1/datasets",
    ):
        assert f"| `{route}" in text, route
    routes, bodies = text.split("## Bodies")
    rows = [row for row in routes.splitlines() if row.startswith("| `")]
    assert len(rows) >= 50 and all(row.split("|")[-2].strip() for row in rows), "a route has no words"
    assert "### DreamboothOrder\n" in bodies and "| `dataset` |" in bodies


@pytest.mark.parametrize(
    "origin, place, target, link",
    [
        ("docs/index.md", "index.md", "../CONTRIBUTING.md", "repository/contributing.md"),
        ("docs/results/pocket.md", "results/pocket.md", "../boxes.png", "../boxes.png"),
        ("docs/results/index.md", "results/index.md", "../../benchmarks/README.md", "../repository/benchmarks.md"),
        ("CONTRIBUTING.md", "repository/contributing.md", "README.md", "../index.md"),
        ("CONTRIBUTING.md", "repository/contributing.md", "docs/limits.md", "../limits.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(pages, origin, place, target, link):
    assert pages.linked(origin, place, target) == link
