"""A 9-channel UNet from a person's pictures and pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.errors import ConfigError, DataError, ModelError
from pipelines.models.inpainting_unet import FOLDER, has_inpainting_unet, inpainting_components
from pipelines.models.loading import load
from pipelines.words import file_stem
from studio.cli import main
from tests import tiny
from trainers.base_models.incontext import InContextConfig
from trainers.base_models.inpainting_data import pair_source, picture_source, require_pairs
from trainers.base_models.inpainting_unet import start_from, widened
from trainers.base_models.model_folder import InpaintingModel
from trainers.data.folders import Example
from trainers.data.picture_pairs import read_tasks
from trainers.methods import methods
from trainers.run import run_of
from trainers.settings import DataConfig

COLOURS = ("red", "lime", "blue", "white")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "tiny"
    tiny.sd_pipeline().save_pretrained(path)
    return str(path)


def square(path, colour, size=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def pairs(tmp_path):
    for k, colour in enumerate(COLOURS):
        square(tmp_path / "pairs" / f"{k}.before.png", colour)
        square(tmp_path / "pairs" / f"{k}.after.png", "black")
    return tmp_path / "pairs"


# -- reading ----------------------------------------------------------------------------------------------------


def test_pairs_are_read_beside_each_other_and_from_two_folders(pairs, tmp_path):
    beside = read_tasks(pairs).sound().examples
    assert [one.name for one in beside] == ["0", "1", "2", "3"]
    assert beside[0].picture.getpixel((0, 0)) == (255, 0, 0)
    assert beside[0].after and beside[0].after.getpixel((0, 0)) == (0, 0, 0)
    square(tmp_path / "two" / "before" / "x.png", "red")
    square(tmp_path / "two" / "after" / "x.jpg", "blue")
    (inside,) = read_tasks(tmp_path / "two").examples
    assert inside.name == "x" and inside.picture.getpixel((0, 0)) == (255, 0, 0)
    square(tmp_path / "plain" / "y.png", "red")
    square(tmp_path / "plain" / "y.after.png", "blue")
    (plain,) = read_tasks(tmp_path / "plain").examples
    assert plain.name == "y" and plain.picture.getpixel((0, 0)) == (255, 0, 0)


def test_what_is_no_pair_is_refused(pairs, tmp_path):
    square(pairs / "1.after.png", "black", (20, 24))
    assert "The pair 1 has 20 x 20 pixels before and 20 x 24 after" in read_tasks(pairs).doubtful["1"]
    (pairs / "1.after.png").unlink()
    (pairs / "2.before.png").write_text("no picture")
    with pytest.raises(
        DataError, match=r"2 pictures cannot.*1: it has a picture before and none after.*2\.before\.png is no"
    ):
        read_tasks(pairs).sound()
    assert [one.name for one in read_tasks(pairs).sound(skip=True).examples] == ["0", "3"]
    for name in ("0", "3"):
        (pairs / f"{name}.after.png").unlink()
    with pytest.raises(DataError, match="4 pictures cannot be learned from"):
        read_tasks(pairs).sound(skip=True)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="There is no pair"):
        read_tasks(tmp_path / "none")
    with pytest.raises(DataError, match="There is no folder"):
        read_tasks(tmp_path / "nowhere")


def test_subfolders_are_tasks_and_each_needs_two_pairs(pairs, tmp_path):
    assert list(require_pairs(read_tasks(pairs).examples)) == [""]
    square(tmp_path / "other" / "a.before.png", "red")
    square(tmp_path / "other" / "a.after.png", "red")
    with pytest.raises(DataError, match="other holds 1 pair; at least 2"):
        require_pairs(read_tasks(tmp_path).examples)
    square(tmp_path / "other" / "b.before.png", "red")
    square(tmp_path / "other" / "b.after.png", "red")
    tasks = require_pairs(read_tasks(tmp_path).examples)
    assert {name: len(found) for name, found in tasks.items()} == {"other": 2, "pairs": 4}


# -- batches ----------------------------------------------------------------------------------------------------


def test_pictures_have_holes_and_captions(base):
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    examples = [
        Example("a", Image.new("RGB", (40, 32), "red"), ("a fox",)),
        Example("b", Image.new("RGB", (32, 32), "blue"), ("a cat",), mask),
    ]
    data = DataConfig(resolution=32)
    batch = picture_source(base, examples, 40, data, 0.5)(0, seeded())
    assert batch.pictures.shape == (40, 3, 32, 32) and batch.masks.shape == (40, 1, 32, 32)
    states = {tuple(row.flatten().tolist()) for row in batch.conditioning["encoder_hidden_states"]}
    assert len(states) == 3  # two captions and none
    assert batch.masks.mean((1, 2, 3)).min() > 0
    again = picture_source(base, examples, 40, data, 0.5)(0, seeded())
    assert torch.equal(again.masks, batch.masks) and torch.equal(again.pictures, batch.pictures)
    with pytest.raises(ConfigError, match="33 pixels is no multiple"):
        picture_source(base, examples, 40, DataConfig(resolution=33), 0.5)


def test_visual_prompts_are_canvases_of_different_pairs_whose_answer_is_the_hole(base, pairs):
    config, listed = InContextConfig(hint="black", blank=0.4), read_tasks(pairs).examples
    source = pair_source(base, listed, 12, 16, config)
    shapes, blank = set(), 0
    for index in range(8):
        canvas, hole, conditioning = source(index, seeded(index))
        shapes.add(tuple(canvas.shape[-2:]))
        answer = canvas[..., (hole[0, 0] == 1)]
        assert hole.sum() == 256 and bool((answer == -1).all())
        blank += int((canvas == 0).flatten(1).any(1).sum())
        assert len({tuple(row.flatten().tolist()) for row in conditioning["encoder_hidden_states"]}) == 2
    assert shapes == {(32, 32), (48, 32)}
    assert 0.2 < blank / (8 * 12) < 0.6
    canvas, _, _ = pair_source(base, listed, 12, 16, config.model_copy(update={"blank": 0.0}))(0, seeded())
    assert not bool((canvas[:, :, 0, 0] == canvas[:, :, 16, 0]).all(1).any()), "example and query differ"


def test_training_starts_from_the_base_or_from_what_is_given(base, folder, tmp_path):
    fresh = start_from(base, None)
    assert torch.equal(fresh.conv_in.weight[:, :4], base.unet.conv_in.weight)
    assert not fresh.conv_in.weight[:, 4:].any()
    trained = widened(base.unet)
    with torch.no_grad():
        trained.conv_in.weight[:, 4:] = 0.5
    trained.save_pretrained(tmp_path / FOLDER)
    assert torch.equal(start_from(base, tmp_path).conv_in.weight, trained.conv_in.weight)
    with pytest.raises(ModelError, match="There is no inpainting UNet"):
        start_from(base, tmp_path / "nowhere")
    with pytest.raises(ModelError, match="is an inpainting model already"):
        start_from(tiny.sd_inpaint(), None)


# -- from the command line --------------------------------------------------------------------------------------


def learn(kind, folder, *more):
    return main(["train", kind, "--base", folder, "--steps", "2", "--batch", "2", "--device", "cpu", *more])


def test_a_new_model_is_written_that_paints_and_draws(folder, pairs, tmp_path, capsys):
    output = tmp_path / "new"
    words = ("--pairs", str(pairs), "--cell", "16", "--output", str(output))
    assert learn("incontext", folder, *words, "--precision", "bf16") == 0
    assert Path(capsys.readouterr().out.strip()) == output
    found = load(output)
    assert not has_inpainting_unet(found) and has_inpainting_unet(inpainting_components(found))
    assert found.fingerprint() == load(folder).fingerprint()
    assert not output.with_name(".new.state").exists()
    assert learn("incontext", folder, *words) == 2
    assert "is there already" in capsys.readouterr().err
    run_of(methods()["incontext"], {"pairs": pairs, "output": output, "overwrite": True}).require_free()


@pytest.mark.parametrize(
    ("kind", "output", "said"),
    [
        ("inpainting", "mine", "mine is there already, and is no model that a training wrote"),
        ("inpainting", ".", "--output . names no place of its own"),
        ("inpainting", "pairs/..", "names no place of its own"),
        ("dreambooth", ".", "--output . names no place of its own"),
    ],
)
def test_only_a_model_that_a_training_wrote_is_replaced(pairs, tmp_path, monkeypatch, capsys, kind, output, said):
    monkeypatch.chdir(tmp_path)
    square(tmp_path / "mine" / "holiday.png", "red")
    (tmp_path / "mine" / "model_index.json").write_text("{}")
    words = ("--token", "zwx", "--class-word", "fox") if kind == "dreambooth" else ()
    assert learn(kind, "nowhere", *words, "--images", str(pairs), "--output", output, "--overwrite") == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "mine" / "holiday.png").exists()
    with pytest.raises(ConfigError, match="never replaced"):
        InpaintingModel(tiny.sd(), {}).save(tmp_path / "mine")


@pytest.mark.parametrize("base", ["x/sd1.5", "x/sd1.5.safetensors", "sd1.5.ckpt", "someone/sd1.5"])
def test_a_new_model_is_called_by_its_base_also_with_dots(base):
    (path,) = run_of(methods()["inpainting"], {"images": "x", "base": base}).outputs
    assert path == Path("outputs/models") / f"{file_stem('sd1.5')}-inpainting" != Path("outputs/models/sd1-inpainting")


def test_inpainting_goes_on_from_what_is_beside_the_base(folder, pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = ("--images", str(pairs), "--resolution", "16")
    assert learn("inpainting", folder, *args) == 0
    assert learn("inpainting", "outputs/models/tiny-inpainting", *args, "--output", "more", "--half") == 0
    first, second = (inpainting_components(load(Path(p))).unet for p in ("outputs/models/tiny-inpainting", "more"))
    assert first.conv_in.weight[:, 4:].abs().max() > 0
    assert not torch.equal(first.conv_in.weight, second.conv_in.weight)


def test_bad_input_is_a_sentence_and_exit_code_2(folder, pairs, tmp_path, capsys):
    square(pairs / "1.after.png", "black", (20, 24))
    assert learn("incontext", folder, "--pairs", str(pairs)) == 2
    assert "The pair 1 has 20 x 20 pixels before and 20 x 24 after" in capsys.readouterr().err
    assert learn("inpainting", folder, "--images", str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
