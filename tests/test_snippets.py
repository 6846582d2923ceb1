"""The Python of the README and the other pages runs as it stands, in the order of its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.models.components import load

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "pipelines/models/pocket/README.md"]
PYTHON = re.compile(r"(from [\w.]+ )?import \w")


def snippets(page):
    """Indented blocks that import something."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^|\n\n)((?:    .*\n(?:\n(?=    ))?)+)", text)
    plain = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]
    return [block for block in plain if PYTHON.match(block)]


def test_the_readme_has_snippets():
    assert len(snippets("README.md")) == 3
    assert all(("import " not in line) or line.startswith("    ") for line in README_LINES), "one is not a block"


README_LINES = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if PYTHON.match(line.strip())]


@pytest.mark.pocket
@pytest.mark.parametrize("page", PAGES)
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
    assert len(list(tmp_path.glob("*.png"))) == (2 if page == "README.md" else 0)
