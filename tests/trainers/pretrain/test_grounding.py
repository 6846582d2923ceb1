"""The stage that trains the gated layers of pocket: its pictures, and how layers get into the model."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import ModelError
from pipelines.gligen.tokens import gated_parameters, phrase_embeddings, save_adapter
from pipelines.models import POCKET
from pipelines.models.fingerprint import is_gated
from pipelines.models.loading import load
from trainers.base_models.gligen_scenes import composed, pool
from trainers.pretrain.grounding import pack_grounding
from trainers.stickers.free_scenes import free_scenes
from trainers.stickers.world import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")
FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pocket():
    return load("pocket")


def test_composed_pictures_come_with_their_captions_phrases_and_boxes(pocket):
    scenes = free_scenes(6, 1)
    data = composed(pocket, scenes, at_once=4)
    assert data.latents.shape == (6, 4, 16, 16) and data.present.sum(1).tolist() == [len(s.stickers) for s in scenes]
    for row, item in enumerate(scenes):
        assert [NAMES[index] for index in data.things[row, : len(item.stickers)]] == [s.name for s in item.stickers]
        for box, one in zip(data.boxes[row].tolist(), item.stickers, strict=False):
            square = (one.left, one.top, one.left + one.side, one.top + one.side)
            assert all(a >= b / 64 - 0.02 for a, b in zip(box[:2], square[:2], strict=True))
            assert all(a <= b / 64 + 0.02 for a, b in zip(box[2:], square[2:], strict=True))
    with torch.no_grad():
        expected = phrase_embeddings(pocket, [NAMES[3]])[0]
    torch.testing.assert_close(data.phrases[0, 3], expected)
    assert data.contexts(torch.tensor([0, 5])).shape == (2, 32, 128)
    assert len(pool(30, 2)) == 30 and pool(30, 2) == pool(30, 2)


def test_packing_changes_the_gated_layers_alone_and_keeps_the_name_of_the_base(pocket, tmp_path):
    out = tmp_path / "model"
    shutil.copytree(POCKET, out)
    layers = {name: value.detach() + 0.5 for name, value in gated_parameters(pocket.unet)}
    about = {"steps": "3", "batch": "8", "minutes": "0.1", "pictures": "64", "device": "test"}
    save_adapter(layers, tmp_path / "a.safetensors", {**about, "fingerprint": pocket.fingerprint()})
    pack_grounding(tmp_path / "a.safetensors", out)
    before, after = load_file(POCKET / FILE), load_file(out / FILE)
    assert set(before) == set(after)
    for name, value in before.items():
        expected = layers[name].half() if is_gated(name) else value
        assert torch.equal(after[name], expected)
    assert load(out).fingerprint() == pocket.fingerprint()
    assert "test, 3 steps of 8" in (out / "README.md").read_text()


def test_layers_of_another_base_are_not_packed(pocket, tmp_path):
    save_adapter(dict(gated_parameters(pocket.unet)), tmp_path / "a.safetensors", {"fingerprint": "another"})
    with pytest.raises(ModelError, match="another base"):
        pack_grounding(tmp_path / "a.safetensors", POCKET)
    some = dict(list(gated_parameters(pocket.unet))[:3])
    save_adapter(some, tmp_path / "b.safetensors", {"fingerprint": pocket.fingerprint()})
    with pytest.raises(ModelError, match="other layers"):
        pack_grounding(tmp_path / "b.safetensors", POCKET)
