"""Each of these fails on eea525e and should pass once its bug is mended."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines import Concept, ConceptCard, Guidance, Request, load
from pipelines.concepts.card import read_card
from pipelines.concepts.token_embeddings import check_token, single_rows
from pipelines.condition import Step
from pipelines.errors import ConceptError, ConfigError, DataError, ModelError, RequestError
from pipelines.files import whole_file
from pipelines.guidance import active
from pipelines.measures.judge import Judge
from pipelines.models.families.clip import encode_prompts
from pipelines.models.families.registry import FAMILIES
from pipelines.models.schedulers import KINDS, build
from pipelines.models.text import parse_weights
from pipelines.pictures.files import open_picture
from pipelines.pictures.metadata import Made, parameters
from pipelines.request.request import Defaults
from tests import tiny


@pytest.mark.parametrize("length", [128, 384, 640])
def test_a_header_whose_length_ends_in_the_first_byte_of_a_pickle_is_read(tmp_path, length):
    header = json.dumps({"<x>": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}).encode().ljust(length)
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(8))
    assert read_card(tmp_path / "x.safetensors").token == "<x>"


@pytest.mark.parametrize("words", range(100, 160, 8))
def test_a_saved_concept_can_be_loaded_whatever_the_length_of_its_header(tmp_path, words):
    card = ConceptCard(token="<x>", family="sd1", base="b" * words)
    path = Concept(card, (torch.zeros(1, 4),)).save(tmp_path / "x.safetensors")
    assert Concept.load(path).card.base == "b" * words


@pytest.mark.parametrize("prompt", ["a sticker of a (car:1.5) below a bus", "a (fox:1.3)", "a (fox:2) [house]"])
def test_weights_keep_the_strength_of_the_other_words(prompt):
    pocket = load("pocket")
    bare = "".join(text for text, _ in parse_weights(prompt))
    plain, heavy = (encode_prompts(pocket, [text])[0].context for text in (bare, prompt))
    assert 0.5 < float((heavy[0, 0] / plain[0, 0]).median()) < 1.5


def test_weights_on_an_encoder_whose_output_adds_up_to_nothing_stay_finite():
    base = tiny.sd().to("cpu", torch.float64)
    for scale in torch.linspace(0.5, 2, 40).tolist():
        assert torch.isfinite(encode_prompts(base, [f"a (fox:{scale:.2f}) [house]"])[0].context).all()
    plain, heavy = (encode_prompts(base, [text])[0].context for text in ("a red fox", "a (red:1.5) fox"))
    assert 0.5 < float((heavy[0, 0] / plain[0, 0]).median()) < 1.5


@pytest.mark.parametrize("steps", [501, 999, 1000])
@pytest.mark.parametrize("name", list(KINDS))
def test_every_number_of_steps_in_the_allowed_range_works_or_is_refused(name, steps):
    try:
        scheduler = build(name, tiny.sd().scheduler_config, steps, "cpu")
    except RequestError:
        return
    latents = torch.ones(1, 1, 2, 2) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        latents = scheduler.step(scheduler.scale_model_input(latents, timestep) * 0.1, timestep, latents).prev_sample
    assert torch.isfinite(latents).all() and len(scheduler.timesteps) == steps


def test_a_damaged_avif_is_one_sentence(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(stream, "AVIF")
    whole, worst = stream.getvalue(), None
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0x5A
        (tmp_path / "x.avif").write_bytes(bytes(data))
        try:
            open_picture(tmp_path / "x.avif")
        except DataError:
            pass
        except Exception as error:
            worst = (place, error)
    assert worst is None


def test_a_folder_whose_tokenizer_was_not_copied_is_refused(tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load(tmp_path)


@pytest.mark.parametrize(("read", "error"), [(lambda n: Concept.load(Path(n)), ConceptError), (load, ModelError)])
def test_a_name_too_long_for_a_file_is_one_sentence(read, error):
    with pytest.raises(error):
        read("x" * 300)


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, not a file"), whole_file(tmp_path) as temporary:
        temporary.write_text("x")


def test_the_one_name_safetensors_keeps_for_itself_is_no_token():
    with pytest.raises(ConceptError):
        check_token(tiny.sd(), "__metadata__")


def test_two_concepts_of_a_pocket_put_together_in_memory_work_together():
    base = replace(tiny.sd(), family=FAMILIES["pocket"])
    card = ConceptCard(token="<x>", family="pocket", base_fingerprint=base.fingerprint())
    first = Concept(card, single_rows(base, "fox"))
    second = replace(first, card=card.model_copy(update={"token": "<y>"}))
    with first.attach(base) as one, second.attach(one):
        pass


@pytest.mark.parametrize(
    ("base", "name"), [("stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-xl-base-1.0")]
)
def test_the_version_in_a_hub_id_is_part_of_the_models_name(base, name):
    made = Made(Request(prompt="x").resolved(Defaults(size=64)), 0, base, "00")
    assert f"Model: {name}," in parameters(made)


@pytest.mark.parametrize("share", [0.29, 0.57, 0.58])
def test_a_share_of_a_hundred_steps_is_that_many(share):
    acting = [i for i in range(100) if active(Guidance(scale=2.0, start=share), Step(i, 100, torch.tensor(1), None))]
    assert acting[0] == round(share * 100)


def test_a_weight_may_end_in_a_point_as_in_automatic1111():
    assert parse_weights("(fox:1.)") == [("fox", 1.0)]


def test_sixteen_bit_grey_with_a_clear_value_is_scaled_too(tmp_path):
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 0, 0, 0, 0)) + chunk(b"tRNS", b"\0\0")
    body = chunk(b"IDAT", zlib.compress(b"\0\x80\x80")) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    assert open_picture(tmp_path / "x.png").getpixel((0, 0)) == (128, 128, 128)


def test_a_judge_whose_configuration_is_damaged_is_one_sentence(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError):
        Judge.load(tmp_path)
