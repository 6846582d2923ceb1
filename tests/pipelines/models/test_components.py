from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import ModelError
from pipelines.generation import generate
from pipelines.models.components import decode, encode
from pipelines.models.loading import load, set_attention
from pipelines.request.request import Request
from tests import tiny


@pytest.mark.parametrize(("make", "family"), [(tiny.sd_pipeline, "sd1"), (tiny.sdxl_pipeline, "sdxl")])
def test_a_diffusers_folder_loads_as_what_it_is_and_gives_the_same(tmp_path, make, family):
    pipeline = make()
    pipeline.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.family.name == family and loaded.dtype == torch.float32
    assert loaded.zero_empty == (family == "sdxl")
    assert not any(p.requires_grad for module in loaded.modules() for p in module.parameters())
    from pipelines.models.loading import from_pipeline

    request = Request(prompt="a fox", steps=2, width=16, height=16, scheduler="ddim")
    in_memory = generate(tiny.frozen(from_pipeline(pipeline, "tiny")), request)
    torch.testing.assert_close(generate(loaded, request).latents, in_memory.latents, atol=1e-4, rtol=0)


def test_an_fp16_variant_loads_in_the_precision_asked_for(tmp_path):
    tiny.sd_pipeline().to(dtype=torch.float16).save_pretrained(tmp_path, variant="fp16")
    loaded = load(tmp_path)
    assert {p.dtype for module in loaded.modules() for p in module.parameters()} == {torch.float32}


def test_the_fingerprint_tells_bases_apart_but_not_precisions(tmp_path):
    base, other = tiny.sd(0), tiny.sd(1)
    assert base.fingerprint() == tiny.sd(0).fingerprint() != other.fingerprint()
    tiny.sd_pipeline(0).to(dtype=torch.float16).save_pretrained(tmp_path)
    assert load(tmp_path).fingerprint() == base.fingerprint()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fingerprint_does_not_depend_on_the_precision_of_use(tmp_path, dtype):
    tiny.sd_pipeline(0).save_pretrained(tmp_path)
    narrow = load(tmp_path, dtype=dtype)
    assert narrow.dtype == dtype and narrow.fingerprint() == load(tmp_path).fingerprint()


def test_another_autoencoder_or_merged_weights_make_another_base():
    base = tiny.sd()
    before = base.fingerprint()
    with torch.no_grad():
        next(iter(base.unet.mid_block.parameters())).add_(1)
    assert base.fingerprint() != before


def test_defaults_follow_the_family():
    assert tiny.sd().defaults.scale == 7.5 and tiny.sdxl().defaults.scale == 5.0
    assert tiny.sd().defaults.size == 16
    assert tiny.sd(rescale_betas_zero_snr=True).defaults.rescale == 0.7


def test_encoding_and_decoding_invert_each_other_in_scale():
    base = tiny.sd()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = encode(base, images)
    raw = base.vae.encode(images).latent_dist
    torch.testing.assert_close(posterior.mean, raw.mean * base.vae.config.scaling_factor)
    expected = base.vae.decode(raw.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(decode(base, posterior.mean), expected, atol=1e-5, rtol=1e-5)


def test_a_posterior_draws_from_the_generator_alone():
    posterior = encode(tiny.sd(), torch.zeros(1, 3, 16, 16))
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("base", ["no/such/folder/really", "nothing-here", "x y z", ""])
def test_a_base_that_is_nowhere_is_one_sentence(base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "..")
    with pytest.raises(ModelError) as error:
        load(base or tmp_path)
    assert error.value.hint


def test_a_folder_without_an_index_is_said(tmp_path):
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load(tmp_path)


def test_an_unknown_kind_of_model_is_said(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "FluxTransformer2DModel"]}))
    with pytest.raises(ModelError, match="FluxTransformer2DModel"):
        load(tmp_path)


def test_a_folder_with_a_part_missing_names_it(tmp_path):
    pipeline = tiny.sd_pipeline()
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["vae"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="vae"):
        load(tmp_path)


def test_damaged_weights_are_said(tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="unet"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", "{"),
        ("model_index.json", '{"unet": 3}'),
        ("scheduler/scheduler_config.json", "nonsense"),
        ("text_encoder/model.safetensors", "cut"),
        ("vae/config.json", "[]"),
    ],
)
def test_damaged_folders_are_one_sentence(tmp_path, file, content):
    tiny.sd_pipeline().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelError) as error:
        load(tmp_path)
    assert "cannot be read" in error.value.message and "\n" not in error.value.message


def test_a_checkpoint_that_is_a_pickle_is_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match="pickles"):
        load(tmp_path / "model.ckpt")


def test_a_single_file_that_is_no_checkpoint_is_said(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="cannot be read as a Stable Diffusion checkpoint"):
        load(tmp_path / "x.safetensors")


def test_xformers_that_is_not_there_is_said():
    with pytest.raises(ModelError, match="xformers"):
        set_attention(tiny.sd().unet, "xformers")
