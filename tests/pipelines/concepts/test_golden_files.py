"""Concept files written before a concept had parts: they load, mean the same and are written the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from pipelines.concepts.card import read_card, read_header
from pipelines.concepts.concept import Concept
from pipelines.generation import generate
from pipelines.request.request import ConceptUse, Request
from tests import tiny

FOLDER = Path(__file__).parent / "golden"
TOLD = json.loads((FOLDER / "told.json").read_text())


def test_every_golden_file_is_told_of():
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(TOLD)


@pytest.mark.parametrize("name", TOLD)
def test_a_file_of_before_loads_and_is_written_as_it_was(name, tmp_path):
    path, told = FOLDER / f"{name}.safetensors", TOLD[name]
    concept = Concept.load(path)
    assert concept.digest() == told["digest"]
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == told["tensors"]
    assert concept.card == read_card(path) and concept.partners == ()
    again = concept.save(tmp_path / "again.safetensors")
    # The order of the header is that of a hash table.
    assert read_header(again) == read_header(path)
    assert again.stat().st_size == path.stat().st_size


@pytest.mark.parametrize("name", TOLD)
def test_a_file_of_before_draws_what_it_drew(name):
    base = tiny.sdxl() if "sdxl" in name else tiny.sd()
    request = Request(prompt="a <thing>", concepts=(ConceptUse(source="x", strength=0.7),), steps=2)
    drawn = generate(base, request, concepts={"x": Concept.load(FOLDER / f"{name}.safetensors")}).latents
    assert float(drawn.abs().mean()) == pytest.approx(TOLD[name]["mean"], rel=1e-4)
