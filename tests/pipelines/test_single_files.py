"""Checkpoints in one file, in the names of Stable Diffusion's first implementation, read without a network."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from pipelines.components import load
from pipelines.denoising import generate
from pipelines.errors import ModelError
from pipelines.lora_keys import to_sgm
from pipelines.request import Guidance, Request
from studio.cli import main
from tests import tiny

REQUEST = Request(
    prompt="a fox", steps=2, seed=2, width=64, height=64, scheduler="dpm++2m", guidance=Guidance(scale=4.0)
)
_VAE = (
    (r"\.mid_block\.resnets\.(\d)", lambda m: f".mid.block_{int(m[1]) + 1}"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"\.down_blocks\.(\d)\.resnets\.(\d)", r".down.\1.block.\2"),
    (r"\.down_blocks\.(\d)\.downsamplers\.0\.conv", r".down.\1.downsample.conv"),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f".up.{3 - int(m[1])}.block.{m[2]}"),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f".up.{3 - int(m[1])}.upsample.conv"),
    (r"\.conv_shortcut", ".nin_shortcut"),
    (r"\.conv_norm_out", ".norm_out"),
    (r"\.group_norm", ".norm"),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0", ".proj_out"),
)


def pipeline():
    """Stable Diffusion 1.x in small, with the blocks of the real one, which the original names count."""
    made = tiny.sd_pipeline()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    made.register_modules(unet=unet.eval(), vae=vae.eval())
    return made


def in_one_file(made, path):
    """Write a pipeline as the first implementation named its tensors."""
    tensors = {}
    for name, tensor in made.unet.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        tensors[f"model.diffusion_model.{to_sgm(layer)}.{leaf}"] = tensor
    for name, tensor in made.vae.state_dict().items():
        for pattern, text in _VAE:
            name = re.sub(pattern, text, name)
        attention = ".attn_1." in name and tensor.ndim == 2
        tensors[f"first_stage_model.{name}"] = tensor[:, :, None, None] if attention else tensor
    for name, tensor in made.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def both(tmp_path):
    """A checkpoint, and a folder of configurations without weights."""
    made = pipeline()
    made.save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    return in_one_file(made, tmp_path / "model.safetensors"), tmp_path / "config"


def test_a_checkpoint_draws_what_its_folder_draws(both, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file, config = both
    base, folder = load(file, base_config=config), load(tmp_path / "whole")
    assert base.family == "sd1" and base.fingerprint() == folder.fingerprint() and base.dtype == torch.float32
    ours, theirs = (generate(one, REQUEST).latents for one in (base, folder))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    asked = ["generate", "a fox", "--base", str(file), "--base-config", str(config), "--steps", "1"]
    assert main([*asked, "--width", "64", "--height", "64", "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_a_folder_that_lacks_something_is_named(both):
    file, config = both
    (config / "vae" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks vae/config\.json"):
        load(file, base_config=config)


def test_a_file_with_tensors_missing_is_not_blamed_on_the_network(both, tmp_path):
    config = both[1]
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match="cannot be read") as refused:
        load(tmp_path / "cut.safetensors", base_config=config)
    assert "download" not in refused.value.hint


def test_a_lora_given_as_a_base_is_said(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match="none of its 1 tensors is of a UNet"):
        load(tmp_path / "lora.safetensors")
