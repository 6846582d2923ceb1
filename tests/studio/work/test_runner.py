"""Work of the command line: doctor, scoring, the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.concepts.card import read_card
from pipelines.concepts.concept import Concept, ConceptCard
from pipelines.concepts.token_embeddings import single_rows
from pipelines.models.loading import load
from studio.cli import main
from studio.commands import demo
from studio.settings import Machine
from studio.work import runner
from trainers.methods import dreambooth, textual_inversion
from trainers.stickers.world import ALL_NAMES

pytestmark = pytest.mark.usefixtures("few_steps")


def test_the_doctor_names_versions_device_attention_memory_and_pocket(capsys):
    assert main(["doctor", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__}" in said
    for word in (
        "Python 3.",
        "diffusers 0.42",
        "device cpu, float32",
        "xformers not installed",
        "attention sdpa, eager",
        "base models of pocket, Stable Diffusion 1.x",
        "Z-Image, Qwen-Image and Krea 2",
    ):
        assert word in said
    assert "GiB of memory" in said and "pocket loads and generates" in said


def test_the_doctor_says_when_pocket_does_not_load(monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.models.loading.POCKET", tmp_path / "none")
    tmp_path.joinpath("none").mkdir()
    assert any("pocket does not load" in line for line in runner.doctor(Machine(device="cpu")))


@pytest.fixture
def fox_as_wolf(tmp_path):
    """A concept that is nothing but the class word, made for the shipped pocket."""
    base = load("pocket")
    card = ConceptCard(token="<w>", init="fox", family="pocket", base_fingerprint=base.fingerprint())
    return Concept(card, single_rows(base, "fox")).save(tmp_path / "w.safetensors")


def test_scoring_a_concept_prints_a_table_or_json(fox_as_wolf, capsys):
    assert main(["score", str(fox_as_wolf), "--thing", "wolf", "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["likeness_gain"] == pytest.approx(0, abs=1e-4) and row["named_chance"] == 1 / len(ALL_NAMES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score"], "--all-held-out"),
        (["score", "missing.safetensors", "--thing", "wolf"], "no concept file"),
        (["score", "--all-held-out", "--only", "sphinx"], "sphinx"),
    ],
)
def test_scoring_without_what_it_needs_is_one_sentence(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_scoring_needs_to_know_what_the_thing_looks_like(fox_as_wolf, capsys):
    assert main(["score", str(fox_as_wolf)]) == 2
    assert "--real FOLDER" in capsys.readouterr().err
    assert main(["score", str(fox_as_wolf), "--thing", "sphinx"]) == 2
    assert "sphinx" in capsys.readouterr().err


def test_a_concept_for_other_weights_of_pocket_is_refused(tmp_path, capsys):
    base = load("pocket")
    card = ConceptCard(token="<w>", init="fox", family="pocket", base_fingerprint="0" * 16)
    path = Concept(card, single_rows(base, "fox")).save(tmp_path / "old.safetensors")
    assert main(["generate", "a <w>", "--concept", str(path), "--steps", "1", "--output", str(tmp_path)]) == 2
    assert "other weights of pocket" in capsys.readouterr().err


def test_a_picture_of_other_weights_is_not_repeated(tmp_path, capsys, monkeypatch):
    assert main(["generate", "a fox", "--steps", "1", "--output", str(tmp_path)]) == 0
    monkeypatch.setattr("pipelines.models.components.Components.fingerprint", lambda self: "f" * 16)
    assert main(["generate", "--from", str(tmp_path / "0.png"), "--output", str(tmp_path)]) == 2
    assert "other weights" in capsys.readouterr().err


@pytest.mark.pocket
def test_the_demo_teaches_scores_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SEEDS", 2)
    monkeypatch.setattr("evaluation.concepts.SEEDS", 2)
    monkeypatch.setitem(textual_inversion.POCKET, "steps", 20)
    monkeypatch.setattr(dreambooth, "POCKET_STEPS", 20)
    assert demo.main() == 0
    said = capsys.readouterr().out
    assert "drawn_ceiling" in said and "outputs/demo.png" in said
    sheet = Image.open(Path("outputs/demo.png"))
    assert sheet.height > 13 * 128 and sheet.width > 4 * 128
    for word in ("wolf-word", "wolf"):
        assert {"drawn", "drawn_word", "likeness_share"} <= set(
            read_card(Path(f"outputs/demo/{word}.safetensors")).scores
        )
