"""Subjects from the command line; bad input is one sentence, exit code 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipelines.card import read_card
from studio.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny.sd_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{i}.png")
    return folder


def dreambooth(base, *more):
    needed = {"--token": "z", "--class-word": "fox"}
    given = [part for pair in needed.items() for part in pair if pair[0] not in more]
    return main(["train", "dreambooth", "--images", "pictures", "--base", base, "--steps", "2", *given, *more])


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "pictures" not in path.parts)


def test_a_subject_is_trained_used_and_exported(base, pictures, tmp_path, capsys):
    assert dreambooth(base, "--rank", "2", "--prior", "pictures", "--num_class_images", "2") == 0
    path = Path("outputs/concepts/z-fox.safetensors")
    assert (read_card(path).token, read_card(path).method, read_card(path).vectors) == ("z fox", "dreambooth-lora", 0)
    said = capsys.readouterr()
    assert "3 pictures" in said.err and "About" in said.err and said.out.strip() == str(path)
    assert len(list(Path("outputs/class").glob("fox-*/*.png"))) == 2
    assert main(["generate", "a z fox", "--concept", str(path), "--base", base, "--steps", "2"]) == 0
    (picture,) = Path("outputs").glob("*.png")
    assert main(["generate", "--from", str(picture), "--output", "again"]) == 0
    (repeated,) = Path("again").glob("*.png")
    assert Image.open(repeated).tobytes() == Image.open(picture).tobytes()
    assert main(["export", f"{path}:0.5", "--base", base, "--output", "whole"]) == 0
    assert main(["generate", "a z fox", "--base", "whole", "--steps", "2", "--output", "third"]) == 0
    assert main(["export", str(path), "--base", base, "--output", "whole"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_two_concepts_of_custom_diffusion_are_merged(base, pictures, capsys):
    for token in ("<a>", "<b>"):
        flags = ["--token", token, "--class-word", "fox", "--prior", "none", "--steps", "2", "--base", base]
        assert main(["train", "custom-diffusion", "--images", "pictures", *flags]) == 0
    one, other = "outputs/concepts/a.safetensors", "outputs/concepts/b.safetensors"
    assert main(["merge", one, other, "--base", base]) == 0
    assert sorted(path.name for path in Path("outputs/merged").iterdir()) == ["a.safetensors", "b.safetensors"]
    use = ["--concept", "outputs/merged/a.safetensors", "--concept", "outputs/merged/b.safetensors"]
    assert main(["generate", "a <a> and a <b>", *use, "--base", base, "--steps", "2"]) == 0
    assert main(["merge", one, other, "--base", base]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["merge", one, "--base", base, "--output", "lonely"]) == 2
    assert "1 concepts cannot be merged" in capsys.readouterr().err


def test_a_dry_run_says_what_there_is_and_writes_nothing(base, pictures, tmp_path, capsys):
    (pictures / "notes.doc").write_text("x")
    assert dreambooth(base, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "3 pictures" in said and "notes.doc" in said and "of training" in said and "Warning" in said
    assert written(tmp_path) == []


def test_identifiers_are_listed(base, capsys):
    assert main(["identifiers", "fox", "--base", base, "--count", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rank", "0"], "rank"),
        (["--token", "qzxwvu"], "tokens for"),
        (["--class-prompt", "a photo of a cat"], "lacks the class word 'fox'"),
        (["--prior", "pictures", "--class-images", "nowhere"], "nowhere"),
        (["--form", "full", "--precision", "bf16"], "float32 only"),
        (["--form", "full", "--dora"], "low-rank"),
        (["--optimizer", "adamw8bit"], "bitsandbytes"),
        (["--pivotal", "--token", "fox"], "already a word"),
        (["--pivotal", "--token", "<x>", "--class-word", "foxhouse"], "initializer"),
        (["--targets", "everything"], "targets"),
        (["--snr-gamma", "0"], "snr_gamma"),
        (["--ema", "1"], "ema"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(base, pictures, tmp_path, capsys, flags, said):
    assert dreambooth(base, *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("studio: ")
    assert written(tmp_path) == []


def test_a_mask_of_another_size_is_refused(base, pictures, tmp_path, capsys):
    Image.new("L", (10, 20), 255).save(pictures / "0.mask.png")
    assert dreambooth(base) == 2
    error = capsys.readouterr().err
    assert "10" in error and "20" in error and "mask" in error
    assert written(tmp_path) == []


def test_class_pictures_of_another_base_are_refused(base, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    tiny.sd_pipeline(seed=5).save_pretrained(other)
    assert dreambooth(base, "--prior", "pictures", "--num-class-images", "1") == 0
    (folder,) = Path("outputs/class").iterdir()
    again = ["--prior", "pictures", "--class-images", str(folder), "--output", "second"]
    assert dreambooth(str(other), *again) == 2
    assert "made with another base" in capsys.readouterr().err
    assert not Path("second.safetensors").exists()


def test_a_subject_of_another_base_is_refused_when_it_is_used(base, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    tiny.sdxl_pipeline().save_pretrained(other)
    assert dreambooth(base) == 0
    use = ["--concept", "outputs/concepts/z-fox.safetensors", "--base", str(other), "--output", "pictures-made"]
    assert main(["generate", "a z fox", *use]) == 2
    assert "was made for" in capsys.readouterr().err
    assert not Path("pictures-made").exists() or not list(Path("pictures-made").iterdir())
