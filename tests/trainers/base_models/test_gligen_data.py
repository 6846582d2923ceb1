"""Gated layers learned from folders of pictures with boxes, on bases with and without such layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from pipelines.errors import ConfigError, DataError, ModelError, RequestError
from pipelines.gligen.tokens import load_adapter
from pipelines.models.fingerprint import is_gated
from studio.cli import main
from tests import tiny
from trainers.base_models.gligen_data import encoded, mirrored, read_boxed
from trainers.base_models.grounding import GroundingTraining
from trainers.loop.train import train
from trainers.run import run_of

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_boxes_beside_pictures_and_in_one_file_are_read(folder):
    first, second, third = read_boxed(folder).examples
    assert [box.phrase for box in first.boxes] == ["house", "fox"] and first.captions == ("a fox and a house",)
    assert len(second.boxes) == 1 and third.boxes == ()
    turned = mirrored(first)
    assert turned.boxes[1].box == pytest.approx((0.6, 0.2, 0.9, 0.6))
    assert turned.picture.tobytes() == ImageOps.mirror(first.picture).tobytes()
    assert not isinstance(turned.source, Image.Image), "its pixels stay on disk"
    size = {"width": 40, "height": 20}
    coco = {"images": [{"id": n, "file_name": f"{name}.png", **size} for n, name in enumerate("abc")],
            "categories": [{"id": 7, "name": "fox"}],
            "annotations": [{"id": 1, "image_id": 2, "category_id": 7, "bbox": [4, 5, 20, 10]}]}  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(coco))
    assert read_boxed(folder).examples[2].boxes[0].box == pytest.approx((0.1, 0.25, 0.6, 0.75))
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
    data = encoded(base, read_boxed(folder).examples, 16)
    assert data.latents.shape == (3, 4, 8, 8) and data.present.tolist() == [[True, True], [True, False], [False, False]]
    assert data.boxes[0, 1].tolist() == pytest.approx([0.1, 0.2, 0.4, 0.6])
    assert data.phrases.shape == (1, 2, 32) and data.things[1, 0] == 1
    assert data.contexts(torch.tensor([0, 2])).shape == (2, 77, 32)


def run(folder, **more):
    method = GroundingTraining()
    parts = {"images": folder, "steps": 2, "batch": 2, "warmup": 1, "learning_rate": 1e-3, "scale_lr": False} | more
    return run_of(method, parts)


def learn(base, the_run, **more):
    return train(base, the_run, the_run.config.read(the_run.data.images).sound().examples, **more)


def test_a_base_without_gated_layers_is_given_some_and_stays_what_it_is(folder, tmp_path):
    whole = tiny.sd()
    plain = type(whole.unet).from_config({**dict(whole.unet.config), "attention_type": "default"})
    plain.load_state_dict({name: value for name, value in whole.unet.state_dict().items() if not is_gated(name)})
    base = tiny.frozen(replace(whole, denoiser=plain))
    before = tiny.snapshot(base)
    layers, about = load_adapter(learn(base, run(folder)).save(tmp_path / "layers.safetensors"))
    assert tiny.same(before, base)
    assert set(layers) == {name for name in whole.unet.state_dict() if is_gated(name)}
    assert about["base"] == "tiny" and about["steps"] == "2" and about["fingerprint"] == base.fingerprint()
    assert any(float(value) for name, value in layers.items() if "alpha" in name)
    assert all(value.dtype == torch.float16 for value in layers.values())


def test_boxes_that_changed_do_not_go_on(folder, tmp_path):
    learn(tiny.sd(), run(folder), keep=tmp_path / "state")
    lines = (folder / "b.bbox").read_text()
    (folder / "b.bbox").write_text(lines.replace("0.4", "0.5"))
    with pytest.raises(ConfigError, match="pictures"):
        learn(tiny.sd(), run(folder, steps=4), keep=tmp_path / "state")


def test_what_cannot_be_learned_from_is_refused(folder):
    with pytest.raises(ConfigError, match="One source"):
        run(folder, composed=5).config.read(folder)
    with pytest.raises(ConfigError, match="One source"):
        run(None).config.read(None)
    with pytest.raises(ModelError, match="phrases"):
        learn(tiny.sdxl(), run(folder))
    with pytest.raises(DataError, match="no picture with a box"):
        train(tiny.sd(), run(folder), tiny.examples())


def test_composed_pictures_are_read_as_if_they_lay_in_a_folder():
    examples = run(None, composed=9).config.read(None).examples
    assert len(examples) == 9 and all(one.captions and one.boxes for one in examples)
    caption, box = examples[0].captions[0], examples[0].boxes[0]
    assert box.phrase in caption and box.box[0] < box.box[2]


def test_from_the_command_line(folder, tmp_path, capsys):
    base = tmp_path / "base"
    tiny.sd_pipeline().save_pretrained(base)
    out = tmp_path / "layers.safetensors"
    words = ["train", "grounding", "--images", str(folder), "--base", str(base), "--output", str(out)]
    assert main([*words, "--steps", "2", "--batch", "2", "--mirror", "--rate", "0.001", "--muon"]) == 0
    assert Path(capsys.readouterr().out.strip()) == out and load_adapter(out)[1]["steps"] == "2"
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words, "--rate", "0"]) == 2 and "greater than 0" in capsys.readouterr().err
    pictures = ["generate", "a fox", "--base", str(base), "--steps", "2", "--output", str(tmp_path / "made")]
    boxes = ["--box", "fox:0.1,0.1,0.6,0.6", "--grounding-adapter", str(out)]
    assert main([*pictures, *boxes]) == 0
