"""Consoles that lack letters get escapes, and work that was done stays done."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from studio.cli import main
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["cp1252", "ascii", "utf-8"])
def told(request, monkeypatch):
    """Runs a command on a console of an encoding; gives what was printed."""

    def run(*command):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=request.param, errors="strict", write_through=True)
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            assert main(list(command)) == 0
        return stream.buffer.getvalue().decode(request.param)

    return run


@pytest.fixture
def library(tmp_path):
    card = ConceptCard(token="<猫>", family="pocket", init="cat")
    Concept(card, (torch.zeros(1, 96),)).save(tmp_path / "library" / "猫.safetensors")
    return tmp_path / "library"


def test_the_library_is_listed_and_shown(told, library):
    for command in (["list"], ["show", "<猫>"], ["verify"]):
        said = told("concepts", *command, "--library", str(library))
        assert "猫" in said or "\\u732b" in said


def test_words_of_a_layout_are_told(told):
    assert "house" in told("layout", "a 猫 left of a house")


def test_files_with_odd_names_are_told_before_training(told, tmp_path):
    for name in ("a.png", "猫.png", os.fsdecode(b"caf\xe9.png")):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    asked = ["--images", str(tmp_path), "--token", "<x>", "--init", "fox", "--dry-run"]
    said = told("train", "textual-inversion", *asked)
    assert "look the same" in said and "\\udce9" in said and ("猫" in said or "\\u732b" in said)


def test_a_picture_is_written_and_its_path_told(told, tmp_path):
    said = told("generate", "a fox", "--steps", "1", "--output", str(tmp_path / "猫"))
    (path,) = (tmp_path / "猫").glob("*.png")
    assert path.name in said


def test_a_process_of_its_own_ends_well(library):
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "studio.cli", "concepts", "list", "--library", str(library)]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, check=False, timeout=LIMIT)
    assert done.returncode == 0 and b"\\u732b" in done.stdout and not done.stderr
