from __future__ import annotations

import json
import re

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.card import ConceptCard
from pipelines.errors import RequestError
from pipelines.metadata import KEY, Made, parameters, read_made, save_png
from pipelines.request import ConceptUse, Defaults, Guidance, Request


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
