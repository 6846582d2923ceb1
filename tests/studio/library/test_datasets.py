"""Uploads of people: pictures are decoded and written anew, archives checked, names never lead anywhere."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.errors import DataError, Unknown
from studio.jobs.jobs import Jobs
from studio.library import archives, uploads
from studio.library.datasets import Datasets, PictureUploads
from trainers.data.folders import read_folder


def picture(size=(40, 30), color=(200, 10, 10), form="PNG", mode="RGB", **more):
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, form, **more)
    return stream.getvalue()


def archive(files, **flags):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = flags.get("mode", 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(info, content)
    return stream.getvalue()


@pytest.fixture
def datasets(tmp_path):
    return Datasets(tmp_path / "datasets")


@pytest.fixture
def one(datasets):
    return datasets.create("foxes").id


def test_a_picture_keeps_its_pixels_and_nothing_else(datasets, one):
    text, exif = PngInfo(), Image.Exif()
    text.add_text("parameters", "secret place")
    exif[0x010E], exif[0x0112] = "secret camera", 6  # turned by a quarter
    for data in (
        picture(pnginfo=text) + b"secret tail",
        picture(form="JPEG", exif=exif, quality=95),
        picture(form="WEBP", exif=exif),
    ):
        entry = datasets.add(one, data, "../../x.png", "a fox")
        stored = datasets.picture(one, entry.name)
        assert b"secret" not in stored.read_bytes()
        with Image.open(stored) as kept:
            assert kept.format == "PNG" and not kept.info and not kept.getexif()
    assert [(entry.name, entry.width, entry.height) for entry in datasets.entries(one)] == [
        ("0001.png", 40, 30),
        ("0002.png", 30, 40),
        ("0003.png", 30, 40),
    ]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "1", "CMYK"])
def test_pictures_of_every_mode_are_taken(datasets, one, mode):
    color = {"RGBA": (9, 9, 9, 0), "CMYK": (0, 0, 0, 0)}.get(mode, 1)
    form = "TIFF" if mode == "CMYK" else "PNG"
    entry = datasets.add(one, picture(mode=mode, color=color, form=form))
    with Image.open(datasets.picture(one, entry.name)) as kept:
        assert kept.mode == ("RGBA" if mode == "RGBA" else "RGB")


def bomb():
    """A small PNG that claims to be enormous."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def test_what_is_no_picture_is_refused_in_a_sentence(datasets, one):
    whole = picture()
    for data in (b"", b"x", b"<svg/>", whole[: len(whole) // 2], bomb(), b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9):
        with pytest.raises(DataError):
            datasets.add(one, data)
    assert datasets.entries(one) == [] and not list(datasets.folder(one).glob(".0*"))


def test_limits_hold(datasets, one, monkeypatch):
    monkeypatch.setattr(uploads, "PIXELS", 100)
    with pytest.raises(DataError, match="40 x 30"):
        datasets.add(one, picture())
    monkeypatch.setattr(uploads, "BYTES", 10)
    with pytest.raises(DataError, match="MiB"):
        datasets.add(one, picture())
    monkeypatch.undo()
    monkeypatch.setattr("studio.library.datasets.PICTURES", 2)
    for _ in range(2):
        datasets.add(one, picture())
    with pytest.raises(DataError, match="the most"):
        datasets.add(one, picture())


def test_captions_pairs_and_masks_are_read_by_training(datasets, one):
    names = [datasets.add(one, picture(), caption=text).name for text in ("a fox", "")]
    datasets.set_mask(one, names[0], picture(color=(255, 255, 255)))
    (first, second) = read_folder(datasets.folder(one)).examples
    assert first.captions == ("a fox",) and first.mask is not None and second.captions == ()
    with pytest.raises(DataError, match="40 x 30"):
        datasets.set_mask(one, names[0], picture(size=(5, 5)))
    datasets.replace(one, names[0], picture(size=(20, 20)))
    assert not datasets.entry(one, names[0]).mask
    datasets.set_caption(one, names[0], "")
    for name in names:
        datasets.set_pair(one, name, "cat", "box")
    assert all("{}" in example.captions[0] for example in read_folder(datasets.folder(one)).examples)
    with pytest.raises(DataError, match="one thing alone"):
        datasets.set_pair(one, names[0], "cat", " ")
    datasets.remove(one, names[0])
    assert json.loads((datasets.folder(one) / "pairs.json").read_text()) == {names[1]: ["cat", "box"]}


def test_an_archive_is_taken_with_captions_and_masks(datasets, one):
    white = picture(color=(255, 255, 255))
    files = {"f/b.jpg": picture(form="JPEG"), "f/a.png": picture(), "f/a.txt": b"a fox", "f/a.mask.png": white}
    assert len(archives.take(datasets, one, archive(files)).entries) == 2
    assert [(entry.caption, entry.mask) for entry in datasets.entries(one)] == [("a fox", True), ("", False)]


@pytest.mark.parametrize(
    "name", ["../x.png", "/x.png", "a/../../x.png", "C:\\x.png", "a\\..\\x.png", "a//x.png", "./x.png", "x\n.png"]
)
def test_names_that_lead_out_of_an_archive_are_refused(datasets, one, name):
    with pytest.raises(DataError, match="no plain name"):
        archives.take(datasets, one, archive({"ok.png": picture(), name: picture()}))
    assert datasets.entries(one) == []


def test_what_this_system_takes_for_a_name_is_one_in_an_archive(datasets, one):
    """On Windows these are none."""
    names = ["2026-01-01T10:00:00.png", "what?.png", 'a "b" <c>|*.png']
    if os.name != "nt":
        taken = archives.take(datasets, one, archive({name: picture() for name in names} | {"what?.txt": b"a fox"}))
        assert [entry.caption for entry in taken.entries] == ["", "", "a fox"]


def test_a_mask_that_cannot_be_used_takes_its_picture_along_and_no_other(datasets, one):
    files = {"a.png": picture(), "a.mask.png": b"junk", "b.png": picture(), "c.png": picture()}
    taken = archives.take(datasets, one, archive(files | {"c.mask.png": picture(size=(5, 5), color="white")}))
    assert [entry.name for entry in taken.entries] == [entry.name for entry in datasets.entries(one)]
    assert len(taken.entries) == 1 and list(taken.ignored) == ["a.png", "c.png"]
    assert "a.mask.png" in taken.ignored["a.png"] and "5 x 5" in taken.ignored["c.png"]


def test_archives_that_are_not_as_they_should_be_are_refused(datasets, one):
    good = archive({"a.png": picture()})
    for data, said in (
        (archive({"a.png": b"/etc/passwd"}, mode=0o120777), "link"),
        (archive({"a.txt": b"0" * 20_000_000}), "unpacks to too much"),
        (archive({"a.png": picture(), "A.PNG": picture()}), "twice"),
        (archive({"a": b"x", "a/b.png": picture()}), "'a/b.png' in the archive lies in a file"),
        (archive({"A/b": b"x", "a/B/c.png": picture()}), "lies in a file"),
        (archive({"a.png": picture(), "a.txt": b"x" * 4001}), r"a\.png: A caption has at most 4000"),
        (archive({"a.txt": b"x"}), "no picture in the archive"),
        (archive({"a.png": b"/etc/passwd", "b.png": b"junk"}), "No picture.*a.png is no picture.*b.png is no picture"),
        (archive({"a.png": picture(), "a.txt": b"caf\xe9"}), "a.txt is not UTF-8"),
        (archive({"a.png": picture(), "a.mask.png": picture(size=(5, 5), color="white")}), "mask has 5 x 5 pixels"),
        (archive({"a.png": picture(), "a_mask.jpg": picture(color="black")}), "a_mask.jpg.*dark everywhere"),
        (archive({"a.png": picture(), "metadata.jsonl": b"["}), "Line 1 of metadata.jsonl"),
        (b"junk", "no zip"),
        (good[:-30], "no zip"),
    ):
        with pytest.raises(DataError, match=said):
            archives.take(datasets, one, data)
    assert datasets.entries(one) == []


def test_ids_are_ids(datasets, one, tmp_path):
    (tmp_path / "x.png").write_bytes(picture())
    for name in ("..", "../x", "", one.upper() + "0", "/etc", "\x00"):
        with pytest.raises(Unknown):
            datasets.folder(name)
        with pytest.raises(Unknown):
            datasets.picture(one, name)
        with pytest.raises(Unknown):
            PictureUploads(tmp_path).path(name)
    pictures = PictureUploads(tmp_path / "pictures")
    assert Image.open(pictures.path(pictures.add(picture()))).size == (40, 30)
    datasets.delete(one)
    assert datasets.list() == [] and not list(datasets.path.iterdir())


def test_uploads_that_nothing_was_made_of_go_after_a_while(tmp_path):
    jobs = Jobs(tmp_path, warm=False)
    old, used, new = (jobs.pictures.add(picture(), name) for name in ("old", "used", "new"))
    jobs.submit_generation({"prompt": "a fox", "inpaint": {"image": used, "strength": 0.5}})
    for name in (old, used):
        os.utime(jobs.pictures.path(name), (0, 0))
    assert jobs.pictures.prune(jobs.ledger.names, 60) == 1
    assert jobs.pictures.path(used).is_file() and jobs.pictures.path(new).is_file()
    with pytest.raises(Unknown):
        jobs.pictures.path(old)
