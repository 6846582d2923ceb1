"""The two things of a relation, from captions and into captions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import DataError
from trainers.data.folders import read_folder
from trainers.data.named_pairs import NamedPair, named_pair, pair_captions, sides


@pytest.mark.parametrize(
    ("caption", "left", "right"),
    [
        ("cat {} stone", "cat", "stone"),
        ("a photo of a cat {} a grey stone, in the snow", "cat", "grey stone"),
        ("a cat <r> a box on a yellow background", "cat", "box"),
        ("a picture of an owl {} two apples.", "owl", "apples"),
        ("<my-fox> {} <my-hat>", "<my-fox>", "<my-hat>"),
    ],
)
def test_names_are_read_from_captions(caption, left, right):
    assert sides(caption, "<r>") == NamedPair(left, right)


@pytest.mark.parametrize("caption", ["{} a box", "a cat {}", "a photo of {} a box", "a cat and a box", "{}", ""])
def test_captions_with_one_side_name_no_pair(caption):
    assert sides(caption, "<r>") is None


@given(st.from_regex(r"[a-z]{2,8}", fullmatch=True), st.from_regex(r"[a-z]{2,8}", fullmatch=True))
def test_captions_from_a_pair_name_it(left, right):
    if {left, right} & {"an", "the", "one", "two", "three", "some", "my", "picture", "photo", "sticker", "of"} or any(
        word in {"rendering", "image", "painting"} for word in (left, right)
    ):
        return
    captions = pair_captions(NamedPair(left, right))
    assert all(caption.count("{}") == 1 for caption in captions)
    assert len(set(captions)) == len(captions) == 4
    assert named_pair(captions, "<r>") == NamedPair(left, right)


def test_articles_are_put_where_there_are_none():
    assert pair_captions(NamedPair("owl", "the moon"))[0] == "an owl {} the moon"
    assert pair_captions(NamedPair("<my-fox>", "hat"))[0] == "<my-fox> {} a hat"


def test_of_several_captions_the_shortest_names_count():
    assert named_pair(("a grey tabby cat {} a big box", "cat {} box", "no relation"), "<r>") == NamedPair("cat", "box")


# -- pairs.json -------------------------------------------------------------------------------------------------


def folder_with(tmp_path, said, index="pairs.json"):
    for name in ("0.png", "1.png"):
        Image.new("RGB", (8, 8), (9, 80, 200)).save(tmp_path / name)
    (tmp_path / index).write_text(said if isinstance(said, str) else json.dumps(said), encoding="utf-8")
    return tmp_path


def test_pairs_give_captions(tmp_path):
    reading = read_folder(folder_with(tmp_path, {"0.png": ["cat", "box"], "1": ["dog", "hat"]}))
    assert reading.convention == "pairs.json"
    assert [example.captions for example in reading.examples] == [
        pair_captions(NamedPair("cat", "box")),
        pair_captions(NamedPair("dog", "hat")),
    ]
    assert not reading.ignored


@pytest.mark.parametrize("names", [["cat"], ["cat", "box", "hat"], [], "cat", ["cat", ""]])
def test_other_than_two_things_are_refused(tmp_path, names):
    with pytest.raises(DataError, match=r"0.png.*names \d things.*Name two"):
        read_folder(folder_with(tmp_path, {"0.png": names}))


@pytest.mark.parametrize("index", ["pairs.json", "text.json"])
def test_an_index_that_names_a_missing_file_is_refused(tmp_path, index):
    with pytest.raises(DataError, match=r"9\.png, which is not there"):
        read_folder(folder_with(tmp_path, {"9.png": ["cat {} box", "a"]}, index))


def test_text_json_without_a_place_for_the_relation_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"0\.png.*has no \{\}"):
        read_folder(folder_with(tmp_path, {"0.png": ["cat on box"]}, "text.json"))


def test_text_json_comes_before_pairs_json_and_says_so(tmp_path):
    folder = folder_with(tmp_path, {"0.png": ["a cat {} a box"]}, "text.json")
    (folder / "pairs.json").write_text("{}", encoding="utf-8")
    reading = read_folder(folder)
    assert reading.convention == "text.json"
    assert reading.ignored["pairs.json"] == "text.json is read instead"
