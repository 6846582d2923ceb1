"""The README says what is true now."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines import errors
from studio.cli import app
from trainers.methods import methods

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    studio ")]


def test_every_command_method_and_error_is_in_the_readme():
    for command in (
        "generate",
        "train",
        "score",
        "doctor",
        "export",
        "merge",
        "identifiers",
        "concepts",
        "serve",
        "incontext",
        "choose",
    ):
        assert f"studio {command}" in README
        assert app[command] is not None
    assert all(f"`{name}`" in README for name in methods())
    kinds = [n for n, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.StudioError)]
    assert len(kinds) == 12 and all(f"`{name}`" in README for name in kinds)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_parse(command):
    arguments = shlex.split(command, comments=True)[1:]
    function, _, ignored = app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert callable(function) and not ignored


def test_there_are_commands_to_parse():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pipelines/models/pocket/README.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"`((?:pipelines|trainers|studio|tests|examples)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target


def test_the_two_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile, target


def test_continuous_integration_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
