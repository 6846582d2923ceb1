"""Inputs of the gated layers, and files that hold the layers."""

from __future__ import annotations

import pytest
import torch

from pipelines.concepts.token_embeddings import new_words
from pipelines.errors import ModelError, RequestError
from pipelines.gligen.tokens import (
    SLOTS,
    UNNAMED,
    gated_parameters,
    grounding_input,
    has_grounding,
    load_adapter,
    phrase_embeddings,
    read_as,
    save_adapter,
)
from pipelines.models.loading import from_pipeline
from tests.tiny import sd_pipeline


@pytest.fixture(scope="module")
def components():
    return from_pipeline(sd_pipeline(), "tiny")


def test_a_phrase_is_the_pooled_output_of_the_text_encoder(components):
    phrases = ["fox", "a red house"]
    tokenizer, encoder = components.tokenizers[0], components.text_encoders[0]
    ids = tokenizer(phrases, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(phrase_embeddings(components, phrases), encoder(ids).pooler_output)


def test_a_learned_phrase_of_several_vectors_is_read_whole_and_at_its_end(components):
    torch.manual_seed(1)
    rows = torch.randn(3, 32) / 10
    with new_words(components, "<x>", [rows]) as words, torch.no_grad():
        first = phrase_embeddings(words.components, ["<x>"])
        words.rows[0].data[2] = torch.randn(32)
        assert not torch.allclose(first, phrase_embeddings(words.components, ["<x>"]))


@pytest.mark.parametrize("phrase", ["", "fox " * 100])
def test_a_phrase_without_words_or_with_too_many_is_refused(components, phrase):
    with pytest.raises(RequestError, match="phrase"):
        phrase_embeddings(components, [phrase])


def test_places_that_are_masked_count_for_nothing_but_their_number(components):
    torch.manual_seed(2)
    net = components.unet.position_net
    embeddings, boxes, masks = torch.randn(2, 3, 32), torch.rand(2, 3, 4), torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    given = grounding_input(embeddings, boxes, masks)["gligen"]
    assert given["boxes"].shape == (2, SLOTS, 4)
    tokens = net(**given)
    other = net(**grounding_input(embeddings, torch.where(masks[..., None] > 0, boxes, 0.5), masks)["gligen"])
    assert torch.equal(tokens, other) and torch.equal(tokens[1], tokens[0, 2:3].expand(SLOTS, -1))
    with pytest.raises(ValueError, match="31"):
        grounding_input(torch.zeros(1, 31, 32), torch.zeros(1, 31, 4), torch.zeros(1, 31))


def test_an_adapter_file_gives_back_the_gated_layers_alone(components, tmp_path):
    assert has_grounding(components.unet)
    save_adapter(dict(gated_parameters(components.unet)), tmp_path / "a.safetensors", {"base": "tiny"})
    tensors, about = load_adapter(tmp_path / "a.safetensors")
    assert about["base"] == "tiny"
    assert set(tensors) == {n for n in components.unet.state_dict() if ".fuser." in n or n.startswith("position_net.")}
    own = dict(components.unet.named_parameters())
    assert all(torch.equal(value, own[name].half()) for name, value in tensors.items())
    save_adapter({"conv_in.weight": components.unet.conv_in.weight}, tmp_path / "b.safetensors", {})
    with pytest.raises(ModelError, match="no gated layers"):
        load_adapter(tmp_path / "b.safetensors")


def test_a_learned_word_in_a_box_is_read_as_a_thing_without_a_name_or_by_its_kind():
    learned = {"<my-wolf>": "fox", "<my-cab>": "car", "<new>": ""}
    assert read_as(["a <my-wolf>", "house"], "pocket", learned) == [UNNAMED["pocket"], "house"]
    assert read_as(["<my-wolf>", "a <my-cab>"], "pocket", learned) == ["fox", "a car"]
    assert read_as(["a <my-wolf>"], "sd1", learned) == ["a fox"]
    assert read_as(["<new>"], "sd1", learned) == ["<new>"]
    assert read_as(["house"], "pocket", learned) == ["house"]
