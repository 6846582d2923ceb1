"""A picture tells no folder of the machine it was made on, and is repeated there all the same."""

from __future__ import annotations

import json
import os
import stat

import pytest
from PIL import Image

from pipelines.pictures.metadata import KEY, Made, read_made, save_png, with_its_files
from pipelines.pictures.png import texts
from pipelines.pictures.sources import found_again, recall, remember, shared_name, state
from pipelines.request.inpaint import Inpaint
from pipelines.request.request import ConceptUse, Defaults, ExamplePair, InContext, Request

DOT = Image.new("RGB", (4, 4))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def made(tmp_path):
    """Return the settings of a picture with every kind of file, all of them outside the working folder."""
    far = tmp_path / "home" / "maria"
    (far / "base").mkdir(parents=True)
    for name in ("x.safetensors", "photo.png", "mask.png", "a.png", "b.png", "q.png"):
        (far / name).write_bytes(name.encode())
    request = Request(
        prompt="a <x>",
        concepts=(ConceptUse(source=str(far / "x.safetensors")),),
        inpaint=Inpaint(image=str(far / "photo.png"), mask=str(far / "mask.png")),
    ).resolved(Defaults(size=64))
    asked = InContext(
        examples=(ExamplePair(before=str(far / "a.png"), after=str(far / "b.png")),), query=str(far / "q.png")
    )
    return Made(request, 0, str(far / "base"), "0" * 16, (), ("d",)), asked


def test_no_folder_of_the_machine_is_in_a_picture_and_it_is_found_again_from_anywhere(tmp_path, monkeypatch):
    before, asked = made(tmp_path)
    for name, one in (
        ("files", before),
        ("question", Made(Request(prompt="", in_context=asked).resolved(Defaults(size=64)), 0, "pocket", "0" * 16)),
    ):
        path = save_png(DOT, tmp_path / f"{name}.png", one)
        assert "maria" not in json.dumps(texts(path)) and str(tmp_path) not in json.dumps(texts(path))
        (elsewhere := tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(elsewhere)
        again = with_its_files(read_made(path), path)
        assert (again.request, again.base) == (one.request, one.base)


def test_on_another_machine_files_beside_the_picture_are_found_and_others_stay_names(tmp_path, monkeypatch):
    before, _ = made(tmp_path)
    path = save_png(DOT, tmp_path / "sent" / "x.png", before)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    (path.parent / "concepts").mkdir()
    (path.parent / "concepts" / "x.safetensors").touch()
    again = with_its_files(read_made(path), path)
    assert again.request.concepts[0].source == str(path.parent / "concepts" / "x.safetensors")
    assert (again.base, again.request.inpaint.image) == ("base", "photo.png")


def test_names_are_relative_to_the_working_folder(tmp_path):
    assert shared_name(str(tmp_path / "work" / "out" / "x.safetensors")) == "out/x.safetensors"
    assert shared_name(str(tmp_path / "x.safetensors")) == "x.safetensors"
    assert shared_name(str(tmp_path / "work")) == "work"
    assert [shared_name(one) for one in ("pocket", "a/b", "../x.png")] == ["pocket", "a/b", "../x.png"]


def test_the_list_is_the_owners_alone_short_and_survives_damage(tmp_path, monkeypatch):
    (file := tmp_path / "x").touch()
    remember(["a"], {"x": str(file)})
    remember(["a"], {"x": str(file)})
    assert len(state().read_text().splitlines()) == 1
    assert stat.S_IMODE(os.stat(state()).st_mode) == 0o600
    with state().open("ab") as stream:
        stream.write(b"\xff damaged\n")
    remember(["b"], {"x": str(file), "gone": "/nowhere/y"})
    assert (recall(["a"]), recall(["b"]), recall(["c"])) == ({"x": str(file)}, {"x": str(file)}, {})
    monkeypatch.setattr("pipelines.pictures.sources.MOST", 10)
    remember(["c"], {"x": str(file)})
    assert recall(["a"]) == {} and recall(["c"])
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    remember(["d"], {"x": str(file)})
    assert recall(["d"]) == {}


def test_a_file_in_the_working_folder_keeps_its_short_name(tmp_path):
    (tmp_path / "work" / "x").touch()
    assert found_again("x", tmp_path / "p.png", {"x": str(tmp_path / "work" / "x")}) == "x"
    assert KEY == "promptstudio"
