"""Pictures of other programs say how they were made."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.concepts.card import ConceptCard
from pipelines.pictures.foreign_metadata import read_fields
from pipelines.pictures.metadata import Made, parameters, read_foreign
from pipelines.request.inpaint import Inpaint
from pipelines.request.request import Guidance, Request
from studio.cli import main

A1111 = """a (fox:1.2) in snow <lora:wolf:0.7>,
second line
Negative prompt: blurry, Steps: 9
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5, Clip skip: 2, Lora hashes: "wolf: abc", Version: v1.10.0"""
COMFY = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 8, "steps": 12, "cfg": 5.5, "sampler_name": "euler_ancestral", "scheduler": "sgm_uniform", "denoise": 1,
        "positive": ["6", 0], "negative": ["9", 0], "latent_image": ["5", 0]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 48, "batch_size": 1}},
    "6": {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["7", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["4", 1]}},
}  # fmt: skip
INVOKE = {"positive_prompt": "a fox", "negative_prompt": None, "width": 64, "height": 64, "seed": 4, "cfg_scale": 6.0,
          "steps": 9, "scheduler": "euler_k", "clip_skip": 0, "model": {"name": "x"}}  # fmt: skip


def told(chunks):
    found = read_fields(chunks)
    assert found is not None
    return Request.read(found.fields), found.left


def test_of_automatic1111():
    asked, left = told({"parameters": A1111})
    assert left == ("Model v1-5", "<lora:wolf:0.7>")
    assert asked == Request(
        prompt="a (fox:1.2) in snow,\nsecond line", negative_prompt="blurry, Steps: 9", steps=20, scheduler="dpm++2m",
        spacing="karras", guidance=Guidance(scale=7.0), seed=123, width=512, height=768, clip_skip=2,
    )  # fmt: skip


def test_of_comfyui():
    asked, left = told({"prompt": json.dumps(COMFY), "workflow": "{}"})
    assert left == ()
    assert asked == Request(
        prompt="a fox", negative_prompt="a dog", steps=12, scheduler="euler-a", spacing="sgm", seed=8, width=64,
        height=48, guidance=Guidance(scale=5.5),
    )  # fmt: skip


def test_of_invokeai():
    asked, left = told({"invokeai_metadata": json.dumps(INVOKE)})
    assert left == ("Model x",)
    assert asked == Request(
        prompt="a fox", steps=9, scheduler="euler", spacing="karras", seed=4, width=64, height=64,
        guidance=Guidance(scale=6.0),
    )  # fmt: skip


def test_what_is_not_taken_is_named():
    """Settings that change the picture and have no field are named, in any of the programs; notes are not."""
    text = "a fox\nSteps: 5, Sampler: DPM adaptive, Schedule type: Beta, CFG scale: 2, Seed: 1, Hires upscale: 2"
    assert told({"parameters": text})[1] == ("Sampler DPM adaptive", "Schedule type Beta", "Hires upscale 2")
    loaders = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
        "2": {"class_type": "LoraLoader", "inputs": {"lora_name": "ink.safetensors", "strength_model": 1}},
        "3": COMFY["3"] | {"inputs": COMFY["3"]["inputs"] | {"denoise": 0.6, "scheduler": "simple"}},
    }
    assert told({"prompt": json.dumps(COMFY | loaders)})[1] == (
        "Schedule type simple", "CheckpointLoaderSimple v1-5.safetensors", "LoraLoader ink.safetensors", "Denoise 0.6"
    )  # fmt: skip
    more = INVOKE | {"loras": [{"model": {"name": "ink"}}], "scheduler": "dpmpp_sde"}
    assert told({"invokeai_metadata": json.dumps(more)})[1] == ("Sampler dpmpp_sde", "Model x", "loras")
    many = ", ".join(f"Field {number}: {'x' * 200}" for number in range(100))
    left = told({"parameters": f"a fox\nSteps: 5, Seed: 1, Size: 64x64, {many}"})[1]
    assert len(left) == 20 and max(map(len, left)) <= 81


@pytest.mark.parametrize("chunks", [
    {}, {"parameters": "a caption"}, {"prompt": "a fox"}, {"prompt": "[1, 2]"},
    {"prompt": '{"3": {"class_type": "KSampler"}}'}, {"invokeai_metadata": "{"},
    {"invokeai_metadata": "[]"}, {"parameters": "x\nSteps: many, Seed: 1, Size: 3x3"},
])  # fmt: skip
def test_other_texts_are_none(chunks):
    assert read_fields(chunks) is None


def test_a_sampler_that_is_not_known_is_left_to_the_base():
    asked, left = told({"parameters": "a fox\nSteps: 5, Sampler: DPM adaptive, CFG scale: 2, Seed: 1, Size: 64x64"})
    assert asked.scheduler is None and left == ("Sampler DPM adaptive",)


@pytest.mark.pocket
def test_the_command_line_draws_from_such_a_picture(tmp_path, capsys):
    info = PngInfo()
    info.add_text(
        "parameters",
        "a fox\nSteps: 3, Sampler: Euler a, CFG scale: 3, Seed: 7, Size: 64x64, Model: v1-5, Version: v1.10.0",
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=info)
    asked = ["generate", "--from", str(tmp_path / "theirs.png"), "--steps", "2", "--output", str(tmp_path / "out")]
    assert main(asked) == 0
    assert "Of theirs.png is not taken: Model v1-5." in capsys.readouterr().err
    (drawn,) = (tmp_path / "out").glob("*.png")
    with Image.open(drawn) as picture:
        text = picture.text["parameters"]
    assert text.startswith("a fox\nSteps: 2, Sampler: Euler a, CFG scale: 3, Seed: 7") and read_foreign(drawn) is None


def test_the_infotext_tells_the_strength_of_a_changed_picture():
    asked = Request(prompt="a", inpaint=Inpaint(image="x.png", strength=0.6), steps=1, width=64, height=64)
    asked = asked.model_copy(update={"guidance": Guidance(scale=1.0)})
    assert "Denoising strength: 0.6" in parameters(Made(asked, 0, "b", "0" * 16, (ConceptCard(token="<x>"),)[:0]))
