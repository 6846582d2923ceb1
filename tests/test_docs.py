"""The README and the pages of the site say what is true now."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines import errors
from studio.cli import app
from trainers.methods import methods

ROOT = Path(__file__).parent.parent
SITE = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
GUIDES = ["README.md", "CONTRIBUTING.md", *SITE]
PAGES = [*GUIDES, "CHANGELOG.md", "benchmarks/README.md", "pipelines/models/pocket/README.md"]
WORDS = [path.relative_to(ROOT).as_posix() for path in (ROOT / "trainers" / "words").glob("*.md")]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """The commands of the studio on a page; a line that ends with a backslash goes on in the next."""
    joined = re.sub(r"\\\n\s*", "", text_of(page))
    return [line.strip() for line in joined.splitlines() if line.startswith("    studio ")]


README = text_of("README.md")
TOLD = "\n".join(text_of(page) for page in ["README.md", *SITE])
COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def test_every_command_method_and_error_is_told():
    for command in app.resolved_commands():
        if not command.startswith("-"):
            assert f"studio {command}" in TOLD, command
    assert all(f"`{name}`" in TOLD for name in methods())
    kinds = [n for n, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.StudioError)]
    told = text_of("docs/reference/errors.md")
    assert len(kinds) == 12 and all(f"`{name}`" in told for name in kinds)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_all_pages_parse(command):
    arguments = shlex.split(command, comments=True)[1:]
    function, _, ignored = app.parse_args(arguments, exit_on_error=False, print_error=False)
    assert callable(function) and not ignored


def test_there_are_commands_to_parse():
    assert len(commands("README.md")) >= 5 and len(COMMANDS) >= 45


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs both make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *WORDS])
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        there = (ROOT / page).parent / target if target else ROOT / page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def test_the_contents_of_the_site_name_every_page():
    contents = set(re.findall(r"^\s+- ([\w/-]+\.md)$", text_of("mkdocs.yml"), re.MULTILINE))
    here = {page.removeprefix("docs/") for page in SITE}
    assert here == {page for page in contents if not page.startswith("repository/")}
    hook = text_of("docs/reference_pages.py")
    assert all(f'"{page}"' in hook for page in contents - here)


@pytest.mark.parametrize("page", GUIDES)
def test_files_that_are_named_exist(page):
    for target in re.findall(r"`((?:pipelines|trainers|studio|evaluation|tests|docs)/[\w./-]+)`", text_of(page)):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_what_make_is_asked_for_is_a_target(page):
    makefile = text_of("Makefile")
    code = re.findall(r"`make (\w+)|^    make (\w+)", text_of(page), re.MULTILINE)
    for target in filter(None, (name for pair in code for name in pair)):
        assert f"\n{target}:" in makefile, target


def test_the_readme_is_short_and_shows_a_picture():
    lines = README.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
    assert "](docs/demo.png)" in README and "make demo" in README and "make test" in README


@pytest.mark.parametrize("page", [*SITE, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_lines_are_wrapped(page):
    """Rows of tables cannot be."""
    long = [line for line in text_of(page).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", [page for page in SITE if page.startswith("docs/results/")])
def test_tables_of_results_have_their_command(page):
    text = text_of(page)
    assert "|---" not in text or re.search(r"studio score|trainers\.pretrain score", text)


@pytest.mark.parametrize("caller", [".ci/run", ".github/workflows/test.yml"])
def test_continuous_integration_runs_the_readmes_test_command(caller):
    assert "make test" in text_of(caller)
