"""Checkpoints in one file, in the names of Stable Diffusion's first implementation, read without a network."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines.concepts.lora_keys import to_sgm
from pipelines.errors import ModelError
from pipelines.generation import generate
from pipelines.models import single_files
from pipelines.models.loading import load
from pipelines.models.single_files import FIRST, READER, family_of, written
from pipelines.request.request import Guidance, Request
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
    """Write a pipeline of 1.x as the first implementation named its tensors."""
    return write(original(made.unet, made.vae) | clip(made.text_encoder, "cond_stage_model."), path)


def write(tensors, path):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def original(unet, vae):
    tensors = {}
    for name, tensor in unet.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        tensors[f"model.diffusion_model.{to_sgm(layer)}.{leaf}"] = tensor
    for name, tensor in vae.state_dict().items():
        for pattern, text in _VAE:
            name = re.sub(pattern, text, name)
        attention = ".attn_1." in name and tensor.ndim == 2
        tensors[f"first_stage_model.{name}"] = tensor[:, :, None, None] if attention else tensor
    return tensors


def clip(encoder, prefix):
    """CLIP as transformers names it, nested."""
    return {f"{prefix}transformer.text_model.{name}": tensor for name, tensor in encoder.state_dict().items()}


def open_clip(encoder, prefix):
    """CLIP as OpenCLIP names it, with queries, keys and values in one tensor."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    projection = state.pop("text_projection.weight", torch.zeros(width, width))
    tensors = {"text_projection": projection.T}
    pieces = {"q_proj": {}, "k_proj": {}, "v_proj": {}}
    for name, tensor in state.items():
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv]_proj)\.(\w+)", name):
            pieces[found[2]][f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"] = tensor
            continue
        for theirs, ours in (
            ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"), ("final_ln_", "ln_final"),
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    tensors |= {name: torch.cat([piece[name] for piece in pieces.values()]) for name in pieces["q_proj"]}
    return {f"{prefix}model.{name}": tensor for name, tensor in tensors.items()}


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
    assert base.family.name == "sd1" and base.fingerprint() == folder.fingerprint() and base.dtype == torch.float32
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


def test_a_text_encoder_that_lacks_a_tensor_is_named(both, tmp_path):
    file, config = both
    tensors = load_file(file)
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match=r"it lacks 1 of its tensors, such as text_encoder\.final_layer_norm\.weight"):
        load(tmp_path / "cut.safetensors", base_config=config)


def test_a_lora_given_as_a_base_is_said(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match="none of its 1 tensors is of a UNet"):
        load(tmp_path / "lora.safetensors")


# -- configurations that are shipped ------------------------------------------------------------------------------

COUNTED = {  # parameters of the published models
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize("family", list(COUNTED))
def test_shipped_configurations_are_those_of_the_published_models(tmp_path, family):
    folder = written(family, tmp_path, 4, {})
    counted = {}
    with torch.device("meta"):
        for part in COUNTED[family]:
            config = json.loads((folder / part / "config.json").read_text())
            if part in ("unet", "vae"):
                kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
                network = kind.from_config(config)
            else:
                kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
                network = kind(CLIPTextConfig(**config))
            counted[part] = sum(parameter.numel() for parameter in network.parameters())
    assert counted == COUNTED[family]


def narrow(folder, family):
    """The shipped configuration of a family with the layers that tell it apart, and the others narrow and few."""
    folder.mkdir()
    shutil.copy(single_files.SHIPPED / "merges.txt.gz", folder)
    parts = json.loads((single_files.SHIPPED / f"{family}.json").read_text())
    blocks = len(parts["unet"]["down_block_types"])
    parts["unet"] |= {"block_out_channels": [320, *[32] * (blocks - 1)], "attention_head_dim": 8}
    parts["unet"]["transformer_layers_per_block"] = 1
    parts["vae"]["block_out_channels"] = [32] * 4
    for part in ("text_encoder", "text_encoder_2"):
        if part in parts:  # their width tells them apart
            parts[part] |= {"intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 60}
    (folder / f"{family}.json").write_text(json.dumps(parts))
    return parts


@pytest.mark.parametrize("family", list(COUNTED))
def test_each_family_is_read_from_its_original_layout_without_a_network(tmp_path, monkeypatch, family):
    """Every tensor of every part arrives where diffusers has it, with nothing but the file and what is shipped."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parts = narrow(tmp_path / "shipped", family)
    monkeypatch.setattr(single_files, "SHIPPED", tmp_path / "shipped")
    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel.from_config(parts["unet"]), AutoencoderKL.from_config(parts["vae"])
    first = CLIPTextModel(CLIPTextConfig(**parts["text_encoder"]))
    encoders = [first]
    tensors = original(unet, vae)
    if family == "sdxl":
        encoders.append(CLIPTextModelWithProjection(CLIPTextConfig(**parts["text_encoder_2"])))
        tensors |= clip(first, "conditioner.embedders.0.") | open_clip(encoders[1], "conditioner.embedders.1.")
    else:
        tensors |= (clip if family == "sd1" else open_clip)(first, "cond_stage_model.")
    base = load(write(tensors, tmp_path / "model.safetensors"))
    assert base.family.name == family and len(base.text_encoders) == len(encoders)
    wanted = "v_prediction" if family == "sd2" else "epsilon"
    assert base.scheduler_config.get("prediction_type", "epsilon") == wanted
    for ours, theirs in zip((base.unet, base.vae, *base.text_encoders), (unet, vae, *encoders), strict=True):
        read = ours.state_dict()
        assert read.keys() == theirs.state_dict().keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in theirs.state_dict().items())


def test_the_shipped_tokenizer_is_clips(tmp_path):
    """Ids as in CLIP's paper code; what pads is another for SDXL's second encoder."""
    folder = written("sdxl", tmp_path, 4, {})
    first, second = (CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2"))
    assert len(first) == 49408 and first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (first.pad_token_id, second.pad_token_id, first.model_max_length) == (49407, 0, 77)


def test_families_are_told_by_shapes_and_what_2_predicts_by_the_header(tmp_path):
    first, reader = {FIRST: (320, 9, 3, 3)}, READER.format(1)
    assert family_of(first | {reader: (320, 768)}) == "sd1"
    assert family_of(first | {reader: (320, 1024)}) == "sd2"
    xl = {READER.format(4): (640, 2048), "conditioner.embedders.1.model.ln_final.weight": (1280,)}
    assert family_of(first | xl) == "sdxl" and family_of({FIRST: (384, 4, 3, 3)}) is None
    for said, kind in (({}, "v_prediction"), ({"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon")):
        folder = written("sd2", tmp_path / kind, 9, said)
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert scheduler["prediction_type"] == kind
        assert json.loads((folder / "unet" / "config.json").read_text())["in_channels"] == 9
