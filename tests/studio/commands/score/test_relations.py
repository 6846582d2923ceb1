"""Relations from the command line: learned, used, measured; what is wrong is one sentence and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from evaluation.relations_clip import PAPER, read_scenarios
from pipelines.concepts.card import read_card
from pipelines.errors import DataError, ModelError
from pipelines.measures.clip import Clip
from studio.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny.sd_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{i}.png")
    return folder


def learn(base, *more):
    words = ["train", "reversion", "--images", "pictures", "--token", "<r>", "--init", "and", "--base", base]
    return main([*words, "--steps", "2", "--batch", "1", *more])


def test_a_relation_is_learned_from_named_pairs_and_used_between_others(base, pictures, capsys):
    (pictures / "pairs.json").write_text('{"0": ["fox", "cat"], "1.png": ["dog", "toy"]}')
    assert learn(base) == 0
    path = Path("outputs/concepts/r.safetensors")
    card = read_card(path)
    assert (card.kind, card.left, card.right, card.example) == ("relation", "fox, dog", "cat, toy", "a fox <r> a cat")
    capsys.readouterr()
    assert main(["generate", "a cat <r> a toy", "--concept", str(path), "--base", base, "--steps", "1"]) == 0
    assert "is a relation" not in capsys.readouterr().err
    assert main(["generate", "a cat <r>", "--concept", str(path), "--base", base, "--steps", "1"]) == 0
    assert "<r> is a relation: name one thing before it and one after it" in capsys.readouterr().err


def test_names_given_once_are_enough(base, pictures):
    assert learn(base, "--left", "fox", "--right", "cat", "--lora", "--rank", "2") == 0
    assert read_card(Path("outputs/concepts/r.safetensors")).left == "fox"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--left and --right, or for each in pairs.json"),
        (("--left", "fox"), "Give both --left and --right"),
        (("--left", "fox", "--right", "cat", "--basis", "upside-down"), "The positive word 'upside-down' is"),
        (("--left", "fox", "--right", "cat", "--temperature", "0"), "temperature"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_written(base, pictures, capsys, more, said):
    assert learn(base, *more) == 2
    assert said in capsys.readouterr().err
    assert not list(Path().rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "beneath"), "'beneath' is no relation to teach"),
        (("--base", "other"), "Relations are composed for pocket"),
        (("--clip", "somewhere"), "--clip and --learned belong together"),
        (("--clip", "nowhere", "--learned", "pictures"), "holds no relation of the benchmark"),
    ],
)
def test_what_cannot_be_scored_is_said(pictures, capsys, words, said):
    assert main(["score", "--relations", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_papers_protocol_runs_with_a_real_clip_and_its_figures_stand_beside(base, clip, pictures, capsys):
    assert learn(base, "--left", "fox", "--right", "cat") == 0
    Path("learned").mkdir()
    Path("outputs/concepts/r.safetensors").rename("learned/hug.safetensors")
    Path("things.json").write_text(
        json.dumps(
            {
                "hug": {"phrase": "hugs", "left": ["fox", "cat"], "right": ["toy"]},
                "on": {"phrase": "is on", "left": ["fox"], "right": ["toy"]},
            }
        )
    )
    words = ["score", "--relations", "--base", base, "--clip", str(clip), "--learned", "learned", "--pictures", "2"]
    capsys.readouterr()
    assert main([*words, "--scenarios", "things.json"]) == 0
    out = capsys.readouterr().out
    assert "published 0.3817" in out and "published 0.282" in out and "chance 0.5000" in out
    assert main([*words, "--scenarios", "things.json", "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert 0 <= row["relation"] <= 1 and -1 <= row["entities"] <= 1


def test_clip_gives_unit_vectors_and_the_same_for_the_same(clip):
    model = Clip.load(clip)
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "red")]
    seen, said = model.pictures(pictures), model.texts(["a fox", "a cat on a toy", "a fox"])
    for rows in (seen, said):
        assert rows.norm(dim=-1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
        assert rows[0].tolist() == pytest.approx(rows[2].tolist(), abs=1e-5)
    assert seen.shape[1] == said.shape[1]


def test_a_folder_without_a_clip_is_said(tmp_path):
    with pytest.raises(ModelError, match="CLIPModel, its tokenizer and its picture processor"):
        Clip.load(tmp_path / "nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        Clip.load(tmp_path)


def test_the_papers_relations_are_ten_with_ten_things_on_each_side():
    assert len(PAPER) == 10
    for one in PAPER.values():
        assert len(set(one.left)) == len(set(one.right)) == 10 and one.phrase


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"hug": {}}', '{"hug": {"phrase": "hugs", "left": [], "right": ["a"]}}']
)
def test_scenarios_that_cannot_be_read_are_said(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        read_scenarios(tmp_path / "s.json")
