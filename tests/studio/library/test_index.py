"""The index of a library: as if every header were read at every look, without reading it."""

from __future__ import annotations

import os
import shutil
import sqlite3

import pytest

from studio.library import concepts, index


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
        base.execute(statement)
    base.close()


def test_without_a_place_for_it_entries_are_kept_in_memory(folder, read, monkeypatch):
    (folder / index.FILE).mkdir()
    first = seen(folder)
    assert seen(folder) == first and len(read) == 4


def test_five_thousand_concepts_are_looked_at_without_opening_one(tmp_path, read):
    folder = tmp_path / "many"
    folder.mkdir()
    shutil.copyfile(concepts.EXAMPLE, folder / "0.safetensors")
    for number in range(1, 5000):
        os.link(folder / "0.safetensors", folder / f"{number}.safetensors")
    known = {path.name: index.Known(stamp, None, "") for path, stamp in _stamped(folder)}
    index._store(folder, known, ())
    assert len(seen(folder)) == 5000 and read == []


def _stamped(folder):
    return [(folder / name, stamp) for name, stamp in index._stamps(folder)]
