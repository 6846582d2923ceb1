"""The stage that makes pocket's inpainting UNet, on few scenes: what it learns of, shows and writes."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from PIL import Image

from pipelines.events import Note, Preview
from pipelines.models.inpainting_unet import FOLDER, inpainting_components
from pipelines.models.loading import load
from trainers.pretrain import inpainting
from trainers.pretrain.inpainting import inpainting_stage
from trainers.stickers.tasks import TRAINED_TASKS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_stage_learns_of_both_kinds_of_pictures_and_shows_and_writes_what_it_learned(tmp_path, monkeypatch):
    looked = inpainting.preview
    monkeypatch.setattr(inpainting, "preview", lambda *given: looked(*given, steps=1))
    common = {"work": tmp_path, "device": "cpu", "pack": False, "go_on_from": None, "scenes": 16, "show": 1,
              "inpainting_from": None, "minutes": None, "rate": 1e-3, "batch": 2, "keep_every": 2}  # fmt: skip
    events = []
    inpainting_stage(argparse.Namespace(**common, inpainting_steps=3, out=tmp_path), events.append)
    assert [event.step for event in events if isinstance(event, Preview)] == [2]
    assert any(isinstance(event, Note) and "after step 3, mean error" in event.text for event in events)
    assert {"plain", "grid"} <= next(event.terms.keys() for event in events if hasattr(event, "terms"))
    record = json.loads((tmp_path / "inpainting.json").read_text())
    assert record["steps"] == 3 and set(record["errors"]) > set(TRAINED_TASKS)
    assert Image.open(tmp_path / "inpainting.png").height > 500
    base = load("pocket")
    taught = inpainting_components(base, tmp_path / FOLDER)
    assert not torch.equal(taught.unet.conv_in.weight[:, :4], base.unet.conv_in.weight)
    assert taught.unet.conv_in.weight[:, 4:].abs().sum() > 0
