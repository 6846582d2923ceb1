"""Folders as other programs and systems leave them: masks, captions, lists, and pictures that cannot be read."""

from __future__ import annotations

import codecs
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import DataError
from studio.cli import main
from trainers.data.folders import listing, read_examples, read_folder
from trainers.data.mask_files import looks_like_mask
from trainers.loop.launch import readings
from trainers.methods import methods
from trainers.run import run_of

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def paint(path, colour="red", size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jfif") else None, quality=95)
    return path


def mask(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.new("L", size, 0)
    made.paste(255, (0, 0, 4, 8))
    made.save(path, "JPEG" if path.suffix.lower() == ".jpg" else None)
    return path


@pytest.fixture
def folder(tmp_path):
    for index, colour in enumerate(("red", "green", "blue")):
        paint(tmp_path / f"{index}.png", colour)
    return tmp_path


def captions(folder):
    return {example.name: example.captions for example in read_folder(folder).examples}


# -- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".PNG", ".bmp"])
@pytest.mark.parametrize(
    "name", ["0.mask", "0-masklabel", "0_mask", "0.MASK", "0_Mask", "masks/0", "mask/0", "Masks/0"]
)
def test_masks_are_found_by_any_of_their_names_and_endings(folder, name, suffix):
    mask(folder / f"{name}{suffix}")
    reading = read_folder(folder)
    assert [one.name for one in reading.examples] == ["0.png", "1.png", "2.png"]
    assert not reading.ignored and not reading.doubtful
    assert [one.mask is not None for one in reading.examples] == [True, False, False]
    assert reading.examples[0].mask.getpixel((0, 0)) > 240 and reading.examples[0].mask.getpixel((7, 7)) < 16


def test_a_name_that_ends_in_mask_is_a_picture_unless_there_is_one_it_masks(folder):
    paint(folder / "venetian_mask.png", "gold")
    assert "venetian_mask.png" in captions(folder)
    paint(folder / "venetian.png", "white")
    assert "venetian_mask.png" not in captions(folder)
    assert read_folder(folder).examples[-1].mask is not None


@pytest.mark.parametrize("name", ["0_m.png", "0.alpha.jpg", "0 copy.png", "m-0.png", "0.jpg", "sub_0.tif"])
def test_a_black_and_white_picture_that_shares_a_name_is_asked_about(folder, name):
    mask(folder / name)
    reading = read_folder(folder)
    assert [one.name for one in reading.examples] == ["0.png", "1.png", "2.png"]
    assert "as a mask of 0.png; call it 0.mask." in reading.doubtful[name]
    with pytest.raises(DataError, match=rf"1 picture cannot be learned from.*{name}.*mask of 0\.png.*--skip-doubtful"):
        readings(run_of(methods()["textual-inversion"], {"token": "<x>", "init": "fox", "images": folder})).sound(False)
    assert len(read_examples(folder, skip=True)) == 3
    with pytest.raises(DataError, match="mask of 0"):
        read_examples(folder)


def test_what_a_list_names_and_what_is_drawn_in_ink_is_no_mask(folder):
    mask(folder / "x9_y.png")
    assert not read_folder(folder).doubtful, "it shares no name"
    mask(folder / "x9.png")
    assert not read_folder(folder).doubtful, "both are black and white"
    mask(folder / "0_m.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0_m.png", "text": "a {} in ink"}))
    assert captions(folder) == {"0_m.png": ("a {} in ink",)}


def test_only_black_and_white_looks_like_a_mask():
    rows = np.zeros((32, 32, 3), np.uint8)
    assert not looks_like_mask(Image.fromarray(rows)), "all black"
    rows[:, 16:] = 255
    assert looks_like_mask(Image.fromarray(rows))
    rows[:, 15:17] = 128
    assert not looks_like_mask(Image.fromarray(rows)), "a wide edge"
    rows[:, 15:17] = 250
    assert looks_like_mask(Image.fromarray(rows))
    rows[:8, :8] = (255, 0, 0)
    assert not looks_like_mask(Image.fromarray(rows)), "colour"


# -- pictures that cannot be read -----------------------------------------------------------------------------------


def test_bad_pictures_are_named_and_left_out_and_training_stops_unless_told_otherwise(folder, capsys):
    (folder / "3.jpg").write_text("no picture")
    whole = paint(folder / "4.jpg", "blue", (64, 64)).read_bytes()
    (folder / "4.jpg").write_bytes(whole[:-40])
    (folder / "5.png").touch()
    reading = read_folder(folder)
    assert [one.name for one in reading.examples] == ["0.png", "1.png", "2.png"]
    assert list(reading.doubtful) == ["3.jpg", "4.jpg", "5.png"]
    asked = ["train", "textual-inversion", "--images", str(folder), "--token", "<x>", "--init", "fox"]
    assert main([*asked, "--output", str(folder / "x")]) == 2
    said = capsys.readouterr().err
    assert "3 pictures cannot be learned from" in said and "--skip-doubtful" in said
    assert all(name in said for name in ("3.jpg", "4.jpg", "5.png"))
    assert main([*asked, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "3 pictures (plain folder)." in said and "Warning: 4.jpg is left out: 4.jpg cannot be read" in said


def test_a_folder_of_bad_pictures_alone_is_refused_whatever_is_told(tmp_path):
    (tmp_path / "0.png").write_text("x")
    with pytest.raises(DataError, match=r"1 picture cannot be learned from. 0\.png"):
        read_examples(tmp_path, skip=True)


def test_transparent_pictures_are_told(folder):
    paint(folder / "3.png", (255, 0, 0, 0), mode="RGBA")
    paint(folder / "4.png", (255, 0, 0, 255), mode="RGBA")
    reading = read_folder(folder)
    assert reading.transparent == ("3.png",)
    assert [one.picture.getpixel((0, 0)) for one in reading.examples[3:]] == [(255, 255, 255), (255, 0, 0)]


def test_what_is_not_read_is_said_with_the_reason(folder):
    for name in ("b.heic", "c.jxl", "captions.json", "meta_cap.json", "e.svg"):
        (folder / name).write_text("{}")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "d.png").mkdir()
    for name in ("Thumbs.db", "desktop.ini"):
        (folder / name).write_text("x")
    ignored = read_folder(folder).ignored
    assert set(ignored) == {"b.heic", "c.jxl", "captions.json", "meta_cap.json", "e.svg", "gone.png", "d.png"}
    assert "PNG or JPEG" in ignored["b.heic"] and "leads nowhere" in ignored["gone.png"]
    assert "metadata.jsonl" in ignored["captions.json"] and "metadata.jsonl" in ignored["meta_cap.json"]


def test_a_jpeg_by_another_ending_is_a_picture(folder):
    paint(folder / "a.jfif")
    assert "a.jfif" in captions(folder)


# -- captions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("0.TXT", b"a {}", ("a {}",)),
        ("0.png.txt", b"a {}", ("a {}",)),
        ("0.Caption", b"a {}", ("a {}",)),
        ("0.txt", codecs.BOM_UTF16_LE + "a {} on 猫".encode("utf-16-le"), ("a {} on 猫",)),
        ("0.txt", codecs.BOM_UTF16_BE + "a {} on".encode("utf-16-be"), ("a {} on",)),
        ("0.txt", b"\xef\xbb\xbfa {} on\r\na house\r\n", ("a {} on a house",)),
        ("0.txt", b"a {}\x00 on", ("a {} on",)),
        ("0.txt", b"a {}\n\nanother {}\n", ("a {} another {}",)),
        ("0.txt", NFD.encode(), (NFC,)),
        ("0.txt", b"{a|the} {} (red:1.3), [x]", ("{a|the} {} (red:1.3), [x]",)),
        ("0.captions", b"a {}\n\n another  {} \n", ("a {}", "another {}")),
        ("0.txt", b"\xef\xbb\xbf", ()),
    ],
)
def test_captions_are_read_as_systems_and_programs_write_them(folder, name, content, expected):
    (folder / name).write_bytes(content)
    reading = read_folder(folder)
    assert reading.examples[0].captions == expected and not reading.ignored


@pytest.mark.parametrize(
    "content",
    [
        b"a {} caf\xe9",
        codecs.BOM_UTF16_LE + b"a\0b",
        "a {} on".encode("utf-16-le"),
        "a {} on".encode("utf-16-be"),
        "a {} on".encode("utf-32"),
        "\ufeffa {}".encode("utf-32-be"),
    ],
)
def test_a_caption_in_another_encoding_is_refused(folder, content):
    (folder / "0.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"0\.txt is not UTF-8"):
        read_folder(folder)


def test_names_are_the_same_whether_accents_are_apart_or_not(tmp_path):
    paint(tmp_path / f"{NFC}.png")
    (tmp_path / f"{NFD}.txt").write_text("a {}")
    mask(tmp_path / f"{NFD}.mask.png")
    reading = read_folder(tmp_path)
    assert reading.examples[0].captions == ("a {}",) and reading.examples[0].mask and not reading.ignored
    for index, row in (
        ("metadata.jsonl", json.dumps({"file_name": f"{NFD}.png", "text": "one {}"})),
        ("text.json", json.dumps({NFD: ["two {}"]})),
        ("pairs.json", json.dumps({f"{NFD}.png": ["cat", "box"]})),
    ):
        (tmp_path / index).write_text(row)
        assert captions(tmp_path)[f"{NFC}.png"][0] in ("one {}", "two {}", "a cat {} a box")
        (tmp_path / index).unlink()


# -- lists ----------------------------------------------------------------------------------------------------------


def test_metadata_may_be_a_table(folder):
    paint(folder / "sub" / "d.png")
    rows = '\ufefffile_name,text,other\r\n0.png,"a {}, red",1\r\nsub/d.png,"two\nlines {}",2\r\n'
    rows += "0.png,again {},3\r\n1.png,,4\r\n"
    (folder / "metadata.csv").write_text(rows, encoding="utf-8", newline="")
    (folder / "1.txt").write_text("beside {}")
    reading = read_folder(folder)
    assert {one.name: one.captions for one in reading.examples} == {
        "0.png": ("a {}, red", "again {}"),
        "1.png": ("beside {}",),
        "sub/d.png": ("two lines {}",),
    }
    assert reading.convention == "metadata.csv" and reading.ignored == {"2.png": "not named in metadata.csv"}
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png"}')
    assert read_folder(folder).ignored["metadata.csv"] == "metadata.jsonl is read instead"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_tables_of_spreadsheets_have_other_marks_between_their_columns(folder, mark):
    (folder / "metadata.csv").write_text(f'file_name{mark}text\n0.png{mark}"a {{}}{mark} red"\n')
    assert captions(folder) == {"0.png": (f"a {{}}{' ' if mark == chr(9) else mark} red".replace("  ", " "),)}


@pytest.mark.parametrize(
    ("name", "content"), [("metadata.jsonl", ""), ("metadata.jsonl", "\ufeff"), ("metadata.csv", "0.png,a {}\n")]
)
def test_a_list_that_names_nothing_is_said(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{name} names no picture.*file_name"):
        read_folder(folder)


def test_a_folder_of_repeats_without_a_word_gives_no_caption(tmp_path):
    paint(tmp_path / "10_ " / "a.png")
    paint(tmp_path / f"2_{NFD}" / "b.png")
    found = {one.name[:2]: (one.captions, one.repeats) for one in read_folder(tmp_path).examples}
    assert found == {"10": ((), 10), "2_": ((NFC,), 2)}


@pytest.mark.parametrize(
    "content", [b"P6 1 1 255\nabc", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"]
)
def test_other_formats_are_no_pictures_by_any_name_and_start_no_program(folder, content):
    (folder / "x.png").write_bytes(content)
    assert "one of PNG, JPEG, WEBP" in read_folder(folder).doubtful["x.png"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file_name,text\n9.png,a", r"Line 2 of metadata\.csv names 9\.png"),
        ("image,text\n0.png,a", "Line 2 of metadata.csv has no file_name"),
        ('file_name,text\n0.png,"a', r"metadata\.csv is no table"),
        ("file_name,text\n../0.png,a", "outside the folder"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(folder, table, said):
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(DataError, match=said):
        read_folder(folder)


def test_metadata_finds_its_pictures_by_dots_backslashes_and_capitals(folder):
    paint(folder / "img" / "c.png")
    rows = [{"file_name": name, "text": f"{i} {{}}"} for i, name in enumerate((".\\0.png", "1.PNG", "img\\C.png"))]
    rows.append({"file_name": "2.png", "caption": ["a {}", "b {}"], "text": ""})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions(folder) == {
        "0.png": ("0 {}",),
        "1.png": ("1 {}",),
        "2.png": ("a {}", "b {}"),
        "img/c.png": ("2 {}",),
    }


def test_repeats_go_with_every_convention(folder):
    (folder / "repeats.json").write_text('{"0.png": 10, "2": 3}')
    for index, content in (("", ""), ("pairs.json", '{"1": ["cat", "box"]}'), ("text.json", '{"1": ["a {}"]}')):
        if index:
            (folder / index).write_text(content)
        reading = read_folder(folder)
        assert [one.repeats for one in reading.examples] == [10, 1, 3] and "repeats.json" not in reading.ignored
    for wrong in ('{"0.png": 0}', '{"0.png": "2"}', '{"0.png": true}', '{"9.png": 2}', "["):
        (folder / "repeats.json").write_text(wrong)
        with pytest.raises(DataError, match=r"repeats\.json"):
            read_folder(folder)


def test_a_project_folder_of_kohya_is_told_the_folder_within(tmp_path):
    paint(tmp_path / "img" / "10_sks dog" / "a.png")
    with pytest.raises(DataError, match=r"no picture in .*10_sks dog: give .*img\."):
        read_folder(tmp_path)


def test_folders_within_are_listed_where_that_is_asked_for_each_by_its_own_convention(tmp_path):
    paint(tmp_path / "cat" / "1.png")
    paint(tmp_path / "dog" / "1.png")
    (tmp_path / "dog" / "pairs.json").write_text('{"1.png": ["dog", "box"]}')
    paint(tmp_path / "kohya" / "10_wolf" / "1.png")
    paint(tmp_path / "list" / "deep" / "x.png")
    paint(tmp_path / "list" / "y.png")
    (tmp_path / "list" / "metadata.jsonl").write_text('{"file_name": "deep/x.png", "text": "an x"}')
    paint(tmp_path / "empty" / "masks" / "0.png")
    listed = listing(tmp_path, deep=True)
    assert [(one.name, one.captions[:1], one.repeats, one.pair) for one in listed.found] == [
        ("cat/1.png", (), 1, None),
        ("dog/1.png", ("a dog {} a box",), 1, ("dog", "box")),
        ("kohya/10_wolf/1.png", ("wolf",), 10, None),
        ("list/deep/x.png", ("an x",), 1, None),
    ]
    assert listed.convention == "plain folder, pairs.json, folders with repeats, metadata.jsonl"
    assert dict(listed.ignored) == {
        "empty": "a folder without pictures",
        "list/y.png": "not named in metadata.jsonl",
    }
