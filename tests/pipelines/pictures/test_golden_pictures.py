"""Pictures that earlier versions wrote repeat: those of each date hold the fields a request had then.

A picture is drawn by the small base of the tests, whose weights come from a seed, so a change of `tests.tiny.sd` wants
these drawn anew with the code of their day.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from pipelines.generation import generate
from pipelines.models.loading import load
from pipelines.pictures.metadata import KEY, read_made
from tests import tiny

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.png"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The small base as a folder, without and with layers for boxes: read by all versions alike."""
    pipeline, plain, gated = tiny.sd_pipeline(), *(tmp_path_factory.mktemp(name) for name in ("plain", "gated"))
    pipeline.save_pretrained(plain)
    pipeline.unet = tiny.gated().unet
    pipeline.save_pretrained(gated)
    return plain, gated


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_picture_of_an_earlier_version_repeats(path, folders):
    made = read_made(path)
    result = generate(load(folders[bool(made.request.boxes)]), made.request)
    difference = ImageChops.difference(result.pictures[made.index], Image.open(path).convert("RGB"))
    assert max(high for _, high in difference.getextrema()) <= 1


def test_they_hold_what_a_request_had_at_their_time():
    fields = [set(json.loads(Image.open(path).text[KEY])["request"]) for path in GOLDEN]
    assert len(fields) == 4 and len({frozenset(one) for one in fields}) == 4


def test_the_first_pictures_say_less(tmp_path):
    own = json.loads(Image.open(GOLDEN[0]).text[KEY])
    concept = {"source": "wolf.safetensors", "strength": 0.5}
    kept = {key: own[key] for key in ("schema", "index", "base", "fingerprint")}
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(kept | {"request": own["request"] | {"concepts": [concept]}}))
    Image.new("RGB", (4, 4)).save(tmp_path / "first.png", pnginfo=info)
    made = read_made(tmp_path / "first.png")
    assert (made.attention, made.dtype, made.digests) == ("sdpa", "float32", ("",))
