"""The index of a library: as if every header were read at every look, without reading it."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageColor

from pipelines.concepts.card import read_card
from studio.api.app import rest
from studio.jobs.jobs import Jobs
from studio.library import concepts, index
from studio.library.thumbnails import SIDE, thumbnail
from studio.web.pages.concepts import cards_of
from studio.web.panels.chips import chips_of


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "concepts"
    place.mkdir()
    for name in ("a", "b", "c"):
        shutil.copyfile(concepts.EXAMPLE, place / f"{name}.safetensors")
    (place / "d.safetensors").write_bytes(b"no concept")
    yield place
    index._known.clear()


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose headers are read."""
    names = []
    real = concepts.read_card
    monkeypatch.setattr(concepts, "read_card", lambda path: (names.append(path.name), real(path))[1])
    return names


def seen(folder):
    return [(one.name, one.card, one.problem) for one in concepts.scan(folder)]


def everything_anew(folder):
    index._known.clear()
    (folder / index.FILE).unlink(missing_ok=True)
    return seen(folder)


def test_headers_are_read_once_also_by_the_next_process(folder, read):
    first = seen(folder)
    assert [name for name, _, _ in first] == ["a", "b", "c", "d"]
    assert first[3][1] is None and "not a safetensors file" in first[3][2]
    assert len(read) == 4
    assert seen(folder) == first and len(read) == 4
    index._known.clear()  # as in a new process
    assert seen(folder) == first and len(read) == 4


def test_what_changes_is_read_again_and_what_is_gone_is_forgotten(folder, read):
    first = seen(folder)
    read.clear()
    (folder / "b.safetensors").write_bytes(b"something else")
    os.utime(folder / "c.safetensors", ns=(1, 1))
    (folder / "a.safetensors").unlink()
    shutil.copyfile(concepts.EXAMPLE, folder / "e.safetensors")
    second = seen(folder)
    assert sorted(read) == ["b.safetensors", "c.safetensors", "e.safetensors"]
    assert [name for name, _, _ in second] == ["b", "c", "d", "e"] and second[1] == first[2]
    assert second == everything_anew(folder)
    # Another file of the same size, put in its place as a training does it.
    shutil.copyfile(folder / "c.safetensors", other := folder / "x")
    os.utime(other, ns=(1, 1))
    os.replace(other, folder / "c.safetensors")
    read.clear()
    seen(folder)
    assert read == ["c.safetensors"]


def test_an_index_that_is_damaged_or_of_another_version_is_made_anew(folder, read, monkeypatch):
    first = seen(folder)
    for spoil in (
        lambda: (folder / index.FILE).write_bytes(b"no database" * 100),
        lambda: _execute(folder, "UPDATE known SET card = '{}' WHERE name = 'a.safetensors'"),
        lambda: _execute(folder, "DROP TABLE known"),
        lambda: monkeypatch.setattr(index, "_version", lambda: 7),
    ):
        spoil()
        index._known.clear()
        read.clear()
        assert seen(folder) == first and len(read) == 4
        index._known.clear()
        read.clear()
        assert seen(folder) == first and read == [], "it was written anew"


def _execute(folder, statement):
    with sqlite3.connect(folder / index.FILE) as base:
        rows = base.execute(statement).fetchall()
    base.close()
    return rows


def test_without_a_place_for_it_entries_are_kept_in_memory(folder, read, monkeypatch):
    (folder / index.FILE).mkdir()
    first = seen(folder)
    assert seen(folder) == first and len(read) == 4


def test_five_thousand_concepts_are_listed_without_opening_one(jobs, read, monkeypatch):
    """Nothing has changed since they were indexed: no header is read, and no preview opened but for those looked at."""
    many(jobs.learned, 5000)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *more: (opened.append(path), real(path, *more))[1])
    monkeypatch.setattr(concepts, "read_header", refused)
    assert len(seen(jobs.learned)) == 5000
    cards = cards_of(jobs)
    assert len(cards) == 60 and cards[1]["picture"].startswith("/api/v1/concepts/00001/preview?v=")
    assert [card["id"] for card in cards_of(jobs, "0499")] == ["00499", *(f"0499{end}" for end in range(10))]
    chips = chips_of(jobs, "pocket", ["04000"])
    assert len(chips) == 25 and [chip["id"] for chip in chips if chip["on"]] == ["04000"]
    with TestClient(rest(jobs)) as web:
        first = web.get("/api/v1/concepts?limit=50&search=for+pocket")
        assert [one["id"] for one in first.json()] == [f"{number:05}" for number in range(50)]
        assert (read, opened) == ([], [])
        for _ in range(2):
            answer = web.get(cards[7]["picture"])
            assert answer.headers["content-type"] == "image/png" and "immutable" in answer.headers["cache-control"]
            with real(io.BytesIO(answer.content)) as small:
                assert max(small.size) <= SIDE
        assert len(opened) == 1, "it was kept"
        assert web.get("/api/v1/concepts/00000/preview").status_code == 404, "it has none"


def many(folder, count):
    """Put an indexed library of so many concepts into a folder; all but the first have previews."""
    shutil.copyfile(concepts.EXAMPLE, folder / "00000.safetensors")
    shutil.copyfile(concepts.EXAMPLE.with_suffix(".preview.png"), folder / "00001.preview.png")
    for number in range(1, count):
        os.link(folder / "00000.safetensors", folder / f"{number:05}.safetensors")
        if number > 1:
            os.link(folder / "00001.preview.png", folder / f"{number:05}.preview.png")
    card = read_card(concepts.EXAMPLE)
    known = {
        name: index.IndexEntry(folder / name, card, "", index.Stamp(*stamp)) for name, stamp in index._stamps(folder)
    }
    index._store(folder, known, ())


def refused(path):
    raise AssertionError(f"{path} was read")


def test_thumbnails_follow_their_previews_and_go_with_them(folder):
    preview = folder / "a.preview.png"
    for colour in ("red", "blue"):
        Image.new("RGB", (300, 200), colour).save(preview)
        with Image.open(io.BytesIO(thumbnail(folder / "a.safetensors"))) as small:
            assert (small.size, small.getpixel((5, 5))) == ((96, 64), ImageColor.getrgb(colour))
    kept = "SELECT name FROM pictures"
    assert _execute(folder, kept) == [("a.safetensors",)]
    seen(folder)
    (folder / "a.safetensors").unlink()
    seen(folder)
    assert _execute(folder, kept) == []
    (folder / "b.preview.png").write_bytes(b"no picture")
    assert thumbnail(folder / "b.safetensors") is None and thumbnail(folder / "c.safetensors") is None
    (folder / index.FILE).write_bytes(b"no database" * 100)
    shutil.copyfile(preview, folder / "c.preview.png")
    assert thumbnail(folder / "c.safetensors") and _execute(folder, kept) == [("c.safetensors",)]


def test_a_file_of_a_far_time_is_kept_like_any_other(folder, read):
    os.utime(folder / "a.safetensors", ns=(2**63 + 5, 2**63 + 5))
    if (folder / "a.safetensors").stat().st_mtime_ns < 2**63:
        pytest.skip("this file system has no such times")
    assert [name for name, _, _ in seen(folder)] == ["a", "b", "c", "d"]
    index._known.clear()
    read.clear()
    seen(folder)
    assert read == [], "it is known again from the disk"
    os.utime(folder / "a.safetensors", ns=(2**63 + 9, 2**63 + 9))
    seen(folder)
    assert len(read) == 1
