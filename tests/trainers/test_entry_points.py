"""A package beside the studio adds a method by its entry point: command line, REST, page and laws have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]
METHOD = '''
"""Mean rows: a word that starts between two words."""

from contextlib import contextmanager

from pydantic import Field

from trainers.method import Offer
from trainers.methods.textual_inversion import POCKET, TextualInversion, TextualInversionConfig, trainable_word


class MeanRowsConfig(TextualInversionConfig):
    """Settings of mean rows."""

    other: str = Field(min_length=1)
    """The second word to start from."""


class MeanRows(TextualInversion):
    """Learns a word that starts between two words."""

    name = "mean-rows"
    Settings = MeanRowsConfig
    offers = (
        Offer(
            "object between two",
            "A thing that is like two others.",
            {"token": ("Its new word", "<my-wolf>"), "init": ("The nearest word", "fox")},
            {"other": "cat"},
        ),
    )

    @contextmanager
    def prepare(self, components, config, generator):
        from pipelines.concepts.token_embeddings import new_words, single_rows

        pairs = zip(*(single_rows(components, word) for word in (config.init, config.other)), strict=True)
        starts = [((one + other) / 2).expand(config.vectors, -1) for one, other in pairs]
        with new_words(components, config.token, starts) as words:
            yield trainable_word(words.components, words.rows, config)
'''
LOOK = """
import json, sys, time
from trainers.methods import methods
from studio.cli import main
began = time.monotonic()
main(["train", "mean-rows", "--help"])
print("@" + json.dumps({
    "seconds": time.monotonic() - began,
    "torch": "torch" in sys.modules,
    "modules": len(sys.modules),
    "methods": list(methods()),
}))
from studio.api.forms import settings_of
from studio.web.panels.subjects import WHATS
print("@" + json.dumps({
    "rest": list(settings_of("mean-rows").model_fields),
    "page": [what.method.name for what in WHATS.values()],
}))
"""


def install(folder: Path, *, value: str = "mean_rows:MeanRows", name: str = "mean-rows", text: str = METHOD) -> None:
    """Install the package into a folder, as pip does: its module, and its entry point in a dist-info."""
    (folder / "mean_rows.py").write_text(text, encoding="utf-8")
    about = folder / "mean_rows-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-rows\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[promptstudio.methods]\n{name} = {value}\n", encoding="utf-8")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    around = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=around, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def test_command_line_rest_and_page_have_it_without_torch(tmp_path):
    install(tmp_path)
    done = run(tmp_path, "-c", LOOK)
    assert done.returncode == 0, done.stderr
    help_, _, _ = done.stdout.partition("@")
    told, more = (json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@"))
    assert "Learns a word that starts between two words." in help_ and "--other" in help_ and "--steps" in help_
    assert told["methods"][-1] == "mean-rows" and not told["torch"]
    assert told["modules"] < 1000  # with torch and diffusers it would be some 4,000
    assert {"other", "token", "steps"} <= set(more["rest"]) and more["page"][-1] == "mean-rows"


def test_it_obeys_the_laws_and_learns(tmp_path):
    install(tmp_path)
    laws = run(tmp_path, "-m", "pytest", "-q", "tests/trainers/test_method_laws.py", "-k", "mean-rows and not sdxl")
    assert laws.returncode == 0 and " passed" in laws.stdout, laws.stdout[-3000:]
    wolf = ROOT / "studio" / "examples" / "wolf"
    words = ("--token", "<x>", "--init", "fox", "--other", "cat", "--steps", "1", "--no-preview")
    learned = run(
        tmp_path, "-m", "studio.cli", "train", "mean-rows", "--images", str(wolf), *words,
        "--output", str(tmp_path / "x.safetensors"),
    )  # fmt: skip
    assert learned.returncode == 0, learned.stderr
    from pipelines.concepts.card import read_card

    card = read_card(tmp_path / "x.safetensors")
    assert (card.method, card.recipe["other"]) == ("mean-rows", "cat")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"value": "mean_rows:Nothing"},
            "The method 'mean-rows' of mean-rows is left out: module 'mean_rows' has no attribute 'Nothing'",
        ),
        ({"text": "import no_such_module"}, "left out: No module named 'no_such_module'"),
        ({"name": "dreambooth"}, "The method 'dreambooth' of mean-rows is left out: there is one of this name already"),
        ({"name": "other"}, "The method 'other' of mean-rows is left out: it calls itself 'mean-rows'"),
    ],
    ids=["no class", "broken", "taken", "misnamed"],
)
def test_a_package_that_does_not_work_is_named_and_the_rest_stays(tmp_path, changed, said):
    install(tmp_path, **changed)
    done = run(tmp_path, "-W", "error", "-m", "studio.cli", "train", "textual-inversion", "--help")
    assert done.returncode == 0 and "--token" in done.stdout, done.stderr
    assert said in done.stderr and "Mend or remove the package mean-rows." in done.stderr
