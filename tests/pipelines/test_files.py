from __future__ import annotations

import os
import stat

import pytest

from pipelines.errors import ConfigError
from pipelines.files import require_room, whole_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as temporary:
        temporary.write_text("hello")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "hello"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_after_an_error_the_old_file_is_untouched_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="on purpose"), whole_file(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError("on purpose")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_files_are_as_readable_as_any_other(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    with whole_file(tmp_path / "whole") as temporary:
        temporary.write_text("x")
    assert stat.S_IMODE(os.stat(tmp_path / "whole").st_mode) == stat.S_IMODE(os.stat(plain).st_mode)


def test_the_file_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr("os.fsync", lambda descriptor: order.append("fsync"))
    replace = type(tmp_path).replace
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: (order.append("rename"), replace(self, to))[1])
    with whole_file(tmp_path / "x") as temporary:
        temporary.write_text("x")
    # The folder too, or the new name may be lost in a power cut.
    assert order == ["fsync", "rename", "fsync"]


def test_room_is_asked_for_where_the_folder_will_be(tmp_path):
    require_room(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(ConfigError, match="MiB are free"):
        require_room(tmp_path / "not" / "yet", 1 << 60)
