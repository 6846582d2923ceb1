"""`studio attention`: a picture is drawn again with the maps of its words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import RequestError
from pipelines.request.request import Request
from studio.cli import main
from studio.work.attention import laid_over, words_looked_up
from tests import tiny

WOLF = Path(__file__).parents[3] / "studio" / "examples" / "wolf"


def test_a_picture_made_here_shows_where_its_words_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a fox", "--steps", "2", "--output", "o"]) == 0
    assert main(["attention", "o/0.png"]) == 0
    assert "o/0.attention.png" in capsys.readouterr().out
    assert Image.open("o/0.attention.png").width > 3 * 128
    numbers = np.load("o/0.attention.npz")
    assert set(numbers.files) == {"a", "fox"} and numbers["fox"].shape == (16, 16)


def test_with_a_concept_that_changed_since_nothing_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for start in ("fox", "cat"):
        teach = ["train", "textual-inversion", "--images", str(WOLF), "--token", "<w>", "--init", start, "--steps", "1"]
        assert main([*teach, "--no-preview", "--output", "w.safetensors", "--overwrite"]) == 0
        if start == "fox":
            assert main(["generate", "a <w>", "--steps", "1", "--concept", "w.safetensors", "--output", "o"]) == 0
            assert main(["attention", "o/0.png"]) == 0
            assert "<w>" in np.load("o/0.attention.npz").files
    assert main(["attention", "o/0.png"]) == 2
    assert "has changed since" in capsys.readouterr().err


def test_a_picture_that_says_nothing_is_refused(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert main(["attention", str(tmp_path / "plain.png")]) == 2
    assert "does not say how it was made" in capsys.readouterr().err


def test_light_is_where_most_attention_is():
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    attention = np.zeros((4, 4), dtype=np.float32)
    attention[:2] = 1.0
    shown = np.asarray(laid_over(grey, attention).convert("L"), dtype=float)
    assert shown[:8].mean() > shown[-8:].mean() + 50


def test_a_picture_drawn_around_its_mask_alone_is_refused(tmp_path):
    Image.new("RGB", (96, 64), "gray").save(tmp_path / "p.png")
    inpaint = {"image": str(tmp_path / "p.png"), "box": "0.1,0.1,0.4,0.5", "only_masked": True, "unet": "blend"}
    made: Any = SimpleNamespace(request=Request(prompt="a fox", steps=2, inpaint=inpaint), index=0)
    with pytest.raises(RequestError, match="around its mask alone"):
        words_looked_up(made, "p.png", tiny.sd(), lambda event: None, lambda: False)
