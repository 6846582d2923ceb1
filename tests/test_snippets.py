"""The Python of the README, of the site and of the other pages runs as it stands, in the order of its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.models.loading import load

ROOT = Path(__file__).parent.parent
ROOT_PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "pipelines/models/pocket/README.md"]
PAGES = [*ROOT_PAGES, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"(from [\w.]+ )?import \w")


def snippets(page):
    """Indented blocks that import something."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^|\n\n)((?:    .*\n(?:\n(?=    ))?)+)", text)
    plain = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]
    return [block for block in plain if PYTHON.match(block)]


HOLDERS = [page for page in PAGES if snippets(page)]


def test_there_are_snippets_and_all_are_blocks():
    assert HOLDERS == ["docs/how-to/python.md"] and len(snippets(HOLDERS[0])) == 3
    for page in PAGES:
        lines = [line for line in (ROOT / page).read_text("utf-8").splitlines() if PYTHON.match(line.strip())]
        code = [line for line in lines if line.startswith("    ") or "import " in line.split("`")[0]]
        assert all(line.startswith("    ") for line in code), f"{page}: one is not a block"
        assert bool(code) == (page in HOLDERS)


@pytest.mark.pocket
@pytest.mark.parametrize("page", HOLDERS)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    base = load("pocket")
    card = ConceptCard(token="<my-wolf>", family="pocket", base="pocket", init="fox")
    Concept(card, single_rows(base, "fox")).save(tmp_path / "outputs" / "concepts" / "my-wolf.safetensors")
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(snippets(page)):
        exec(compile(block, f"{page}, snippet {number + 1}", "exec"), names)
    for picture in tmp_path.glob("*.png"):
        assert Image.open(picture).convert("L").getextrema() != (0, 0)
    assert len(list(tmp_path.glob("*.png"))) == 2
