"""Layouts of other programs on the page of concepts: those a concept can be written in, PEFT's as one zip."""

from __future__ import annotations

import asyncio
import json
import zipfile
from pathlib import Path

import gradio as gr
import pytest
import torch

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference, LowRank
from studio.jobs.jobs import Jobs
from studio.library import concepts, import_export
from studio.web.pages.concepts import DIALECTS, LibraryPage

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
KINDS = {
    "word": ({}, ["A1111, ComfyUI, kohya", "diffusers"]),
    "lora": (
        {LAYER: LowRank(torch.ones(2, 4), torch.ones(3, 2), 0.5)},
        [name for name, dialect in DIALECTS.items() if dialect != "comfyui"],
    ),
    "whole": ({LAYER: Difference(torch.ones(3, 4))}, ["A1111, ComfyUI, kohya"]),
    "dora": ({LAYER: LowRank(torch.ones(2, 4), torch.ones(3, 2), 0.5, torch.ones(3))}, ["diffusers", "PEFT"]),
}


@pytest.fixture
def library(tmp_path):
    with gr.Blocks(analytics_enabled=False):
        return LibraryPage(Jobs(tmp_path / "studio", warm=False))


def saved(library, kind):
    card = ConceptCard(token=f"<{kind}>", family="pocket")
    return Concept(card, (torch.ones(1, 96),), KINDS[kind][0]).save(library.jobs.learned / f"{kind}.safetensors")


@pytest.mark.parametrize("kind", list(KINDS))
def test_layouts_on_offer_are_those_it_can_be_written_in(library, kind):
    path = saved(library, kind)
    *_, offered = library.pick(gr.EventData(None, {"id": kind}))
    assert (offered["choices"], offered["value"]) == (KINDS[kind][1], KINDS[kind][1][0])
    if kind == "whole":
        assert concepts.dialects(path) == ("a1111",)
        for dialect in ("diffusers", "peft"):
            with pytest.raises(Exception, match="changes whole weights"):
                import_export.export_concept(path, library.jobs.folder / dialect, dialect, half=False)


def test_the_folder_of_peft_comes_as_one_zip_that_can_be_read_again(library, tmp_path):
    path = saved(library, "lora")
    (archive,) = asyncio.run(library.ask_export("lora", "PEFT"))["value"]
    with zipfile.ZipFile(archive) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
        assert names == {"lora-lora/adapter_config.json", "lora-lora/adapter_model.safetensors", "lora.safetensors"}
        assert json.loads(packed.read("lora-lora/adapter_config.json"))["peft_type"] == "LORA"
        packed.extractall(tmp_path)
    again = Concept.load(import_export.import_concept(tmp_path / "lora-lora", "<again>", tmp_path / "library"))
    assert again.changes.keys() == {LAYER}
    for change in (again.changes[LAYER], Concept.load(path).changes[LAYER]):
        assert torch.equal(change.up @ change.down * change.scale, torch.full((3, 4), 1.0))
    assert Path(archive).parent == library.jobs.folder / "exports"


def test_only_layouts_that_there_are_can_be_asked_for(library):
    saved(library, "word")
    with pytest.raises(gr.Error, match="no layout"):
        asyncio.run(library.ask_export("word", "../../x"))
    assert not (library.jobs.folder / "exports").exists()
