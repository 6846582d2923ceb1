"""A second judge of pictures, from a folder of transformers."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from pipelines.errors import ModelError
from pipelines.measures.picture_encoder import MEAN, SIDE, PictureEncoder
from pipelines.pictures.tensors import fit


def dino(folder):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).eval().save_pretrained(folder)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    processor.save_pretrained(folder)
    return folder


def shades(*levels):
    return [Image.linear_gradient("L").resize((40, 30)).point(lambda v, k=k: v // k).convert("RGB") for k in levels]


def test_it_sees_what_the_model_of_transformers_sees(tmp_path):
    encoder = PictureEncoder.load(dino(tmp_path))
    assert (encoder.side, encoder.mean, encoder.std) == (28, (0.5,) * 3, (0.25,) * 3)
    listed = [fit(one, 28, 28) for one in shades(1, 3)]
    pixels = BitImageProcessorPil.from_pretrained(tmp_path)(images=listed, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        state = Dinov2Model.from_pretrained(tmp_path)(pixel_values=pixels).pooler_output
    torch.testing.assert_close(encoder.pictures(listed), torch.nn.functional.normalize(state, dim=1), atol=1e-4, rtol=0)


def test_unit_vectors_the_same_for_the_same(tmp_path):
    seen = PictureEncoder.load(dino(tmp_path)).pictures([*shades(1, 4), *shades(1)])
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(seen[0], seen[2])
    assert not torch.allclose(seen[0], seen[1])


def test_an_encoder_without_pooling_or_preparation_is_read(tmp_path):
    config = ViTConfig(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    encoder = PictureEncoder.load(tmp_path)
    assert (encoder.side, encoder.mean) == (SIDE, MEAN)
    assert encoder.pictures(shades(1)).shape == (1, 16)


def test_a_folder_without_an_encoder_is_said(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ModelError, match=r"cannot be read.*--dino"):
            PictureEncoder.load(folder)
