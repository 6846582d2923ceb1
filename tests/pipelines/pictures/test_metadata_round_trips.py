"""From a picture back to the request that made it, through PNG files that come from anywhere."""

from __future__ import annotations

import json
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines import Concept, ConceptCard
from pipelines.concepts.token_embeddings import single_rows
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.pictures.metadata import (
    ATTENTIONS,
    DTYPES,
    KEY,
    LIMIT,
    Made,
    parameters,
    read_made,
    save_png,
    with_its_files,
)
from pipelines.request.request import ConceptUse, Defaults, Guidance, Inpaint, Request
from pipelines.request.samplers import SAMPLERS
from tests import tiny

DOT = Image.new("RGB", (4, 4))


def made(index=0, base="pocket", concepts=(), digests=(), uses=(), **fields):
    request = Request(**({"prompt": "a fox", "concepts": uses} | fields)).resolved(Defaults(size=64))
    return Made(request, index, base, "0123456789abcdef", concepts, digests)


def fields_of(text):
    """The last line read with the expression AUTOMATIC1111 itself uses, quotes undone."""
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.splitlines()[-1])
    return {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}


TEXT = st.characters(exclude_categories=("Cs", "Cc"))
"""Letters that a request takes."""

REQUESTS = st.builds(
    Request,
    prompt=st.text(TEXT, max_size=60),
    negative_prompt=st.text(TEXT, max_size=20),
    guidance=st.builds(Guidance, scale=st.floats(0, 50), rescale=st.floats(0, 1), start=st.floats(0, 1)),
    inpaint=st.none()
    | st.builds(
        Inpaint,
        image=st.text(TEXT, min_size=1, max_size=20),
        mask=st.none() | st.text(TEXT, max_size=9),
        strength=st.floats(0.01, 1),
        feather=st.integers(0, 512),
        only_masked=st.booleans(),
    ),
    scheduler=st.sampled_from(list(SAMPLERS)),
    steps=st.integers(1, 1000),
    seed=st.integers(0, 2**63 - 1),
    count=st.integers(1, 256),
)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUESTS, st.sampled_from(ATTENTIONS), st.sampled_from(DTYPES), st.text(TEXT, min_size=1, max_size=20))
def test_whatever_can_be_asked_comes_back_exactly(tmp_path, request_, attention, dtype, base):
    request_ = request_.resolved(Defaults(size=64))
    before = Made(request_, request_.count - 1, base, "00", (), (), attention, dtype)
    assert read_made(save_png(DOT, tmp_path / "x.png", before)) == before


def test_a_picture_made_with_a_concept_can_be_made_again_from_its_file(tmp_path):
    base = tiny.sd()
    path = Concept(ConceptCard(token="<x>", family="sd1"), single_rows(base, "fox")).save(tmp_path / "x.safetensors")
    request = Request(
        prompt="a (<x>:1.2)",
        concepts=(ConceptUse(source=str(path), strength=0.8),),
        count=2,
        steps=2,
        scheduler="euler-a",
    )
    first = generate(base, request)
    digests = tuple(concept.digest() for concept in first.concepts)
    cards = tuple(concept.card for concept in first.concepts)
    file = save_png(first.pictures[1], tmp_path / "1.png", Made(first.request, 1, "tiny", "f", cards, digests))
    known = with_its_files(read_made(file), file)
    again = generate(base, known.request)
    assert known.digests == tuple(concept.digest() for concept in again.concepts)
    assert again.pictures[known.index].tobytes() == Image.open(file).tobytes()


def test_the_pixels_are_kept_to_the_bit_and_an_older_picture_is_replaced(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    save_png(DOT, tmp_path / "x.png", made())
    save_png(Image.fromarray(pixels), tmp_path / "x.png", made(prompt="second"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)
    assert read_made(tmp_path / "x.png").request.prompt == "second"


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_each_sampler_is_written_under_its_known_name(name):
    assert fields_of(parameters(made(scheduler=name)))["Sampler"] == SAMPLERS[name]


def test_numbers_are_those_of_this_very_picture():
    fields = fields_of(
        parameters(made(index=2, seed=40, count=3, steps=9, width=32, height=48, guidance={"scale": 2.5}))
    )
    assert (fields["Seed"], fields["Steps"], fields["Size"], fields["CFG scale"]) == ("42", "9", "32x48", "2.5")
    assert fields["Model hash"] == "0123456789" and "CFG rescale" not in fields


def test_what_is_not_there_takes_no_line_and_no_field():
    text = parameters(made())
    assert len(text.splitlines()) == 2 and "Negative prompt" not in text and "Concepts" not in fields_of(text)


def test_rescale_and_concepts_are_told_and_quoted():
    uses = (ConceptUse(source="a"), ConceptUse(source="b", strength=0.75))
    cards = (ConceptCard(token="<a>"), ConceptCard(token='<"b">'))
    fields = fields_of(parameters(made(concepts=cards, digests=("1", "2"), guidance={"rescale": 0.7}, uses=uses)))
    assert fields["Concepts"] == '<a>: 1, <"b">: 0.75' and fields["CFG rescale"] == "0.7"


@pytest.mark.parametrize("base", ["a/b, c.safetensors", 'say "x".safetensors', "with: colon.safetensors"])
def test_names_with_commas_and_quotes_do_not_break_the_line(base):
    fields = fields_of(parameters(made(base=base)))
    assert fields["Model"] == base.split("/")[-1].removesuffix(".safetensors") and fields["Seed"] == "0"


# -- pictures from anywhere -----------------------------------------------------------------------------------------


def own_data(tmp_path, **fields):
    with Image.open(save_png(DOT, tmp_path / "good.png", made(**fields))) as picture:
        return json.loads(picture.text[KEY])


def with_text(path, text, **how):
    info = PngInfo()
    info.add_itxt(KEY, text if isinstance(text, str) else json.dumps(text), **how)
    DOT.save(path, pnginfo=info)
    return path


def test_a_picture_saved_again_by_another_program_says_nothing(tmp_path):
    Image.open(save_png(DOT, tmp_path / "x.png", made())).copy().save(tmp_path / "again.png")
    Image.open(tmp_path / "x.png").save(tmp_path / "again.jpg")
    for name in ("again.png", "again.jpg"):
        with pytest.raises(RequestError, match=rf"{name} does not say how it was made.*unedited"):
            read_made(tmp_path / name)


def test_compressed_text_is_read_and_a_bomb_of_it_is_not(tmp_path):
    own = own_data(tmp_path, prompt="small")
    assert read_made(with_text(tmp_path / "zip.png", own, zip=True)).request.prompt == "small"
    bomb = with_text(tmp_path / "bomb.png", " " * (40 << 20), zip=True)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(RequestError, match=r"bomb\.png"):
        read_made(bomb)


def test_more_data_than_a_request_needs_are_not_parsed(tmp_path):
    own = own_data(tmp_path)
    own["request"]["prompt"] = "x" * LIMIT
    with pytest.raises(RequestError, match="does not say how it was made"):
        read_made(with_text(tmp_path / "x.png", own))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_with_gigantic_measures_is_refused_by_its_header(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 10_000, 1, 0, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(RequestError, match="12000 x 10000 pixels; at most 100,000,000"):
        read_made(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "newer version .schema 2.*Update"),
        ({"schema": "1"}, "damaged"),
        ({"schema": None}, "damaged"),
        ({"index": -1}, "picture -1 of 1"),
        ({"index": 1}, "picture 1 of 1"),
        ({"index": "one"}, "damaged"),
        ({"index": float("inf")}, "damaged"),
        ({"digests": None}, "damaged"),
        ({"digests": ["x"]}, "damaged"),
        ({"attention": ["sdpa"]}, "damaged"),
        ({"request": None}, "request"),
        ({"request": []}, "request"),
        ({"request": {"prompt": 3}}, "prompt"),
        ({"request": {"prompt": "x", "steps": 5000}}, r"steps.*1000.*5000"),
        ({"request": {"prompt": "x", "guidance": {"scale": float("nan")}}}, "guidance.scale"),
        ({"request": {"prompt": "x", "guidance": {"scale": float("inf")}}}, "guidance.scale"),
        ({"request": {"prompt": "x", "seed": 2**63}}, "seed"),
        ({"request": {"prompt": "x", "width": 1e9}}, "width"),
    ],
)
def test_changed_data_are_refused_with_what_is_wrong(tmp_path, change, said):
    path = with_text(tmp_path / "bad.png", own_data(tmp_path) | change)
    with pytest.raises(RequestError, match=said):
        read_made(path)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 5000), value=st.integers(0, 255), cut=st.integers(0, 600), mend=st.booleans())
def test_a_damaged_file_never_does_worse_than_a_request_error(tmp_path, place, value, cut, mend):
    data = bytearray(save_png(DOT, tmp_path / "x.png", made(count=2)).read_bytes())
    data[place % len(data)] = value
    data = data[: len(data) - cut] if cut < 200 else data
    if mend:
        checksums_mended(data)
    (tmp_path / "x.png").write_bytes(bytes(data))
    try:
        assert read_made(tmp_path / "x.png").request.count >= 1
    except RequestError as error:
        assert "x.png" in error.message or "studio generate" in error.hint


def checksums_mended(data):
    """Make the checksum of each chunk right, so that the damage reaches what reads it."""
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            return
        sound = zlib.crc32(bytes(data[place + 4 : place + 8 + length]))
        data[place + 8 + length : place + 12 + length] = sound.to_bytes(4, "big")
        place += 12 + length


def test_a_seed_in_the_file_means_the_same_noise_everywhere():
    # The written seed of picture i is the one that gives it alone.
    base = tiny.sd()
    request = Request(prompt="a fox", steps=1, seed=8, count=3).resolved(base.defaults)
    seed = int(fields_of(parameters(Made(request, 2, "tiny", "00")))["Seed"])
    three = generate(base, request).latents
    alone = generate(base, request.model_copy(update={"seed": seed, "count": 1})).latents
    torch.testing.assert_close(three[2:], alone, atol=1e-4, rtol=1e-4)
