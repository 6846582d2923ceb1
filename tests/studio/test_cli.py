"""The command line, end to end on a small base: what people type, what they get, what they are told."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.concepts.card import ConceptCard, read_card
from pipelines.concepts.concept import Concept
from pipelines.locks import sole_training
from studio.cli import main
from studio.commands.train import ALIASES, translate
from tests import tiny
from tests.waiting import LIMIT


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.sd_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for example in tiny.examples():
        example.picture.save(folder / example.name)
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(base, pictures, *more):
    fast = ["--batch", "1", *([] if "--steps" in more else ["--steps", "3"])]
    return main(
        [
            "train",
            "textual-inversion",
            "--images",
            pictures,
            "--token",
            "<x>",
            "--init",
            "fox",
            "--base",
            base,
            *fast,
            *more,
        ]
    )


def generate(base, *more):
    return main(["generate", "a fox", "--base", base, "--steps", "2", "--output", "out", *more])


def test_help_answers_at_once_and_names_every_command():
    start = children_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "studio.cli", "--help"], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    assert all(command in done.stdout for command in ("generate", "train", "score", "doctor"))
    assert children_seconds() - start < 2.0


def children_seconds():
    """Return the seconds of work of processes that have ended; others on the machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_flags_of_a_method_are_its_configurations(capsys):
    assert main(["train", "textual-inversion", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in ("--images", "--token", "--init", "--vectors", "--learning-rate", "--center-crop", "--overwrite"):
        assert flag in shown
    assert "<my-fox>" in shown


def test_a_concept_that_another_process_learns_is_left_to_it(base, pictures, tmp_path, capsys):
    with sole_training(tmp_path / "outputs" / "concepts" / "x.safetensors"):
        assert train(base, pictures) == 2
    assert "is being learned by another process" in capsys.readouterr().err
    assert not list((tmp_path / "outputs").rglob("*.lock"))


def test_teach_then_generate_then_repeat_bit_for_bit(base, pictures, tmp_path, capsys):
    assert train(base, pictures) == 0
    concept = tmp_path / "outputs" / "concepts" / "x.safetensors"
    assert capsys.readouterr().out.strip().endswith("x.safetensors") and concept.exists()
    card = read_card(concept)
    assert (card.token, card.init, card.recipe["steps"]) == ("<x>", "fox", 3)
    assert not list(concept.parent.glob(".*")), "the training state is gone once the concept is there"
    request = ["generate", "a <x> on a table", "--concept", f"{concept}:0.8", "--count", "2", "--steps", "3"]
    assert main([*request, "--base", base, "--output", "out", "--seed", "4"]) == 0
    first, second = capsys.readouterr().out.split()
    assert (first, second) == ("out/4.png", "out/5.png")
    assert main(["generate", "--from", second, "--output", "again"]) == 0
    (again,) = capsys.readouterr().out.split()
    assert Image.open(again).tobytes() == Image.open(second).tobytes()
    assert Image.open(again).text == Image.open(second).text
    assert Image.open(first).tobytes() != Image.open(second).tobytes()


def test_pictures_are_never_overwritten(base):
    assert generate(base) == generate(base) == 0
    import os

    assert sorted(os.listdir("out")) == ["0-1.png", "0.png"]


def test_a_concept_that_is_there_is_not_overwritten_unasked(base, pictures, capsys):
    assert train(base, pictures, "--output", "c.safetensors") == 0
    assert train(base, pictures, "--output", "c.safetensors") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert train(base, pictures, "--output", "c.safetensors", "--overwrite") == 0


def test_spellings_of_other_programs_work(base, pictures):
    flags = [
        "--train_data_dir",
        pictures,
        "--placeholder_token=<y>",
        "--initializer-token",
        "fox",
        "--max_train_steps",
        "2",
    ]
    more = ["--pretrained_model_name_or_path", base, "--train_batch_size", "1", "--output", "y.safetensors"]
    assert main(["train", "textual-inversion", *flags, *more]) == 0
    assert read_card_of("y.safetensors").token == "<y>"


def read_card_of(name):
    from pathlib import Path

    return read_card(Path(name))


def test_translation_leaves_everything_else_alone():
    assert translate(["--images", "--a_b", "x_y", "--token=<a_b>"]) == ["--images", "--a_b", "x_y", "--token=<a_b>"]
    assert translate(["--init_word=a_b"]) == ["--init=a_b"]
    assert set(ALIASES.values()).isdisjoint(ALIASES)


def test_previews_are_written_beside_the_concept(base, pictures, tmp_path):
    assert train(base, pictures, "--output", "c.safetensors", "--preview-every", "2") == 0
    assert Image.open(tmp_path / "c-2.png").size == (16, 16)


def test_what_was_learned_is_drawn_beside_it_and_no_failure_of_that_loses_it(
    base, pictures, tmp_path, monkeypatch, capsys
):
    assert train(base, pictures, "--output", "c.safetensors") == 0
    picture = Image.open(tmp_path / "c.preview.png")
    assert picture.size == (16, 16)
    assert main(["concepts", "rename", "c.safetensors", "<y>", "--library", "."]) == 0
    assert (tmp_path / "y.preview.png").exists() and not (tmp_path / "c.preview.png").exists()
    assert train(base, pictures, "--output", "d.safetensors", "--no-preview") == 0
    assert not (tmp_path / "d.preview.png").exists()

    def full(*arguments, **more):
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr("trainers.loop.launch.generate", full)
    assert train(base, pictures, "--output", "e.safetensors") == 0
    assert "no preview of <x>: CUDA out of memory\n" in capsys.readouterr().err
    assert read_card_of("e.safetensors").token == "<x>" and not (tmp_path / "e.preview.png").exists()


BAD_TRAINING = {
    "a missing folder": (["--images", "nowhere"], "no folder nowhere"),
    "an empty folder": (["--images", "empty"], "no picture"),
    "a name no file can have": (["--images", "x" * 5000], "File name too long"),
    "a text file named jpg": (["--images", "fake"], "is no picture that can be read"),
    "an existing token": (["--token", "fox"], "already a word"),
    "an initializer of several tokens": (["--init", "xylophone"], "tokens"),
    "steps out of range": (["--steps", "0"], "steps"),
    "an unknown flag": (["--stepz", "3"], "stepz"),
    "a base that is not there": (["--base", "nothing/here"], "nothing/here"),
    "a device that is not there": (["--device", "cuda:9"], "cuda:9"),
    "a strange device": (["--device", "toaster"], "toaster"),
}


@pytest.mark.parametrize("case", list(BAD_TRAINING))
def test_bad_training_input_is_one_sentence_with_the_next_step(base, pictures, tmp_path, capsys, case):
    flags, said = BAD_TRAINING[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "a.jpg").write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    settings = {"--images": pictures, "--token": "<x>", "--init": "fox", "--base": base, "--steps": "3"}
    settings |= dict(zip(flags[::2], flags[1::2], strict=True))
    assert main(["train", "textual-inversion", *[part for pair in settings.items() for part in pair]]) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown and len(shown.strip().splitlines()) <= 2
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-written"


def write_concepts(folder):
    Concept(ConceptCard(token="<x>", family="sdxl", vectors=1), (torch.zeros(1, 32), torch.zeros(1, 48))).save(
        folder / "xl.safetensors"
    )
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    torch.save({"<x>": torch.zeros(768)}, folder / "learned_embeds.bin")
    save_file({"<x>": torch.zeros(1, 768)}, folder / "wide.safetensors")


BAD_GENERATION = {
    "a concept for another base": (["--concept", "xl.safetensors"], "made for Stable Diffusion XL"),
    "a concept of another width": (["--concept", "wide.safetensors"], "sd1"),
    "a corrupt header": (["--concept", "broken.safetensors"], "broken.safetensors"),
    "a pickle": (["--concept", "learned_embeds.bin"], "pickle"),
    "a missing concept": (["--concept", "gone.safetensors"], "gone.safetensors"),
    "an impossible size": (["--width", "18"], "multiple of 4"),
    "too many steps": (["--steps", "5000"], "steps"),
    "a strength out of range": (["--concept", "xl.safetensors:9"], "strength"),
    "too many steps for the sampler": (["--scheduler", "lcm", "--steps", "60"], "lcm"),
    "a picture that says nothing": (["--from", "plain.png"], "does not say how it was made"),
    "guidance that ends before it begins": (["--guidance-start", "0.6", "--guidance-stop", "0.4"], "after stop 0.4"),
    "no name for a concept": (["--concept", ""], "concepts"),
    "an output that is a file": (["--output", "plain.png"], "plain.png"),
    "an unknown sampler": (["--scheduler", "magic"], "magic"),
    "xformers that are not installed": (["--attention", "xformers"], "xformers"),
}


@pytest.mark.parametrize("case", list(BAD_GENERATION))
def test_bad_generation_input_is_one_sentence_with_the_next_step(base, tmp_path, capsys, case):
    flags, said = BAD_GENERATION[case]
    write_concepts(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    before = sorted(tmp_path.rglob("*"))
    where = [] if "--output" in flags else ["--output", "out"]
    assert main(["generate", "a <x>", "--base", base, *where, *flags]) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_picture_that_says_nothing_cannot_be_repeated(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert main(["generate", "--from", "plain.png"]) == 2
    assert "does not say how it was made" in capsys.readouterr().err
    assert main(["generate"]) == 2


def test_a_concept_that_has_changed_since_is_noticed(base, pictures, capsys):
    assert train(base, pictures, "--output", "c.safetensors") == 0
    assert generate(base, "--concept", "c.safetensors") == 0
    assert train(base, pictures, "--output", "c.safetensors", "--overwrite", "--seed", "5") == 0
    assert main(["generate", "--from", "out/0.png"]) == 2
    assert "c.safetensors has changed since" in capsys.readouterr().err


def test_too_little_disk_is_said_before_anything_is_done(base, pictures, monkeypatch, capsys):
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    assert train(base, pictures) == 2
    assert "1 MiB are free" in capsys.readouterr().err


def test_a_stopped_training_goes_on_where_it_was(base, pictures, monkeypatch, capsys):
    import trainers.loop.loop

    assert train(base, pictures, "--output", "whole.safetensors", "--steps", "6") == 0
    real, calls = trainers.loop.loop.step_generator, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr("trainers.loop.loop.step_generator", stopping)
    assert train(base, pictures, "--output", "c.safetensors", "--steps", "6", "--keep-every", "2") == 2
    assert "same command again" in capsys.readouterr().err
    monkeypatch.setattr("trainers.loop.loop.step_generator", real)
    assert train(base, pictures, "--output", "c.safetensors", "--steps", "6", "--keep-every", "2") == 0
    assert "resumed after step 2" in capsys.readouterr().err
    from pathlib import Path

    whole, resumed = (Concept.load(Path(name)) for name in ("whole.safetensors", "c.safetensors"))
    assert torch.equal(whole.rows[0], resumed.rows[0])
