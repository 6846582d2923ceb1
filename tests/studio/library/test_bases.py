"""Several bases: what their files tell without torch, and that the pages ask the one that is chosen."""

from __future__ import annotations

import json
import shutil

import gradio as gr
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.compatibility import BaseFiles, base_files
from pipelines.concepts.concept import Concept
from pipelines.models import POCKET
from pipelines.models.components import load
from studio.jobs.jobs import Jobs
from studio.web.app import build
from studio.web.components import base_choice
from studio.web.pages.example import EXAMPLE, PARTS, ExamplePage
from studio.web.pages.generate import GeneratePage, chips_of
from studio.web.pages.teach import OFTEN, TeachPage


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A copy of pocket with other weights in its UNet."""
    folder = tmp_path_factory.mktemp("bases") / "twin"
    shutil.copytree(POCKET, folder, ignore=shutil.ignore_patterns("judge", "unet_inpainting"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + np.float16(0.25)
    save_file(tensors, file)
    return folder


@pytest.fixture
def jobs(tmp_path, twin):
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    bases = {"pocket": "pocket", "twin": str(twin), "unknown": str(unknown)}
    return Jobs(tmp_path / "studio", bases=bases, warm=False)


def page(kind, jobs):
    with gr.Blocks(analytics_enabled=False):
        return kind(jobs, base_choice(jobs.bases))


def folder(tmp_path, name, vae="AutoencoderKL", context=768, hidden=768, second=False):
    """The configurations of a base, without weights."""
    configs = {
        "model_index.json": {"text_encoder_2": ["transformers", "X"] if second else [None, None]},
        "vae/config.json": {"_class_name": vae},
        "unet/config.json": {"cross_attention_dim": context},
        "text_encoder/config.json": {"hidden_size": hidden},
    }
    for place, config in configs.items():
        path = tmp_path / name / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
    return str(tmp_path / name)


def test_the_fingerprint_of_files_is_that_of_the_loaded_base(twin):
    assert base_files("pocket") == BaseFiles("pocket", load("pocket").fingerprint())
    assert base_files(str(twin)) == BaseFiles("pocket", load(twin).fingerprint())
    assert base_files(str(twin)) != base_files("pocket")


def test_of_damaged_files_nothing_is_known(twin, tmp_path):
    shutil.copytree(twin, tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert base_files(str(tmp_path / "cut")) == BaseFiles()
    for number, parts in enumerate(("[]", '{"text_encoder_2": []}', "{", "7")):
        broken = folder(tmp_path, str(number))
        (tmp_path / str(number) / "model_index.json").write_text(parts)
        assert base_files(broken) == BaseFiles()


def test_families_are_told_by_configurations_or_the_names_of_tensors(tmp_path):
    assert base_files(folder(tmp_path, "a")).family == "sd1"
    assert base_files(folder(tmp_path, "b", context=1024, hidden=1024)).family == "sd2"
    assert base_files(folder(tmp_path, "c", context=2048, second=True)).family == "sdxl"
    assert base_files(folder(tmp_path, "d", vae="AutoencoderTiny")).family == "sd1"  # a fast autoencoder in an SD
    for family, name in (("sd1", "transformer.x"), ("sd2", "model.x")):
        save_file({f"cond_stage_model.{name}": np.zeros(1, np.float32)}, tmp_path / f"{family}.safetensors")
        assert base_files(str(tmp_path / f"{family}.safetensors")).family == family
    save_file({"conditioner.embedders.1.x": np.zeros(1, np.float32)}, tmp_path / "xl.safetensors")
    assert base_files(str(tmp_path / "xl.safetensors")).family == "sdxl"


def test_of_what_cannot_be_read_nothing_is_known(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for base in (tmp_path, tmp_path / "x.safetensors", "somebody/something"):
        assert base_files(str(base)) == BaseFiles()
        assert BaseFiles().misfit(ConceptCard(token="<a>", family="sd1", base_fingerprint="0")) == ""


def test_chips_say_what_does_not_go_with_the_base(jobs):
    own, other = base_files("pocket").fingerprint, base_files(jobs.bases["twin"]).fingerprint
    for name, family, fingerprint in (("own", "pocket", own), ("other", "pocket", other), ("real", "sd1", "1" * 16)):
        card = ConceptCard(token=f"<{name}>", family=family, base_fingerprint=fingerprint)
        Concept(card, (torch.ones(1, 96),)).save(jobs.learned / f"{name}.safetensors")
    said = {
        base: {chip["id"]: (chip["on"], chip["problem"]) for chip in chips_of(jobs, base, ["own", "real"])}
        for base in jobs.bases
    }
    weights, family = "learned on other weights of pocket", "made for Stable Diffusion 1.x"
    assert said["pocket"] == {"own": (True, ""), "other": (False, weights), "real": (False, family)}
    assert said["twin"] == {"own": (False, weights), "other": (False, ""), "real": (False, family)}
    assert said["unknown"] == {"own": (True, ""), "other": (False, ""), "real": (True, "")}
    chips, *_ = page(GeneratePage, jobs).refresh("twin", [{"id": "own", "on": True, "strength": 1.0}])
    assert not any(chip["on"] for chip in chips)


def test_all_pages_ask_the_base_that_is_chosen(jobs):
    generate, ask, teach = page(GeneratePage, jobs), page(ExamplePage, jobs), page(TeachPage, jobs)
    values = [component.value for component in generate.form.components]
    asked = [generate.submit("twin", "a fox", [], [], {}, "", *values)]
    values = [component.value for component in ask.form.components]
    asked.append(ask.submit("twin", *(str(EXAMPLE / f"{part}.png") for part in PARTS), "", {}, *values))
    dataset, rows, *_ = teach.take_example("object", None)
    asked.append(teach.submit("object", None, dataset, rows["value"], "<x>", "fox", "recommended", "", "twin"))
    assert [jobs.get(one).spec["base"] for one in asked] == ["twin"] * 3
    with pytest.raises(gr.Error, match="no base"):
        teach.submit("object", None, dataset, rows["value"], "<y>", "fox", "recommended", "", "../pocket")


def test_steps_are_left_to_the_method_where_its_recipe_is_not_known(jobs):
    teach = page(TeachPage, jobs)
    dataset, rows, *_ = teach.take_example("object", None)

    def settings(base, steps=""):
        job = teach.submit_check("object", None, dataset, rows["value"], "<x>", "fox", "recommended", steps, base)
        return {name: jobs.get(job).spec["settings"].get(name) for name in ("steps", "preview_every")}

    assert settings("twin") == {"steps": 400, "preview_every": 66}
    assert settings("unknown") == {"steps": None, "preview_every": OFTEN}
    assert settings("unknown", "60") == {"steps": "60", "preview_every": 10}


def test_the_choice_is_shown_where_there_is_one(jobs, tmp_path):
    def chooser(jobs):
        (found,) = [block for block in build(jobs).blocks.values() if getattr(block, "elem_id", "") == "base"]
        return [choice for choice, _ in found.choices], found.value, found.visible

    assert chooser(jobs) == (["pocket", "twin", "unknown"], "pocket", True)
    assert chooser(Jobs(tmp_path / "one", warm=False)) == (["pocket"], "pocket", "hidden")
