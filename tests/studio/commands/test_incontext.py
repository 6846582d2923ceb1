"""Visual prompts from the command line; what is wrong is one sentence and exit code 2."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image

from pipelines.pictures.metadata import read_made
from studio.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny.inpaint_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size in (("before", (20, 20)), ("after", (20, 20)), ("query", (30, 16)), ("small", (8, 8))):
        Image.new("RGB", size, (len(name) * 20, 100, 200)).save(f"{name}.png")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save("alpha.png")
    return tmp_path


PAIR = ("--example", "before.png", "after.png")


def ask(base, *words, pair=PAIR, query="query.png"):
    return main(["incontext", *pair, "--query", query, "--base", base, "--steps", "1", *words])


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--engine", "analogist", "--hint", "a fox", "--cloning", "2", "--width", "16", "--height", "16"),
        ("--ensemble", "4", "--cell", "top-left", "--direction", "before"),
        ("--transposed", *PAIR, "--guidance-scale", "2"),
    ],
)
def test_a_question_is_answered_at_the_querys_size(base, pictures, capsys, more):
    assert ask(base, *more) == 0
    path = Path(capsys.readouterr().out.strip())
    with Image.open(path) as answer:
        assert answer.size == (30, 16)
    made = read_made(path)
    assert made.request.in_context and made.request.in_context.query == "query.png"
    if more[:1] == ("--engine",):
        assert made.request.prompt == "a fox" and made.request.in_context.cloning == 2


def test_an_answer_is_repeated_bit_for_bit(base, pictures, capsys):
    assert ask(base, "--seed", "3") == 0
    first = Path(capsys.readouterr().out.strip())
    assert main(["generate", "--from", str(first), "--output", "again"]) == 0
    second = Path(capsys.readouterr().out.strip())
    assert Image.open(first).tobytes() == Image.open(second).tobytes()
    Image.new("RGB", (30, 16)).save("query.png")
    assert main(["generate", "--from", str(first)]) == 2
    assert "query.png changed since the answer was made" in capsys.readouterr().err


def test_an_example_is_chosen_from_a_folder(base, pictures, capsys):
    for side, name in itertools.product(("before", "after"), ("red", "blue")):
        (pictures / "pairs" / side).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), name).save(pictures / "pairs" / side / f"{name}.png")
    Image.new("RGB", (20, 20), (10, 10, 240)).save("query.png")
    assert ask(base, "--examples", "pairs", pair=()) == 0
    made = read_made(Path(capsys.readouterr().out.strip()))
    assert made.request.in_context and made.request.in_context.examples[0].after.endswith("blue.png")
    clip = tiny.clip(pictures / "clip")
    assert ask(base, "--examples", "pairs", "--nearest", "2", "--clip", str(clip), pair=()) == 0
    made = read_made(Path(capsys.readouterr().out.strip()))
    assert made.request.in_context and len(made.request.in_context.examples) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"pair": ()}, "Give either --example BEFORE AFTER or --examples DIR"),
        ({"pair": ("--example", "before.png", "small.png")}, "small.png 8 x 8"),
        ({"pair": ("--example", "before.png", "alpha.png")}, "alpha.png is transparent in places"),
        ({"pair": ("--example", "before.png", "nothing.png")}, "nothing.png"),
        ({"query": "alpha.png"}, "alpha.png is transparent in places"),
        ({"pair": PAIR * 17}, "17 examples; a grid takes 1 to 16"),
    ],
)
def test_bad_pictures_are_said_and_nothing_is_written(base, pictures, capsys, words, said):
    assert ask(base, **words) == 2
    assert said in capsys.readouterr().err
    assert not list(Path("outputs").glob("*.png"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--examples", "pairs"), "Give either"),
        (("--width", "18"), "no multiple of 4"),
        (("--engine", "analogist", *PAIR), "analogist takes one example"),
        (("--ensemble", "9"), "ensemble"),
        (("--cloning", "-1"), "cloning"),
        (("--ensemble", "2", "--scheduler", "euler-a"), "adds noise at every step"),
    ],
)
def test_bad_flags_are_said(base, pictures, capsys, words, said):
    assert ask(base, *words) == 2
    assert said in capsys.readouterr().err


def test_folders_without_pairs_are_said(base, pictures, capsys):
    (pictures / "empty").mkdir()
    assert ask(base, "--examples", "empty", pair=()) == 2
    assert "empty holds no pairs" in capsys.readouterr().err
    assert ask(base, "--examples", "empty", "--nearest", "17", pair=()) == 2
    assert "--nearest 17 is out of range" in capsys.readouterr().err


def test_a_base_that_does_not_inpaint_is_said_with_what_to_do(pictures, capsys, tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path / "plain")
    assert ask(str(tmp_path / "plain")) == 2
    assert "studio train inpainting" in capsys.readouterr().err


def test_a_word_is_learned_from_pairs_and_asked_without_an_example(base, pictures, capsys):
    for side, name in itertools.product(("before", "after"), ("red", "blue", "green")):
        (pictures / "pairs" / side).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), name if side == "before" else "white").save(
            pictures / "pairs" / side / f"{name}.png"
        )
    words = ["train", "task-word", "--images", "pairs", "--token", "<white>", "--init", "fox", "--base", base]
    assert main([*words, "--steps", "2", "--batch", "2"]) == 0
    path = Path("outputs/concepts/white.safetensors")
    assert capsys.readouterr().out.strip() == str(path) and path.exists()
    # Neither state nor lock, nor a picture drawn of a word that asks for changes.
    assert {one.name for one in path.parent.iterdir()} == {"white.safetensors", "white.losses.jsonl"}
    assert ask(base, "--hint", "<white>", "--concept", str(path), pair=()) == 0
    capsys.readouterr()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--output", "other.safetensors", "--steps", "0"]) == 2
    assert "steps: input should be greater than or equal to 1" in capsys.readouterr().err
    elsewhere = [word.replace("pairs", "nowhere") for word in words]
    assert main([*elsewhere, "--output", "other.safetensors"]) == 2
    assert "There is no folder nowhere" in capsys.readouterr().err
    assert not Path("other.safetensors").exists()


def test_what_cannot_be_scored_is_said(base, capsys):
    assert main(["score", "--incontext", "--only", "juggle"]) == 2
    assert "'juggle' is no task of visual prompts" in capsys.readouterr().err
    assert main(["score", "--incontext", "--base", base]) == 2
    assert "The tasks are drawn at 64 pixels" in capsys.readouterr().err
