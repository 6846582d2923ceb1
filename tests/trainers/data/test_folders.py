from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import DataError, StudioError
from trainers.data.folders import read_examples, read_folder


def paint(path, colour="red", size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def mask(path, size=(8, 8), box=(0, 0, 4, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.new("L", size, 0)
    made.paste(255, box)
    made.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for index, colour in enumerate(("red", "green", "blue")):
        paint(tmp_path / f"{index}.png", colour)
    return tmp_path


def names(folder):
    return [example.name for example in read_examples(folder)]


def captions(folder):
    return {example.name: example.captions for example in read_examples(folder)}


# -- plain folders and captions beside pictures -----------------------------------------------------------------


def test_pictures_are_read_in_order_and_other_files_left_out_with_their_reasons(folder):
    (folder / "notes.md").write_text("x")
    (folder / ".hidden.png").write_text("x")
    (folder / "more").mkdir()
    reading = read_folder(folder)
    assert [example.name for example in reading.examples] == ["0.png", "1.png", "2.png"] == names(folder)
    assert reading.convention == "plain folder"
    assert set(reading.ignored) == {"notes.md", "more"}
    assert "kind of picture" in reading.ignored["notes.md"] and "10_cat" in reading.ignored["more"]
    assert all(e.repeats == 1 and e.mask is None and e.captions == () for e in reading.examples)


def test_nothing_is_ignored_in_a_clean_folder(folder):
    assert read_folder(folder).ignored == {}


def test_a_text_file_beside_a_picture_is_its_caption(folder):
    (folder / "0.txt").write_text("\ufeff a red\n square {} ", encoding="utf-8")
    (folder / "1.caption").write_text("green", encoding="utf-8")
    (folder / "2.txt").write_text("  ")
    assert captions(folder) == {"0.png": ("a red square {}",), "1.png": ("green",), "2.png": ()}
    reading = read_folder(folder)
    assert reading.convention == "captions beside pictures" and not reading.ignored


def test_captions_that_go_with_no_picture_are_reported(folder):
    (folder / "9.txt").write_text("nobody")
    (folder / "0.txt").write_text("first")
    (folder / "0.caption").write_text("second")
    reading = read_folder(folder)
    assert reading.examples[0].captions == ("first",)
    assert set(reading.ignored) == {"9.txt", "0.caption"}
    assert all("caption" in why for why in reading.ignored.values())


def test_a_caption_that_is_no_utf8_is_said(folder):
    (folder / "0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"0\.txt is not UTF-8"):
        read_examples(folder)


def test_a_missing_and_an_empty_folder_are_said(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        read_examples(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no picture.*\.png"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        read_examples(paint(tmp_path / "file.png"))


def test_a_folder_whose_pictures_are_one_level_down_is_said_with_the_way_out(tmp_path):
    paint(tmp_path / "cats" / "a.png")
    with pytest.raises(DataError, match=r"no picture.*cats.*1_cats"):
        read_folder(tmp_path)


def test_one_broken_picture_is_named(folder):
    (folder / "3.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"3\.jpg"):
        read_examples(folder)


def test_turned_pictures_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a quarter to the right
    paint(tmp_path / "a.jpg", size=(12, 8), exif=exif)
    assert read_examples(tmp_path)[0].picture.size == (8, 12)


# -- kohya folders ----------------------------------------------------------------------------------------------


def test_numbered_folders_give_repeats_and_a_caption_where_there_is_no_other(tmp_path):
    paint(tmp_path / "10_a {} cat" / "b.png")
    paint(tmp_path / "10_a {} cat" / "a.png")
    (tmp_path / "10_a {} cat" / "b.txt").write_text("my {}")
    paint(tmp_path / "2_sks_dog" / "c.jpg")
    reading = read_folder(tmp_path)
    found = {example.name: (example.repeats, example.captions) for example in reading.examples}
    assert found == {
        "10_a {} cat/a.png": (10, ("a {} cat",)),
        "10_a {} cat/b.png": (10, ("my {}",)),
        "2_sks_dog/c.jpg": (2, ("sks_dog",)),
    }
    assert reading.convention == "folders with repeats" and reading.ignored == {}


@pytest.mark.parametrize("name", ["cat", "0_cat", "x_cat", "10", "10_", "-3_cat", "1.5_cat", "9999999_cat"])
def test_folders_without_a_proper_number_are_ignored_and_said(folder, name):
    paint(folder / name / "a.png")
    reading = read_folder(folder)
    assert [e.name for e in reading.examples] == ["0.png", "1.png", "2.png"]
    assert "10_cat" in reading.ignored[name]


def test_pictures_beside_numbered_folders_are_read_too(folder):
    paint(folder / "3_cat" / "0.png")
    paint(folder / "3_cat" / "deeper" / "1.png")
    reading = read_folder(folder)
    assert [(e.name, e.repeats) for e in reading.examples] == [
        ("0.png", 1),
        ("1.png", 1),
        ("2.png", 1),
        ("3_cat/0.png", 3),
    ]
    assert reading.ignored == {"3_cat/deeper": "a folder in a folder"}


def test_a_picture_named_like_a_numbered_folder_is_a_picture(tmp_path):
    paint(tmp_path / "10_cat.png")
    assert [(e.name, e.repeats) for e in read_examples(tmp_path)] == [("10_cat.png", 1)]


# -- metadata.jsonl ---------------------------------------------------------------------------------------------


def metadata(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_metadata_names_pictures_and_captions_under_any_of_the_usual_keys(folder):
    paint(folder / "sub" / "d.png")
    metadata(
        folder,
        {"file_name": "2.png", "prompt": " a  {} "},
        "",
        {"file_name": "0.png", "text": "first", "caption": "not used", "other": [1]},
        {"file_name": "sub/d.png", "caption": "ünd\u2028so"},
        {"file_name": "./0.png", "text": ["second", "third", ""]},
    )
    reading = read_folder(folder)
    assert {e.name: e.captions for e in reading.examples} == {
        "0.png": ("first", "second", "third"),
        "2.png": ("a {}",),
        "sub/d.png": ("ünd so",),
    }
    assert reading.convention == "metadata.jsonl"
    assert reading.ignored == {"1.png": "not named in metadata.jsonl"}


def test_metadata_without_a_caption_leaves_the_caption_beside_the_picture(folder):
    (folder / "0.txt").write_text("beside {}")
    (folder / "1.txt").write_text("beside {}")
    metadata(folder, {"file_name": "0.png"}, {"file_name": "1.png", "text": "within {}"}, {"file_name": "2.png"})
    reading = read_folder(folder)
    assert [e.captions for e in reading.examples] == [("beside {}",), ("within {}",), ()]


def test_a_byte_order_mark_and_windows_line_ends_are_no_hindrance(folder):
    (folder / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "0.png", "text": "a {}"}\r\n\r\n')
    assert captions(folder) == {"0.png": ("a {}",)}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"file_name": "0.png", "text": ', r"Line 2 .*not JSON.*column"),
        ("[" * 100_000, r"Line 2 .*not JSON"),
        ('["0.png"]', r"Line 2 .*list, not an object"),
        ('{"text": "a {}"}', r"Line 2 .*no file_name"),
        ('{"file_name": 7}', r"Line 2 .*no file_name"),
        ('{"file_name": ""}', r"Line 2 .*no file_name"),
        ('{"file_name": "9.png"}', r"Line 2 .*9\.png, which is not there"),
        ('{"file_name": "' + "x" * 5000 + '.png"}', r"Line 2 .*not there"),
        ('{"file_name": "a\\u0000.png"}', r"Line 2 .*not there"),
        ('{"file_name": "../0.png"}', r"Line 2 .*outside the folder"),
        ('{"file_name": "sub/../../0.png"}', r"Line 2 .*outside the folder"),
        ('{"file_name": "/etc/passwd"}', r"Line 2 .*outside the folder"),
        ('{"file_name": "C:\\\\x.png"}', r"Line 2 .*outside the folder"),
        ('{"file_name": "..\\\\x.png"}', r"Line 2 .*outside the folder"),
        ('{"file_name": "0.png", "text": 5}', r"Line 2 .*no text: 5"),
        ('{"file_name": "0.png", "text": ["a", null]}', r"Line 2 .*no text: None"),
        ('{"file_name": "0.png", "text": "\\ud800"}', r"Line 2 .*no text"),
        ('{"file_name": "notes.md"}', r"Line 2 .*no picture"),
        ('{"file_name": "0.mask.png"}', r"Line 2 .*no picture"),
    ],
)
def test_what_is_wrong_with_metadata_is_said_with_its_line(folder, row, said):
    (folder / "notes.md").write_text("x")
    mask(folder / "0.mask.png")
    metadata(folder, {"file_name": "0.png"}, row)
    with pytest.raises(DataError, match=said) as raised:
        read_folder(folder)
    assert raised.value.hint and "\n" not in str(raised.value)


def test_metadata_that_is_no_utf8_or_empty_is_said(folder):
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "\xff.png"}')
    with pytest.raises(DataError, match=r"metadata\.jsonl is not UTF-8"):
        read_folder(folder)
    (folder / "metadata.jsonl").write_bytes(b"\n\n")
    with pytest.raises(DataError, match="no picture"):
        read_folder(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=80), st.binary(max_size=80)))
def test_no_metadata_whatever_breaks_reading(folder, content):
    (folder / "metadata.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode(errors="replace"))
    try:
        read_folder(folder)
    except StudioError as error:
        assert error.hint


# -- text.json --------------------------------------------------------------------------------------------------


def test_text_json_gives_several_captions_by_name_or_stem(folder):
    entries = {"0.png": ["cat {} stone", "a cat {} a  grey stone"], "1": ["dog {} sofa"]}
    (folder / "text.json").write_text(json.dumps(entries))
    reading = read_folder(folder)
    assert [e.captions for e in reading.examples] == [
        ("cat {} stone", "a cat {} a grey stone"),
        ("dog {} sofa",),
        (),
    ]
    assert reading.convention == "text.json" and not reading.ignored


def test_a_single_caption_needs_no_list(folder):
    (folder / "text.json").write_text('{"0.png": "a {} b", "0": "c {} d"}')
    assert captions(folder)["0.png"] == ("a {} b", "c {} d")


def test_a_stem_that_two_pictures_share_is_refused(folder):
    paint(folder / "0.jpg")
    (folder / "text.json").write_text('{"0": ["a {} b"]}')
    with pytest.raises(DataError, match=r"'0'.*0\.jpg and 0\.png"):
        read_folder(folder)
    (folder / "text.json").write_text('{"0.jpg": ["a {} b"]}')
    assert captions(folder)["0.jpg"] == ("a {} b",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"text\.json is not JSON"),
        ("[]", r"text\.json is a list"),
        ('{"9.png": ["a"]}', r"'9\.png'.*not there"),
        ('{"../9.png": ["a"]}', r"outside the folder"),
        ('{"0.png": {"a": 1}}', r"'0\.png'.*no text"),
        ('{"text.json": ["a"]}', r"no picture"),
    ],
)
def test_what_is_wrong_with_text_json_is_said(folder, content, said):
    (folder / "text.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_folder(folder)


def test_of_two_indices_the_metadata_is_read_and_the_other_reported(folder):
    (folder / "text.json").write_text("{")
    metadata(folder, {"file_name": "0.png"})
    reading = read_folder(folder)
    assert [e.name for e in reading.examples] == ["0.png"]
    assert reading.ignored["text.json"] == "metadata.jsonl is read instead"


# -- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.mask.png", "0-masklabel.png", "masks/0.png"])
def test_masks_are_found_and_never_taken_for_pictures(folder, name):
    mask(folder / name)
    reading = read_folder(folder)
    assert [e.name for e in reading.examples] == ["0.png", "1.png", "2.png"] and not reading.ignored
    found = reading.examples[0].mask
    assert found.mode == "L" and (found.getpixel((0, 0)), found.getpixel((7, 7))) == (255, 0)
    assert reading.examples[1].mask is None


def test_masks_go_with_pictures_of_every_kind_and_folder(tmp_path):
    paint(tmp_path / "2_cat" / "a.jpg")
    mask(tmp_path / "2_cat" / "masks" / "a.png")
    paint(tmp_path / "b.webp")
    mask(tmp_path / "b.mask.png")
    reading = read_folder(tmp_path)
    assert all(e.mask is not None for e in reading.examples) and not reading.ignored


def test_masks_of_nothing_are_reported(folder):
    mask(folder / "0.mask.png")
    for name in ("7.mask.png", "masks/0.png", "masks/8.png", "1-MASKLABEL.PNG"):
        mask(folder / name)
    reading = read_folder(folder)
    assert len(reading.examples) == 3
    expected = {"7.mask.png", "masks/0.png", "masks/8.png"}
    assert expected <= set(reading.ignored) <= expected | {"1-MASKLABEL.PNG"}
    assert all("mask" in why for why in reading.ignored.values())


def test_a_mask_of_another_size_names_both(folder):
    mask(folder / "0.mask.png", (16, 16))
    with pytest.raises(DataError, match=r"mask of 0\.png has 16 x 16 pixels, the picture 8 x 8"):
        read_examples(folder)


@pytest.mark.parametrize(("turned", "fits"), [(True, True), (False, False)])
def test_sizes_are_compared_after_turning(tmp_path, turned, fits):
    exif = Image.Exif()
    exif[274] = 6
    paint(tmp_path / "a.jpg", size=(12, 8), exif=exif)
    mask(tmp_path / "a.mask.png", (8, 12) if turned else (12, 8))
    if fits:
        assert read_examples(tmp_path)[0].mask.size == (8, 12)
    else:
        with pytest.raises(DataError, match="12 x 8 pixels, the picture 8 x 12"):
            read_examples(tmp_path)


def test_what_is_transparent_in_a_mask_is_not_the_thing(folder):
    made = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    made.paste((255, 255, 255, 255), (0, 0, 4, 8))
    made.save(folder / "0.mask.png")
    found = read_folder(folder).examples[0].mask
    assert (found.getpixel((0, 0)), found.getpixel((7, 0))) == (255, 0)


@pytest.mark.parametrize("level", [0, 1, 100])
def test_a_mask_that_shows_nothing_is_refused(folder, level):
    Image.new("L", (8, 8), level).save(folder / "0.mask.png")
    with pytest.raises(DataError, match=rf"0\.mask\.png is dark everywhere: {level} of 255.*white"):
        read_examples(folder)


def test_black_and_white_and_sixteen_bit_masks_are_read(folder):
    mask(folder / "0.mask.png")
    Image.open(folder / "0.mask.png").convert("1").save(folder / "0.mask.png")
    deep = Image.new("I;16", (8, 8), 65535)
    deep.save(folder / "1.mask.png")
    first, second, _ = read_folder(folder).examples
    assert first.mask.getextrema() == (0, 255) and second.mask.getextrema() == (255, 255)


def test_a_broken_mask_is_named(folder):
    (folder / "0.mask.png").write_text("x")
    with pytest.raises(DataError, match=r"0\.mask\.png"):
        read_examples(folder)
    reading = read_folder(folder)
    assert [one.name for one in reading.sound(skip=True).examples] == ["1.png", "2.png"], "the others go on"
    assert list(reading.doubtful) == ["0.png"]
