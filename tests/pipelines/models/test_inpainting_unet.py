"""The 9-channel UNet beside a base."""

import json
from dataclasses import replace

import pytest
import torch

from pipelines.errors import ModelError
from pipelines.models.fingerprint import is_gated
from pipelines.models.inpainting_unet import FOLDER, has_inpainting_unet, inpainting_components
from tests import tiny
from trainers.base_models.inpainting_unet import widened
from trainers.base_models.model_folder import save_unet


def saved(base, folder):
    unet = widened(base.unet)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] = 0.5
    save_unet(base.unet, unet.state_dict(), folder / FOLDER, torch.float32)
    return unet, folder / FOLDER


def test_a_widened_unet_paints_as_the_base_whatever_the_mask_says():
    base = tiny.sd()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    context = torch.randn(2, 5, base.unet.config["cross_attention_dim"], generator=torch.Generator().manual_seed(1))
    beside = torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(2))
    wide = widened(base.unet)
    after = wide(torch.cat((latents, beside), 1), 7, context).sample
    torch.testing.assert_close(after, base.unet(latents, 7, context).sample, atol=1e-6, rtol=1e-6)


def test_what_is_saved_comes_back_with_the_layers_for_boxes_of_the_base(tmp_path):
    base = replace(tiny.sd(), denoiser=tiny._unet(32, gated=True))
    trained, folder = saved(base, tmp_path)
    assert not any(is_gated(name) for name in trained.state_dict())
    found = inpainting_components(base, tmp_path)
    assert has_inpainting_unet(found) and not has_inpainting_unet(base)
    whole = found.unet.state_dict()
    assert all(torch.equal(whole[name], value) for name, value in trained.state_dict().items())
    boxes = {name: value for name, value in base.unet.state_dict().items() if is_gated(name)}
    assert boxes and all(torch.equal(whole[name], value) for name, value in boxes.items())
    assert inpainting_components(found) is found
    assert inpainting_components(base, folder).unet.config["in_channels"] == 9


def test_what_is_none_is_refused_and_how_to_get_one_is_said(tmp_path):
    base = tiny.sd()
    with pytest.raises(ModelError, match="studio train inpainting"):
        inpainting_components(base)
    _, folder = saved(base, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"in_channels": 4}))
    with pytest.raises(ModelError, match="has 4 channels"):
        inpainting_components(base, folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        inpainting_components(base, folder)
