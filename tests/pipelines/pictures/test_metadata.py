from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.networks import networks
from pipelines.errors import RequestError
from pipelines.pictures.metadata import KEY, Made, parameters, read_made, save_png
from pipelines.request.request import ConceptUse, Defaults, Guidance, Request


def made(**fields):
    request = Request(
        **({"prompt": 'a (fox:1.2), "quoted"\nline two', "negative_prompt": "dog", "seed": 7, "count": 3} | fields)
    )
    return Made(request.resolved(Defaults(size=64)), 2, "pocket", "0123456789abcdef")


def test_the_exact_request_comes_back(tmp_path):
    before = made(concepts=(ConceptUse(source="x.safetensors", strength=0.7),), guidance=Guidance(scale=3.3, start=0.1))
    card = ConceptCard(token="<x>")
    before = Made(before.request, 1, before.base, before.fingerprint, (card,), ("ab",), "eager", "float16")
    path = save_png(Image.new("RGB", (4, 4)), tmp_path / "a" / "x.png", before)
    after = read_made(path)
    assert (after.request, after.index, after.base, after.fingerprint) == (
        before.request,
        1,
        "pocket",
        before.fingerprint,
    )


def test_other_programs_can_read_the_parameters():
    text = parameters(made())
    last = text.splitlines()[-1]
    # AUTOMATIC1111's own expression for the last line.
    pairs = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last))
    assert (
        pairs["Seed"] == "9"
        and pairs["Size"] == "64x64"
        and pairs["Sampler"] == "DPM++ 2M"
        and pairs["CFG scale"] == "7.5"
    )
    assert "Negative prompt: dog" in text.splitlines()
    assert text.startswith('a (fox:1.2), "quoted"\nline two')


def test_automatic1111_finds_the_files_of_concepts(tmp_path):
    """As its extensions write them: tags in the prompt, sums of a LoRA's numbers and of an embedding's whole file."""
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    numbers = {f"{layer}.lora_down.weight": torch.ones(1, 32), f"{layer}.lora_up.weight": torch.ones(32, 1)}
    save_file(numbers, tmp_path / "ink.safetensors")
    save_file(numbers, tmp_path / "twin.safetensors", metadata={"sshs_model_hash": "0" * 64})
    save_file(numbers | {f"{layer}.alpha": torch.tensor(0.5)}, tmp_path / "k.safetensors",
              metadata={"sshs_model_hash": "ab" * 32})  # fmt: skip
    Concept(ConceptCard(token="<wolf>"), (torch.ones(1, 32),)).save(tmp_path / "wolf.safetensors")
    uses = [
        ConceptUse(source=str(tmp_path / f"{name}.safetensors"), strength=strength)
        for name, strength in (("ink", 0.7), ("wolf", 1.2), ("twin", 0.9), ("k", 1.0))
    ]
    concepts = [Concept.load(Path(use.source)) for use in uses]
    files = networks(uses, concepts)
    request = Request(prompt="a <wolf>, inked", concepts=tuple(uses)).resolved(Defaults(size=64))
    text = parameters(Made(request, 0, "b", "0" * 16, tuple(one.card for one in concepts), networks=files))
    prompt, last = text.splitlines()
    # Weights that two files share were learned together, and are applied once.
    assert prompt == "a <wolf>, inked <lora:ink:0.9> <lora:k:1>"
    pairs = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last))
    behind = (tmp_path / "ink.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", behind[:8])
    lora = hashlib.sha256(behind[8 + length :]).hexdigest()[:12]
    word = hashlib.sha256((tmp_path / "wolf.safetensors").read_bytes()).hexdigest()[:12]
    assert json.loads(pairs["Lora hashes"]) == f"ink: {lora}, k: abababababab"
    assert json.loads(pairs["TI hashes"]) == f"wolf: {word}"
    silent = request.model_copy(update={"prompt": "a fox"})
    assert "TI hashes" not in parameters(Made(silent, 0, "b", "0" * 16, networks=files))


def test_pictures_of_other_programs_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(RequestError, match="does not say how it was made"):
        read_made(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(RequestError, match=r"text\.png is no picture"):
        read_made(tmp_path / "text.png")
    with pytest.raises(RequestError, match="cannot be read"):
        read_made(tmp_path / "missing.png")


def write(path, own):
    info = PngInfo()
    info.add_itxt(KEY, own if isinstance(own, str) else json.dumps(own))
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda own: "{",
        lambda own: [],
        lambda own: own | {"schema": 99},
        lambda own: own | {"request": own["request"] | {"steps": -1}},
        lambda own: own | {"request": own["request"] | {"surprise": 1}},
        lambda own: own | {"index": 5},
        lambda own: own | {"attention": "magic"},
        lambda own: own | {"dtype": "float8"},
        lambda own: own | {"digests": ["too", "many"]},
        lambda own: {key: value for key, value in own.items() if key != "base"},
        lambda own: "[" * 5000,
    ],
)
def test_damaged_data_are_one_sentence(tmp_path, change):
    path = save_png(Image.new("RGB", (4, 4)), tmp_path / "good.png", made())
    own = json.loads(Image.open(path).text[KEY])
    with pytest.raises(RequestError):
        read_made(write(tmp_path / "bad.png", change(own)))
