"""Loading: layouts of folders, earlier downloads, pickles, precisions, and autoencoders of other kinds."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from transformers.utils import logging as transformers_logging

from pipelines.errors import ModelError
from pipelines.generation import generate
from pipelines.models.components import Posterior, decode, encode
from pipelines.models.loading import from_pipeline, load
from pipelines.request.request import Request
from tests import tiny

REQUEST = Request(prompt="a fox", steps=1, width=16, height=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved base that no test may write to."""
    path = tmp_path_factory.mktemp("base")
    tiny.sd_pipeline().save_pretrained(path)
    return path


def linked(folder, path):
    """A copy of the folder whose files may be replaced, but not written into."""
    for file in folder.rglob("*"):
        if file.is_file():
            place = path / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    return path


def changed(file, text):
    file.unlink(missing_ok=True)
    file.write_text(text)


# -- layouts ------------------------------------------------------------------------------------------------------


def test_weights_in_several_files_are_the_same_base(folder, tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    assert load(tmp_path).fingerprint() == load(folder).fingerprint()


def test_a_path_may_be_text_and_its_name_is_kept(folder):
    by_text, by_path = load(str(folder)), load(folder)
    assert by_text.name == by_path.name == str(folder)
    assert torch.equal(generate(by_text, REQUEST).latents, generate(by_path, REQUEST).latents)


def test_full_weights_win_over_an_fp16_copy_beside_them(folder, tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path)
    tiny.sd_pipeline().to(dtype=torch.float16).save_pretrained(tmp_path, variant="fp16")
    for mine, theirs in zip(load(tmp_path).unet.parameters(), load(folder).unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("hacked.txt"),))


@pytest.mark.parametrize(
    ("part", "weights", "pickled"),
    [
        ("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ],
)
def test_weights_that_are_there_only_as_a_pickle_are_refused_without_reading_it(
    folder, tmp_path, monkeypatch, part, weights, pickled
):
    monkeypatch.chdir(tmp_path)
    base = linked(folder, tmp_path / "base")
    (base / part / weights).unlink()
    (base / part / pickled).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=f"The {part} of .* cannot be read"):
        load(base)
    assert not (tmp_path / "hacked.txt").exists()


def test_parts_an_index_lists_as_absent_are_not_looked_for(folder, tmp_path):
    base = linked(folder, tmp_path)
    index = json.loads((base / "model_index.json").read_text())
    index |= {"text_encoder_2": [None, None], "tokenizer_2": [None, None], "safety_checker": ["x", "Unknown"]}
    changed(base / "model_index.json", json.dumps(index))
    assert load(base).family.name == "sd1"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_each_part_of_another_kind_is_named_with_its_kind(folder, tmp_path, part):
    base = linked(folder, tmp_path)
    index = json.loads((base / "model_index.json").read_text())
    changed(base / "model_index.json", json.dumps(index | {part: ["x", "T5Something"]}))
    with pytest.raises(ModelError, match=rf"The {part} of .* is a T5Something, .*Known are pocket, Stable Di"):
        load(base)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_a_folder_of_which_a_part_was_not_copied_is_refused(folder, tmp_path, part):
    base = linked(folder, tmp_path)
    for file in (base / part).iterdir():
        file.unlink()
    with pytest.raises(ModelError, match=part):
        load(base)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("unet", {"layers_per_block": 20_000}, "layers_per_block 20,000; at most 1,000"),
        ("unet", {"transformer_layers_per_block": [1, [20_000]]}, "transformer_layers_per_block 20,000"),
        ("vae", {"block_out_channels": [4] * 20_000}, "a list block_out_channels of 20,000"),
        ("text_encoder", {"num_hidden_layers": 20_000}, "num_hidden_layers 20,000"),
        ("unet", [1], "cannot be read"),
        ("unet", {"block_out_channels": "many"}, "cannot be read"),
        ("unet", {"down_block_types": [None, 3]}, "cannot be read"),
        ("vae", {"norm_num_groups": 0}, "cannot be read"),
        ("text_encoder", {"hidden_size": "x"}, "cannot be read"),
        ("unet", "[" * 100_000, "cannot be read"),
    ],
)
def test_absurd_and_odd_configurations_are_refused_in_a_sentence(folder, tmp_path, part, change, said):
    base = linked(folder, tmp_path)
    file = base / part / "config.json"
    before = json.loads(file.read_text())
    text = change if isinstance(change, str) else json.dumps(before | change if isinstance(change, dict) else change)
    changed(file, text)
    with pytest.raises(ModelError, match=f"The {part} of .*{said}") as error:
        load(base)
    assert "\n" not in error.value.message


def test_cut_weights_are_refused(folder, tmp_path):
    base = linked(folder, tmp_path)
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="unet"):
        load(base)


@pytest.mark.parametrize("shown", [True, False])
def test_loading_leaves_the_progress_bars_of_others_as_they_were(folder, tmp_path, shown):
    was = transformers_logging.is_progress_bar_enabled()
    try:
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
        load(folder)
        assert transformers_logging.is_progress_bar_enabled() == shown
        with pytest.raises(ModelError):
            load(tmp_path)
        assert transformers_logging.is_progress_bar_enabled() == shown
    finally:
        (transformers_logging.enable_progress_bar if was else transformers_logging.disable_progress_bar)()


def test_parts_of_a_pipeline_are_shared_rather_than_copied():
    pipeline = tiny.sd_pipeline()
    base = from_pipeline(pipeline, "mine")
    assert base.unet is pipeline.unet and base.tokenizers[0] is pipeline.tokenizer and base.name == "mine"


def test_the_attention_asked_for_at_loading_gives_the_same_pictures(folder):
    quick, plain = (generate(load(folder, attention=kind), REQUEST).latents for kind in ("sdpa", "eager"))
    torch.testing.assert_close(quick, plain, atol=1e-4, rtol=0)


# -- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and a network that is not there."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def test_an_earlier_download_is_used_without_asking_the_network(folder, hub):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = hub / "models--someone--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    linked(folder, home / "snapshots" / commit)
    loaded = load("someone/tiny")
    assert loaded.name == "someone/tiny" and loaded.fingerprint() == load(folder).fingerprint()


def test_what_was_never_downloaded_names_the_flag(hub):
    with pytest.raises(ModelError, match=r"'someone/else' is neither a path nor downloaded yet.*--download"):
        load("someone/else")


def test_a_download_that_fails_says_so_instead_of_naming_the_flag_again(hub):
    with pytest.raises(ModelError, match=r"'someone/else' could not be downloaded: .*network") as error:
        load("someone/else", download=True)
    assert "--download" not in str(error.value) and "\n" not in error.value.message


@pytest.mark.parametrize("base", ["a//b", "../up", "has space/x", "a/b/c", "nul\0byte"])
def test_what_cannot_be_a_hub_id_is_refused_with_all_that_a_base_can_be(base, hub):
    with pytest.raises(ModelError, match=r"There is no model .*pocket, a folder, a \.safetensors file or a hub id"):
        load(base)


# -- autoencoders -----------------------------------------------------------------------------------------------------


def pictures(seed=0):
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def with_tiny_autoencoder(scale=1.0):
    torch.manual_seed(3)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=scale,
    )
    return tiny.frozen(replace(tiny.sd(), vae=vae.eval()))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_tiny_autoencoder_has_no_spread_and_its_scale_is_undone(scale):
    base = with_tiny_autoencoder(scale)
    posterior = encode(base, pictures())
    raw = base.vae.encode(pictures()).latents
    torch.testing.assert_close(posterior.mean, raw * scale)
    assert not posterior.std.any()
    torch.testing.assert_close(decode(base, posterior.mean), base.vae.decode(raw).sample.clamp(-1, 1))
    assert base.factor == 2 and generate(base, REQUEST).pictures[0].size == (16, 16)


def test_autoencoders_with_and_without_spread_use_chance_alike():
    # A training that changes its autoencoder must not get another noise for everything after it.
    drawn = []
    for base in (tiny.sd(), with_tiny_autoencoder()):
        generator = torch.Generator().manual_seed(4)
        encode(base, pictures()).sample(generator)
        drawn.append(torch.rand(1, generator=generator))
    assert torch.equal(*drawn)


def test_samples_of_a_posterior_have_its_mean_and_spread():
    mean, std = torch.tensor([-2.0, 0.0, 3.0, 1.0]), torch.tensor([0.5, 1.0, 2.0, 0.0])
    wide = [values[None, :, None, None].expand(1, 4, 200, 200) for values in (mean, std)]
    sample = Posterior(*wide).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample.mean(dim=(0, 2, 3)), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(sample.std(dim=(0, 2, 3)), std, atol=0.03, rtol=0)


def test_a_shift_of_the_latents_is_applied_and_undone():
    base, shifted = tiny.sd(), tiny.sd()
    shifted.vae.register_to_config(shift_factor=0.7)
    plain, moved = encode(base, pictures()), encode(shifted, pictures())
    torch.testing.assert_close(moved.mean, plain.mean - 0.7 * base.vae.config["scaling_factor"])
    torch.testing.assert_close(moved.std, plain.std)
    torch.testing.assert_close(decode(shifted, moved.mean), decode(base, plain.mean), atol=1e-5, rtol=0)


@pytest.mark.parametrize("force", [True, False])
def test_an_autoencoder_that_overflows_in_half_precision_is_used_wide_and_left_narrow(force):
    base = tiny.sd()
    vae = base.vae
    vae.register_to_config(force_upcast=force)
    expected = decode(base, encode(base, pictures()).mean)
    narrow = base.to("cpu", torch.float16)
    posterior = encode(narrow, pictures())
    assert posterior.mean.dtype == (torch.float32 if force else torch.float16)
    assert {p.dtype for p in vae.parameters()} == {torch.float16}
    out = decode(narrow, posterior.mean)
    assert out.dtype == torch.float32 and {p.dtype for p in vae.parameters()} == {torch.float16}
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0)


def test_decoding_is_clipped_to_what_a_picture_can_hold():
    base = tiny.sd()
    wild = decode(base, torch.full((1, 4, 8, 8), 50.0))
    assert wild.min() >= -1 and wild.max() <= 1


def test_configurations_that_are_no_table_or_ask_for_other_libraries_are_a_sentence(tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path / "base")
    place = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    before = place.read_text(encoding="utf-8")
    place.write_text("[1]", encoding="utf-8")
    with pytest.raises(ModelError, match="The scheduler of"):
        load(tmp_path / "base")
    place.write_text(before, encoding="utf-8")
    unet = tmp_path / "base" / "unet" / "config.json"
    config = json.loads(unet.read_text(encoding="utf-8"))
    quantized = config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    unet.write_text(json.dumps(quantized), encoding="utf-8")
    with pytest.raises(ModelError, match="The unet of"):
        load(tmp_path / "base")
