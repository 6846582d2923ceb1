"""Archives are read by the same rules as folders, and say what they left out."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import DataError
from studio.library import archives
from studio.library.datasets import Datasets
from trainers.base_models.gligen_data import read_boxed
from trainers.base_models.incontext import InContextConfig
from trainers.data.folders import read_folder


def picture(color=(200, 10, 10), size=(8, 8), mode="RGB", form="PNG", half=False):
    made = Image.new(mode, size, color)
    if half:
        made.paste(255 if mode == "L" else "white", (0, 0, size[0] // 2, size[1]))
    stream = io.BytesIO()
    made.save(stream, form)
    return stream.getvalue()


MASK = picture(0, mode="L", half=True)
PACKED = {
    "captions beside": {"a.PNG": picture(), "a.TXT": b"a fox", "b.png": picture(), "b.captions": b"one {}\ntwo {}\n"},
    "utf-16": {"a.png": picture(), "a.txt": "a {} on".encode("utf-16")},
    "metadata": {
        "a.png": picture(),
        "b.png": picture("blue"),
        "metadata.jsonl": b'{"file_name": "a.png", "text": ["a {}", "the {}"]}\n{"file_name": "b.png", "text": "b"}\n',
    },
    "table": {"a.png": picture(), "metadata.csv": b"file_name,text\na.png,a {}\n"},
    "text": {"a.png": picture(), "text.json": b'{"a.png": ["cat {} box", "a cat {} a box"]}'},
    "pairs": {"a.png": picture(), "b.png": picture(), "pairs.json": b'{"a": ["cat", "box"]}', "b.txt": b"a {}"},
    "kohya": {"10_wolf/1.png": picture(), "10_wolf/1.txt": b"a wolf", "1_fox/1.png": picture("blue")},
    "masks": {
        "a.png": picture(),
        "masks/a.png": MASK,
        "b.png": picture(),
        "b_mask.webp": picture(0, (8, 8), "RGB", "WEBP", True),
    },
}


def archive(files, slash="/"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        for name, content in files.items():
            out.writestr(zipfile.ZipInfo(name.replace("/", slash)), content)
            out.infolist()[-1].filename = name.replace("/", slash)
    return stream.getvalue()


@pytest.fixture
def datasets(tmp_path):
    return Datasets(tmp_path / "datasets")


@pytest.fixture
def one(datasets):
    return datasets.create("foxes").id


def learned(folder):
    """Return the pictures and captions that training reads from a folder, without names."""
    return [
        (np.asarray(one.picture).tolist(), one.captions, one.repeats, one.mask and one.mask.tobytes())
        for one in read_folder(folder).examples
    ]


@pytest.mark.parametrize("within", ["", "set/", "a b/set/"])
@pytest.mark.parametrize("name", list(PACKED))
def test_training_sees_of_an_archive_what_it_sees_of_the_folder(datasets, one, tmp_path, name, within):
    folder = tmp_path / "unpacked"
    for file, content in PACKED[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    taken = archives.take(datasets, one, archive({within + file: data for file, data in PACKED[name].items()}))
    assert learned(datasets.folder(one)) == learned(folder) and not taken.ignored
    assert len(taken.entries) == len(datasets.entries(one)) == len(read_folder(folder).examples)


def test_windows_own_archives_are_read(datasets, one):
    files = {"set/a.png": picture(), "set/a.txt": b"a fox", "set/masks/a.png": MASK}
    (entry,) = archives.take(datasets, one, archive(files, slash="\\")).entries
    assert (entry.caption, entry.mask) == ("a fox", True)


def test_equal_names_in_different_folders_are_different_pictures(datasets, one):
    files = {"cat/1.png": picture("red"), "dog/1.png": picture("blue"), "dog/1.txt": b"a dog"}
    taken = archives.take(datasets, one, archive(files))
    assert [entry.caption for entry in taken.entries] == ["", "a dog"]


def test_what_is_left_out_is_told_with_the_reason(datasets, one):
    files = {
        "set/a.png": picture(),
        "set/masks/a_m.png": MASK,
        "set/a_alpha.png": MASK,
        "set/b.heic": b"x",
        "set/c.png": b"junk",
        "set/c.txt": b"of nothing",
        "set/captions.json": b"{}",
        "__MACOSX/set/._a.png": b"litter",
        "set/.DS_Store": b"litter",
        "set/Thumbs.db": b"litter",
    }
    taken = archives.take(datasets, one, archive(files))
    assert len(taken.entries) == 1 and not datasets.entries(one)[0].mask
    assert {name: why.partition(";")[0][:40] for name, why in taken.ignored.items()} == {
        "set/masks/a_m.png": "a mask, but no picture goes with it or a",
        "set/a_alpha.png": "it is black and white, as a mask of a.pn",
        "set/b.heic": "not a kind of picture that is read",
        "set/c.png": "c.png is no picture that can be read, wh",
        "set/captions.json": "captions in a form that is not read",
    }
    assert not [path for path in datasets.path.iterdir() if path.name != one], "nothing unpacked is left"


def test_errors_name_files_of_the_archive_and_no_folder_of_the_server(datasets, one, tmp_path):
    for files in ({"set/x/notes.md": b"x"}, {"a.png": picture(), "a.txt": b"caf\xe9"}, {"a.png": b"junk"}):
        with pytest.raises(DataError) as raised:
            archives.take(datasets, one, archive(files))
        assert str(tmp_path) not in str(raised.value) and raised.value.hint
    assert datasets.entries(one) == [] and not [path for path in datasets.path.iterdir() if path.name != one]


def test_captions_and_repeats_are_changed_and_go_with_their_picture(datasets, one):
    archives.take(datasets, one, archive(PACKED["text"] | {"repeats.json": b'{"a": 7}'}))
    (entry,) = datasets.entries(one)
    assert (entry.caption, entry.repeats) == ("cat {} box\na cat {} a box", 7)
    assert datasets.set_caption(one, entry.name, "one").caption == "one"
    assert [example.captions for example in read_folder(datasets.folder(one)).examples] == [("one",)]
    assert datasets.set_caption(one, entry.name, " a \n\n b ").caption == "a\nb"
    assert [example.captions for example in read_folder(datasets.folder(one)).examples] == [("a", "b")]
    assert datasets.set_repeats(one, entry.name, 2).repeats == 2
    assert json.loads((datasets.folder(one) / "repeats.json").read_text()) == {entry.name: 2}
    with pytest.raises(DataError, match="0 times"):
        datasets.set_repeats(one, entry.name, 0)
    datasets.add(one, picture())
    datasets.remove(one, entry.name)
    assert [path.name for path in datasets.folder(one).iterdir() if path.name[0] != "."] == ["0002.png"]


def test_a_mask_by_transparency_is_white_only_where_it_is_opaque(datasets, one, tmp_path):
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (2, 2, 6, 6))
    for mode in ("RGBA", "P", "LA"):
        stream = io.BytesIO()
        (clear.quantize() if mode == "P" else clear.convert(mode)).save(stream, "PNG")
        name = datasets.add(one, picture()).name
        datasets.set_mask(one, name, stream.getvalue())
        with Image.open(datasets.mask(one, name)) as stored:
            assert (np.asarray(stored) == 255).mean() == 0.25, "as on the command line"
    for black in (picture("black"), picture((255, 255, 255, 0), mode="RGBA"), picture((99, 99, 99))):
        with pytest.raises(DataError, match="dark everywhere"):
            datasets.set_mask(one, name, black)
    with Image.open(datasets.mask(one, name)) as stored:
        assert np.asarray(stored).any(), "the one before stays"


def test_pairs_and_boxes_of_an_archive_are_learned_from(datasets):
    """A pair is one picture with what a change made of it; boxes go with their picture."""
    box = b'{"label": "fox", "bbox": [0.1, 0.2, 0.4, 0.6]}'
    files = {"a.before.png": picture("red"), "a.after.png": picture("blue"), "before/b.png": picture("red"),
             "after/b.png": picture("lime"), "a.before.bbox": box}  # fmt: skip
    dataset = datasets.create().id
    taken = archives.take(datasets, dataset, archive(files))
    assert [one.name for one in taken.entries] == ["0001.png", "0002.png"] and taken.ignored == {}
    pairs = InContextConfig().read(datasets.folder(dataset)).sound().examples
    assert [one.name for one in pairs] == ["0001", "0002"]
    assert pairs[0].after.getpixel((0, 0)) == (0, 0, 255)
    boxed = read_boxed(datasets.folder(dataset)).examples
    assert [box.phrase for one in boxed for box in one.boxes] == ["fox"]
    datasets.remove(dataset, "0001.png")
    assert not [one for one in datasets.folder(dataset).iterdir() if one.name.startswith("0001")]
