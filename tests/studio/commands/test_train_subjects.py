"""Subjects from the command line; bad input is one sentence, exit code 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipelines.concepts.card import read_card
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
    assert "3 pictures" in said.err and "pictures encoded" in said.err and said.out.strip() == str(path)
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


# -- several subjects in one run ----------------------------------------------------------------------------------


@pytest.fixture
def more(pictures):
    """A second folder."""
    folder = pictures.parent / "pictures-of-a-car"
    folder.mkdir()
    for i, colour in enumerate(("black", "white")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{i}.png")
    return folder.name


@pytest.mark.parametrize("method", [("dreambooth", "--pivotal"), ("custom-diffusion",)])
def test_subjects_learned_together_become_concepts_used_together(base, pictures, more, capsys, method):
    flags = ["--images", "pictures", "--token", "<a>", "--class-word", "fox", "--base", base, "--steps", "2"]
    together = [*method, *flags, "--also", f"{more}:<b>:car", "--cut-mix", "0.5"]
    if method[0] == "dreambooth":
        together += ["--flip", "0"]
    assert main(["train", *together]) == 0
    said = capsys.readouterr()
    paths = [Path("outputs/concepts/a.safetensors"), Path("outputs/concepts/b.safetensors")]
    assert said.out.split() == [str(path) for path in paths] and "5 pictures (2 folders" in said.err
    assert "50% of the pictures are two of them side by side" in said.err
    assert [(read_card(path).token, read_card(path).init) for path in paths] == [("<a>", "fox"), ("<b>", "car")]
    assert str(more) not in read_card(paths[0]).model_dump_json()
    assert all(path.with_name(f"{path.stem}.preview.png").exists() for path in paths)
    use = [part for path in paths for part in ("--concept", str(path))]
    assert main(["generate", "a <a> above a <b>", *use, "--base", base, "--steps", "2"]) == 0
    assert main(["train", *together, "--output", "outputs/concepts/other.safetensors"]) == 2
    assert "b.safetensors is there already" in capsys.readouterr().err
    assert not Path("outputs/concepts/other.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--also", "pictures-of-a-car"], "is not DIR:TOKEN:CLASS; write for example"),
        (["--also", "pictures-of-a-car:<b>:"], "is not DIR:TOKEN:CLASS"),
        (["--also", "pictures-of-a-car:<a>:car"], "given to two subjects"),
        (["--also", "pictures-of-a-car:<b>:carhouse"], "initializer 'carhouse'"),
        (["--also", "pictures-of-a-car:fox:car"], "already a word"),
        (["--also", "nowhere:<b>:car"], "There is no folder nowhere"),
        (["--also", "pictures-empty:<b>:car"], "no picture in pictures-empty"),
        (["--also", "pictures-of-a-car:a:car"], "Two subjects would be written to"),
        (["--cut-mix", "0.5"], "needs a second subject"),
        (["--also", "pictures-of-a-car:<b>:car", "--cut-mix", "0.5", "--flip", "0.5"], "contradict captions"),
        (["--also", "pictures-of-a-car:<b>:car", "--class-images", "x", "--prior", "pictures"], "of one class"),
    ],
)
def test_bad_subjects_are_one_sentence_and_nothing_is_written(base, more, tmp_path, capsys, flags, said):
    (tmp_path / "pictures-empty").mkdir()
    assert dreambooth(base, "--pivotal", "--token", "<a>", *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("studio: ")
    assert [name for name in written(tmp_path) if not name.startswith("pictures")] == []


def test_a_dry_run_looks_at_all_folders(base, pictures, more, tmp_path, capsys):
    (tmp_path / more / "0.txt").write_text("a car")
    (tmp_path / more / "1.txt").write_text("a sks car")
    assert dreambooth(base, "--token", "z", "--also", f"{more}:sks:car", "--dry-run") == 2, "sks is no token here"
    assert dreambooth(base, "--pivotal", "--token", "<a>", "--also", f"{more}:<b>:car", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "5 pictures (2 folders: plain folder, captions beside pictures)." in said
    assert "2 captions without '<a>' or '<b>' or {}" in said and "<b> 0.png and <b> 1.png" in said


def test_ways_are_named_and_one_sticker_cannot_be_taught_together(capsys):
    assert main(["score", "--all-ways", "--way", "magic"]) == 2
    assert "custom-diffusion-together" in capsys.readouterr().err
    assert main(["score", "--all-ways", "--way", "pivotal-together", "--only", "wolf"]) == 2
    assert "One sticker cannot be taught together" in capsys.readouterr().err
    assert main(["score", "--all-held-out", "--way", "lora", "--way", "full"]) == 2
    assert "compare them with --all-ways" in capsys.readouterr().err
