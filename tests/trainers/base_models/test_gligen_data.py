"""Gated layers learned from folders of pictures with boxes, on bases with and without such layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.errors import Cancelled, ConfigError, DataError, ModelError, RequestError
from pipelines.gligen.tokens import load_adapter
from pipelines.models.fingerprint import is_gated
from studio.cli import main
from tests import tiny
from trainers.base_models.gligen_data import encoded, learn_grounding, read_boxed
from trainers.method_settings import GroundingConfig, GroundingDestination

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = GroundingConfig(batch=2, warmup=1)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (40, 20), colour).save(place / f"{name}.png")
    lines = [{"label": "fox", "bbox": [0.1, 0.2, 0.4, 0.6]}, {"label": "house", "bbox": [0.5, 0, 1, 1]}]
    (place / "a.bbox").write_text("\n".join(map(json.dumps, lines)))
    (place / "a.txt").write_text("a fox and a house")
    (place / "b.bbox").write_text(json.dumps(lines[0]))
    return place


def where(folder, tmp_path, **more):
    return GroundingDestination(images=folder, output=tmp_path / "out" / "layers.safetensors", **({"steps": 2} | more))


def test_boxes_beside_pictures_and_in_one_file_are_read(folder):
    first, second, third = read_boxed(folder)
    assert [box.phrase for box in first.boxes] == ["house", "fox"] and first.example.captions == ("a fox and a house",)
    assert len(second.boxes) == 1 and third.boxes == ()
    assert first.mirrored().boxes[1].box == pytest.approx((0.6, 0.2, 0.9, 0.6))
    size = {"width": 40, "height": 20}
    coco = {"images": [{"id": n, "file_name": f"{name}.png", **size} for n, name in enumerate("abc")],
            "categories": [{"id": 7, "name": "fox"}],
            "annotations": [{"id": 1, "image_id": 2, "category_id": 7, "bbox": [4, 5, 20, 10]}]}  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(coco))
    assert read_boxed(folder)[2].boxes[0].box == pytest.approx((0.1, 0.25, 0.6, 0.75))
    for path in folder.glob("*.bbox"):
        path.unlink()
    (folder / "annotations.json").unlink()
    with pytest.raises(DataError, match=r"No picture in .* has a box"):
        read_boxed(folder)


def test_a_box_that_is_none_names_its_file(folder):
    (folder / "b.bbox").write_text('{"label": "fox", "bbox": [0.5, 0.2, 0.1, 0.6]}')
    with pytest.raises(RequestError, match=r"b\.bbox.*fox"):
        read_boxed(folder)


def test_pictures_are_squeezed_so_that_boxes_stay_where_they_are(folder):
    base = tiny.sd()
    data = encoded(base, read_boxed(folder), 16)
    assert data.latents.shape == (3, 4, 8, 8) and data.present.tolist() == [[True, True], [True, False], [False, False]]
    assert data.boxes[0, 1].tolist() == pytest.approx([0.1, 0.2, 0.4, 0.6])
    assert data.phrases.shape == (1, 2, 32) and data.things[1, 0] == 1
    assert data.contexts(torch.tensor([0, 2])).shape == (2, 77, 32)


def test_a_base_without_gated_layers_is_given_some_and_stays_what_it_is(folder, tmp_path):
    whole = tiny.sd()
    plain = type(whole.unet).from_config({**dict(whole.unet.config), "attention_type": "default"})
    plain.load_state_dict({name: value for name, value in whole.unet.state_dict().items() if not is_gated(name)})
    base = tiny.frozen(replace(whole, denoiser=plain))
    before = tiny.snapshot(base)
    path = learn_grounding(base, where(folder, tmp_path), CONFIG)
    assert tiny.same(before, base)
    layers, about = load_adapter(path)
    assert set(layers) == {name for name in whole.unet.state_dict() if is_gated(name)}
    assert about["base"] == "tiny" and about["steps"] == "2" and about["fingerprint"] == base.fingerprint()
    assert any(float(value) for name, value in layers.items() if "alpha" in name)
    assert not list(path.parent.glob(".*"))


def test_what_was_stopped_goes_on_and_with_other_pictures_does_not(folder, tmp_path):
    place = where(folder, tmp_path, steps=4)
    expected, _ = load_adapter(learn_grounding(tiny.sd(), where(folder, tmp_path / "whole", steps=4), CONFIG))
    asked = iter((False, False, True))
    with pytest.raises(Cancelled):
        learn_grounding(tiny.sd(), place, CONFIG, should_stop=lambda: next(asked))
    lines = (folder / "b.bbox").read_text()
    (folder / "b.bbox").write_text(lines.replace("0.4", "0.5"))
    with pytest.raises(ConfigError, match="another pictures"):
        learn_grounding(tiny.sd(), place, CONFIG)
    (folder / "b.bbox").write_text(lines)
    found, _ = load_adapter(learn_grounding(tiny.sd(), place, CONFIG))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    with pytest.raises(ConfigError, match="is there already"):
        learn_grounding(tiny.sd(), place, CONFIG)


def test_what_cannot_be_learned_from_is_refused_before_anything_is_done(folder, tmp_path):
    with pytest.raises(ConfigError, match="One source"):
        learn_grounding(tiny.sd(), where(folder, tmp_path, composed=5), CONFIG)
    with pytest.raises(ConfigError, match="composed for pocket"):
        learn_grounding(tiny.sd(), where(None, tmp_path, composed=5), CONFIG)
    with pytest.raises(ModelError, match="phrases"):
        learn_grounding(tiny.sdxl(), where(folder, tmp_path), CONFIG)
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(folder, tmp_path, capsys):
    base = tmp_path / "base"
    tiny.sd_pipeline().save_pretrained(base)
    out = tmp_path / "layers.safetensors"
    words = ["train", "grounding", "--images", str(folder), "--base", str(base), "--output", str(out)]
    assert main([*words, "--steps", "2", "--batch", "2", "--mirror"]) == 0
    assert Path(capsys.readouterr().out.strip()) == out and load_adapter(out)[1]["steps"] == "2"
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words, "--rate", "0"]) == 2 and "greater than 0" in capsys.readouterr().err
    pictures = ["generate", "a fox", "--base", str(base), "--steps", "2", "--output", str(tmp_path / "made")]
    boxes = ["--box", "fox:0.1,0.1,0.6,0.6", "--grounding-adapter", str(out)]
    assert main([*pictures, *boxes]) == 0
