"""Facts that bases tell of themselves without being loaded, and the catalogue of those that are there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.models import POCKET
from pipelines.models.families.known import KNOWN
from pipelines.models.loading import load
from studio.cli import main
from studio.jobs.specs import Places
from studio.library import model_cards
from studio.library.bases import Bases, facts_of
from studio.library.model_cards import base_card
from tests import tiny_flows
from tests.waiting import LIMIT


def folder_of(components, folder):
    """A base in a folder, as diffusers saves it."""
    parts = dict(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), components.text_encoders, strict=False))
    parts |= dict(zip(("tokenizer", "tokenizer_2", "tokenizer_3"), components.tokenizers, strict=False))
    parts |= {components.family.network: components.denoiser, "vae": components.vae}
    components.family.pipeline(components, parts).save_pretrained(folder)
    return folder


@pytest.fixture
def twin(tmp_path):
    return Path(shutil.copytree(POCKET, tmp_path / "models" / "twin", ignore=shutil.ignore_patterns("judge")))


def test_pocket_tells_what_it_is():
    card, loaded = base_card("pocket"), load("pocket")
    assert (card.family, card.licence, card.problem, card.inpainting, card.boxes) == ("pocket", "mit", "", True, True)
    assert card.defaults == loaded.defaults
    assert card.numbers == sum(one.numel() for module in loaded.modules() for one in module.parameters())
    assert card.memory == (2 * card.numbers, 4 * card.numbers)


@pytest.mark.parametrize("family", ["sd3", "flux1", "flux2", "qwen-image"])
def test_default_settings_are_those_of_the_loaded_base(family, tmp_path):
    loaded = tiny_flows.base(family)
    card = base_card(str(folder_of(loaded, tmp_path / "base")))
    assert (card.family, card.problem, card.defaults) == (family, "", loaded.defaults)


def test_a_folder_that_cannot_be_read_says_why_and_what_helps(twin):
    def problem():
        card = base_card(str(twin))
        assert card.problem == "" or card.hint
        return card.problem

    assert problem() == ""
    weights = next((twin / "vae").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert problem() == f"vae/{weights.name} is damaged, or not whole."
    weights.rename(weights.with_suffix(".bin"))
    assert problem() == "The weights of its vae are there as pickles alone (.bin), which can run code."
    weights.write_bytes(whole)
    assert problem() == ""
    index = twin / "model_index.json"
    said = json.loads(index.read_text())
    index.write_text(json.dumps({name: one for name, one in said.items() if name != "tokenizer"}))
    assert problem() == "It has no tokenizer."
    index.write_text(json.dumps({**said, "unet": ["diffusers", "UFOModel"]}))
    assert problem() == "It is of a family that is not supported."
    index.write_text("{")
    assert problem() == "Its model_index.json cannot be read."
    index.unlink()
    assert problem() == "It holds no model_index.json."


@pytest.mark.parametrize(
    "broken", ['{"sample_size": Infinity}', "[" * 100_000, '{"in_channels": {"a": []}, "sample_size": [[]]}', "null"]
)
def test_one_odd_model_leaves_the_list_whole(twin, tmp_path, broken):
    (twin / "unet" / "config.json").write_text(broken)
    first = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros(3, np.float32)}
    save_file(first, twin.parent / "odd.safetensors")
    found = {one.name: one.card for one in Bases({"pocket": "pocket"}, [twin.parent]).found()}
    assert list(found) == ["pocket", "odd", "twin"] and not found["pocket"].problem
    assert found["odd"].problem and found["odd"].hint


def test_a_base_that_is_named_twice_is_no_rival_of_itself_and_a_broken_one_takes_no_name(twin, tmp_path):
    twice = Bases({"mine": str(twin)}, [twin.parent, twin.parent])
    assert [(one.name, one.card.problem) for one in twice.found()] == [("mine", "")]
    (tmp_path / "first" / "twin").mkdir(parents=True)
    both = Bases({}, [tmp_path / "first", twin.parent])
    assert [bool(one.card.problem) for one in both.found()] == [True, False]
    assert list(both) == ["twin"] and both["twin"] == str(twin)


def test_a_base_is_read_again_only_when_it_changes(twin, monkeypatch):
    asked = []
    read = model_cards._of_folder
    monkeypatch.setattr(model_cards, "_of_folder", lambda folder: asked.append(folder) or read(folder))
    for _ in range(3):
        base_card(str(twin))
    assert len(asked) == 1
    os.utime(twin / "unet" / "config.json", (1, 1))
    base_card(str(twin))
    assert len(asked) == 2


def checkpoint(path, family, **more):
    start = {
        "sd1": "cond_stage_model.transformer.",
        "sd2": "cond_stage_model.model.",
        "sdxl": "conditioner.embedders.1.",
    }
    unet = np.zeros((320, more.pop("channels", 4), 3, 3), np.float16)
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": unet, start[family] + "x": np.zeros(8, np.float16)}
    save_file(tensors, path, metadata=more)
    return str(path)


def test_a_single_file_is_told_by_its_header(tmp_path):
    named = {"modelspec.license": "CreativeML Open RAIL-M"}
    card = base_card(checkpoint(tmp_path / "sd-inpainting.safetensors", "sd1", channels=9, **named))
    assert (card.family, card.layout, card.inpainting) == ("sd1", "file", True)
    assert card.licence == "CreativeML Open RAIL-M" and card.numbers == 320 * 9 * 9 + 8
    assert card.defaults == KNOWN["sd1"].defaults(512, quick=False)
    assert base_card(checkpoint(tmp_path / "x.safetensors", "sdxl")).defaults.size == 1024
    assert base_card(checkpoint(tmp_path / "turbo.safetensors", "sdxl")).distilled
    save_file({"lora_unet_x.lora_up.weight": np.zeros((1, 1), np.float32)}, tmp_path / "lora.safetensors")
    assert "no UNet" in base_card(str(tmp_path / "lora.safetensors")).problem
    (tmp_path / "old.ckpt").write_bytes(b"\x80")
    assert "pickles" in base_card(str(tmp_path / "old.ckpt")).problem
    assert base_card("owner/name").layout == "hub" and base_card("owner/name").problem == ""
    assert base_card("a" * 5000).problem == ""


def test_the_catalogue_offers_what_lies_in_its_folders_now(twin, tmp_path):
    root = twin.parent
    bases = Bases({"pocket": "pocket"}, (root, tmp_path / "gone"))
    assert dict(bases) == {"pocket": "pocket", "twin": str(twin)} and len(bases) == 2
    (root / "pocket").mkdir()
    (root / ".twin.part").mkdir()
    checkpoint(root / "real.safetensors", "sd1")
    (root / "notes.txt").touch()
    found = {one.name: one.card.problem for one in bases.found()}
    assert found == {"pocket": "Another base is called pocket.", "twin": "", "real": ""}
    assert list(bases) == ["pocket", "real", "twin"] and bases["pocket"] == "pocket"
    for name in ("../twin", str(twin), ".twin.part", "twin/unet", ""):
        assert name not in bases
    shutil.rmtree(twin)
    assert "twin" not in bases
    places = Places(tmp_path, {"pocket": "pocket"}, models=(root,))
    assert places.base("real") == str(root / "real.safetensors")


def test_facts_are_sentences_for_people(twin):
    told = facts_of(base_card(str(twin)))
    assert told["memory"].startswith("18 MiB on a GPU, 36 MiB on a CPU") and told["licence"] == "mit"
    (twin / "model_index.json").unlink()
    assert list(facts_of(base_card(str(twin)))) == ["cannot be used", "what helps", "on disk"]


def test_the_command_lists_them_without_torch(twin, capsys):
    assert main(["bases", "list", "--models", str(twin.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pocket", "twin"] and lines[1].endswith(f"--base {twin}")
    assert main(["bases", "fetch", "owner/name"]) == 2
    assert "Say --download" in capsys.readouterr().err
    assert main(["bases", "fetch", "../x", "--download"]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err
    code = (
        "import sys; from studio.library.bases import Bases; "
        f"from pathlib import Path; Bases({{'pocket': 'pocket'}}, (Path({str(twin.parent)!r}),)).found(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=LIMIT).returncode == 0
