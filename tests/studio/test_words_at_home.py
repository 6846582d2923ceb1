"""Words in the library: files of all scripts, imports and renames checked, candidates kept."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.cli import main
from studio.jobs.jobs import Jobs
from studio.library import import_export
from trainers.loop.candidates import candidate, candidates, candidates_folder, kept_step, take
from trainers.methods import methods
from trainers.run import run_of

DIM = 96


def concept(token, family="pocket", vectors=1):
    return Concept(ConceptCard(token=token, family=family, vectors=vectors), (torch.randn(vectors, DIM),))


@pytest.fixture
def library(tmp_path):
    (tmp_path / "library").mkdir()
    return tmp_path / "library"


def test_words_of_all_scripts_live_side_by_side(library, tmp_path):
    words = ("<猫>", "<犬>", "<🦊>", "<🐺>", "<café>", "<caf>")
    for number, word in enumerate(words):
        save_file({word: torch.randn(1, DIM)}, tmp_path / f"{number}.safetensors")
        import_export.import_concept(tmp_path / f"{number}.safetensors", None, library)
    assert len(list(library.glob("*.safetensors"))) == len(words)
    assert {"猫.safetensors", "犬.safetensors", "café.safetensors", "caf.safetensors"} <= {
        path.name for path in library.iterdir()
    }
    method, images = methods()["textual-inversion"], {"images": "unused"}
    outputs = [run_of(method, {"token": word, "init": "fox"} | images).outputs[0] for word in words]
    assert len(set(outputs)) == len(words)
    both = {"token": "<猫>", "class_word": "cat", "pivotal": True, "also": ("x:<犬>:dog",)}
    output = {"output": tmp_path / "猫.safetensors"}
    assert len(run_of(methods()["dreambooth"], both | images | output).require_free()) == 2


def test_clients_reach_a_concept_of_any_script(tmp_path):
    jobs = Jobs(tmp_path / "studio", warm=False)
    concept("<猫>").save(jobs.learned / "猫.safetensors")
    web = TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")
    (listed,) = web.get("/api/v1/concepts").json()
    assert listed["id"] == "猫" and web.get(listed["href"]).json()["card"]["token"] == "<猫>"
    assert web.get(f"{listed['href']}/file").content == (jobs.learned / "猫.safetensors").read_bytes()
    asked = {"request": {"prompt": "a <猫>", "concepts": [{"source": "猫"}]}}
    assert web.post("/api/v1/generations", json=asked).status_code == 202
    assert web.delete(listed["href"]).status_code == 409 or not web.get("/api/v1/concepts").json()


@pytest.mark.parametrize("width", [768, 1024])
def test_a_word_that_every_stable_diffusion_has_is_refused_at_import_and_at_a_rename(library, tmp_path, width, capsys):
    save_file({"emb_params": torch.randn(1, width)}, tmp_path / "Fox.safetensors")
    words = ["concepts", "import", str(tmp_path / "Fox.safetensors"), "--library", str(library)]
    assert main(words) == 2
    assert "is already a word of sd" in (said := capsys.readouterr().err) and "--token" in said
    assert main([*words, "--token", "<fox>"]) == 0
    with pytest.raises(ConceptError, match="already a word"):
        import_export.rename_concept(library / "fox.safetensors", "cat")
    assert [one.name for one in library.iterdir()] == ["fox.safetensors"]


def test_words_bundled_in_one_file_never_overwrite_each_other(library, tmp_path, monkeypatch):
    one = concept("<x>", family="")
    both = replace(one, partners=(concept("x", family=""),))
    monkeypatch.setattr(import_export, "_read", lambda source: both)
    (tmp_path / "f.safetensors").touch()
    with pytest.raises(ConceptError, match=r"would have one file.*--token"):
        import_export.import_concept(tmp_path / "f.safetensors", None, library)
    assert not list(library.iterdir())
    import_export.import_concept(tmp_path / "f.safetensors", "<y>", library)
    assert sorted(path.name for path in library.iterdir()) == ["x.safetensors", "y.safetensors"]


@pytest.mark.parametrize("name", ["bad prompt v2", "a(b", "fox"])
def test_a_file_whose_word_can_never_be_used_is_refused_with_the_way_out(library, tmp_path, name, capsys):
    path = tmp_path / f"{name}.safetensors"
    save_file({"emb_params": torch.randn(1, DIM)}, path, {"modelspec.architecture": "promptstudio-pocket/x"})
    assert main(["concepts", "import", str(path), "--library", str(library)]) == 2
    said = capsys.readouterr().err
    assert "token" in said and "--token" in said and list(library.iterdir()) == []
    assert main(["concepts", "import", str(path), "--token", "<good>", "--library", str(library)]) == 0
    assert (library / "good.safetensors").is_file()


@pytest.mark.parametrize("word", ["my cute wolf", "a:b", "", "fox", "x" * 101, "<con>"])
def test_a_rename_checks_words_as_a_training_does(library, word):
    path = concept("<wolf>").save(library / "wolf.safetensors")
    before = path.read_bytes()
    with pytest.raises(ConceptError):
        import_export.rename_concept(path, word)
    assert [one.name for one in library.iterdir()] == ["wolf.safetensors"] and path.read_bytes() == before


def test_a_rename_keeps_the_candidates_under_the_new_word(library):
    path, folder = library / "wolf.safetensors", candidates_folder(library / "wolf.safetensors")
    for step in (10, 20):
        concept("<wolf>", vectors=2).save(candidate(folder, step))
    shutil.copyfile(candidate(folder, 10), path)
    (folder / "0000030.safetensors").write_bytes(b"damaged")
    rows = load_file(candidate(folder, 20))["<wolf>"]
    new = import_export.rename_concept(path, "<cafe\u0301>")
    assert new.name == "caf\u00e9.safetensors" and Concept.load(new).token == "<caf\u00e9>"
    assert list(candidates(new)) == [10, 20, 30] and kept_step(new) == 10
    take(new, 20)
    assert torch.equal(Concept.load(new).rows[0], rows) and Concept.load(new).token == "<caf\u00e9>"
    assert sorted(one.name for one in library.iterdir()) == ["caf\u00e9.safetensors", "caf\u00e9.steps"]
