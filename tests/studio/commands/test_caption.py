"""`studio caption`: what is written, what is kept, who is asked."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from studio.cli import main
from studio.commands.caption import KEY
from tests.studio.commands.test_layout import endpoint, message
from trainers.data.folders import read_examples

BAD = ("0", "-1", "nan", "inf", "1e300")
WOLF = Path(__file__).parents[3] / "studio" / "examples" / "wolf"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(WOLF, tmp_path / "wolf", ignore=shutil.ignore_patterns("*.txt"))
    return tmp_path / "wolf"


def test_pocket_captions_stickers_for_training(folder, capsys):
    (folder / "2.txt").write_text("my own words")
    Image.new("RGB", (64, 64), "red").save(folder / "empty.png")
    assert main(["caption", str(folder), "--leave-out", "wolf", "--token", "<my-wolf>", "--dry-run"]) == 0
    assert not (folder / "1.txt").exists() and "3 captions made" in capsys.readouterr().err
    words = ["--shared", "--token", "<my-wolf>", "--template", "a sticker of {}"]  # all show a wolf
    assert main(["caption", str(folder), *words]) == 0
    said = capsys.readouterr()
    assert "1.png: a sticker of a <my-wolf> on a pink background" in said.out
    assert "empty.png is left without: It shows no stickers" in said.err and "1 there already were kept" in said.err
    captions = {example.name: example.captions for example in read_examples(folder)}
    assert captions["2.png"] == ("my own words",) and captions["empty.png"] == ()
    assert captions["1.png"] == ("a sticker of a <my-wolf> on a pink background",)


def test_an_endpoint_is_shown_the_pictures_and_captions_are_replaced_if_asked(folder, capsys, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    (folder / "1.caption").write_text("old")
    (folder / "3.txt").write_text("0 0.5 0.5 0.2 0.2\n")  # boxes of YOLO
    with endpoint(message("A dog\non a sofa.")) as (address, asked):
        words = ["--endpoint", address, "--endpoint-model", "eyes", "--leave-out", "dog", "--overwrite"]
        assert main(["caption", str(folder), *words]) == 0
    assert len(asked) == 4 and asked[0][2] == "Bearer secret" and asked[0][1]["model"] == "eyes"
    text, picture = asked[0][1]["messages"][0]["content"]
    assert "Do not name: dog." in text["text"]
    shown = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2])))
    assert shown.size == Image.open(folder / "1.png").size
    assert (folder / "1.txt").read_text() == "on a sofa.\n" and not (folder / "1.caption").exists()
    assert (folder / "3.txt").read_text().startswith("0 0.5")
    assert "3.txt holds boxes of YOLO" in capsys.readouterr().err


def test_pictures_of_one_name_get_captions_of_their_own(folder):
    Image.open(folder / "1.png").save(folder / "1.jpg")
    with endpoint(message("words")) as (address, _):
        assert main(["caption", str(folder), "--endpoint", address]) == 0
    assert {path.name for path in folder.glob("1.*.txt")} == {"1.png.txt", "1.jpg.txt"}
    assert all(example.captions == ("words",) for example in read_examples(folder))


def test_a_shared_caption_stays_until_all_its_pictures_have_their_own(folder, capsys):
    Image.open(folder / "1.png").save(folder / "1.jpg")
    (folder / "1.txt").write_text("by hand")
    words = ["caption", str(folder), "--overwrite", "--endpoint"]
    with endpoint((message("new"), None, message("new"))) as (address, asked):  # the first two are 1.jpg and 1.png
        assert main([*words, address]) == 0
    said = capsys.readouterr().err
    assert len(asked) == 5 and "1.png is left without: The captioner" in said and "3 captions written" in said
    assert "1.txt stays" in said and "none for 1.png." in said and (folder / "1.txt").read_text() == "by hand"
    with endpoint(message("newer")) as (address, _):
        assert main([*words, address]) == 0
    assert not (folder / "1.txt").exists() and "stays" not in capsys.readouterr().err
    assert {example.captions for example in read_examples(folder)} == {("newer",)}


def test_a_run_ends_after_three_failures_on_end(folder, capsys):
    for name in "567":
        Image.open(folder / "1.png").save(folder / f"{name}.png")
    with endpoint((message("a"), None, None, message("b"), None, None, None)) as (address, asked):
        assert main(["caption", str(folder), "--endpoint", address]) == 2
    assert len(asked) == 7
    assert "2 captions written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "words", "said"),
    [
        ("", [], "Nothing is left"),
        ("<think>a fox or", ["--token", "<my-fox>"], "Nothing is left"),
        ("a fox", ["--leave-out", "fox", "--template", "a sticker of {}"], "Nothing is left of the caption 'a fox'"),
        ("0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2", [], "The caption '0 0.5"),
        ([{"type": "refusal", "refusal": "no"}], [], "Nothing is left"),
    ],
)
def test_captions_of_nothing_are_not_written(folder, answer, words, said, capsys):
    (folder / "1.txt").write_text("mine")
    with endpoint(message(answer)) as (address, _):
        assert main(["caption", str(folder), "--overwrite", "--endpoint", address, *words]) == 0
    told = capsys.readouterr().err
    assert f"1.png is left without: {said}" in told and "0 captions written" in told
    assert (folder / "1.txt").read_text() == "mine" and len(list(folder.glob("*.txt"))) == 1


@pytest.mark.parametrize(
    "answer", ["<think>hm</think>\nA fox.", [{"type": "text", "text": "A \ud800fox."}, {"type": "x"}]]
)
def test_captions_are_the_text_of_an_answer(folder, answer):
    with endpoint(message(answer)) as (address, _):
        assert main(["caption", str(folder), "--endpoint", address]) == 0
    assert (folder / "1.txt").read_text(encoding="utf-8").replace("\ufffd", "") == "A fox.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "nowhere"], "no captioner in nowhere"),
        (["--endpoint", "localhost"], "captioner 'localhost' is no web address"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--by", "x"], "Two captioners"),
        (["--endpoint", "http://127.0.0.1:1/v1", "--endpoint-timeout", "5"], "gave no answer"),
        (["--template", "no place"], "0 places"),
        (["--endpoint-model", "eyes"], "--endpoint-model is of an endpoint, and none is named"),
        (["--endpoint-timeout", "5"], "--endpoint-timeout is of an endpoint"),
        *[(["--endpoint", "http://127.0.0.1:1", "--endpoint-timeout", one], "timeout: input should be") for one in BAD],
    ],
)
def test_what_cannot_be_is_one_sentence(folder, words, said, capsys):
    assert main(["caption", str(folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_captions_in_a_list_are_not_written_beside_it(folder, capsys):
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "x"}\n')
    assert main(["caption", str(folder)]) == 2
    assert "stand in metadata.jsonl" in capsys.readouterr().err
