"""Clip skip, spacings, eta, an encoded empty negative prompt and the autoencoder's savings, beside diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.models.families.clip import _chunks
from pipelines.models.loading import from_pipeline
from pipelines.models.text import parse_weights
from pipelines.pictures.metadata import Made, parameters
from pipelines.request.request import Guidance, Request
from tests import tiny

UPSTREAM = {
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


def request(name="ddim", **fields):
    told = {"prompt": "a fox", "scheduler": name, "steps": 4, "seed": 5, "width": 16, "height": 16}
    return Request(**(told | {"guidance": Guidance(scale=4.0, rescale=0.0)} | fields))


def compare(pipeline, asked, scheduler=None, **call):
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))
    pipeline.scheduler = UPSTREAM[asked.scheduler].from_config(pipeline.scheduler.config, **(scheduler or {}))
    theirs = pipeline(
        **({"prompt": asked.prompt} | call),
        num_inference_steps=asked.steps,
        guidance_scale=4.0,
        width=16,
        height=16,
        num_images_per_prompt=asked.count,
        output_type="latent",
        generator=[torch.Generator().manual_seed(asked.seed + i) for i in range(asked.count)],
    ).images
    ours = generate(base, asked).latents
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    plain = asked.model_copy(update={k: Request.model_fields[k].default for k in ("spacing", "eta", "clip_skip")})
    plain = plain.model_copy(update={"guidance": Guidance(scale=4.0, rescale=0.0)})
    assert not torch.allclose(ours, generate(base, plain).latents, atol=1e-3)


def test_clip_skip_leaves_out_a_layer_of_both_prompts():
    """As AUTOMATIC1111 does: diffusers leaves the negative prompt as it is."""
    pipeline = tiny.sd_pipeline()
    embeds = {}
    for name, text in (("prompt_embeds", "a fox"), ("negative_prompt_embeds", "")):
        ids = pipeline.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            last_but_one = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
            embeds[name] = pipeline.text_encoder.final_layer_norm(last_but_one)
    compare(pipeline, request(clip_skip=2), prompt=None, **embeds)


def test_clip_skip_of_xl_is_that_of_diffusers():
    compare(tiny.sdxl_pipeline(), request(clip_skip=2), clip_skip=1)
    with pytest.raises(RequestError, match="Clip skip 3 is more than the 2 layers"):
        generate(tiny.sdxl(), request(clip_skip=3))


def test_more_than_the_encoder_has_is_refused():
    with pytest.raises(RequestError, match="Clip skip 4 is more than the 2 layers"):
        generate(tiny.sd(), request(clip_skip=4))


def test_an_empty_negative_prompt_is_encoded_on_request():
    asked = request(guidance=Guidance(scale=4.0, rescale=0.0, encode_empty=True))
    compare(tiny.sdxl_pipeline(), asked, negative_prompt="")


@pytest.mark.parametrize("name", ["dpm++2m", "unipc", "euler"])
def test_karras_levels_are_those_of_diffusers(name):
    compare(tiny.sd_pipeline(), request(name, spacing="karras"), {"use_karras_sigmas": True})


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "unipc", "euler", "euler-a"])
def test_sgm_levels_are_the_last_of_equal_stretches(name):
    pipeline = tiny.sd_pipeline(timestep_spacing="leading")
    compare(pipeline, request(name, spacing="sgm"), {"timestep_spacing": "trailing"})


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_eta_adds_the_noise_that_diffusers_adds(eta):
    compare(tiny.sd_pipeline(), request(eta=eta, count=2), eta=eta)


@pytest.mark.parametrize(("fields", "said"), [
    ({"spacing": "karras"}, "The sampler ddim has no karras spacing"),
    ({"scheduler": "lcm", "spacing": "sgm"}, "The sampler lcm has no sgm spacing"),
    ({"scheduler": "euler", "eta": 0.5}, r"Eta 0\.5 is for the sampler ddim alone"),
])  # fmt: skip
def test_what_a_sampler_cannot_do_is_refused(fields, said):
    with pytest.raises(RequestError, match=said):
        generate(tiny.sd(), request(**fields))


def test_slices_give_the_same_pictures_and_the_autoencoder_is_as_before():
    base = tiny.sd()
    asked = request(count=3)
    wanted = [picture.tobytes() for picture in generate(base, asked).pictures]
    saved = generate(base, asked.model_copy(update={"vae_slicing": True, "vae_tiling": True})).pictures
    assert len(saved) == 3 and base.vae.use_slicing is base.vae.use_tiling is False
    assert [p.tobytes() for p in generate(base, asked.model_copy(update={"vae_slicing": True})).pictures] == wanted


def test_tiles_are_used_where_a_picture_is_larger_than_one():
    base = tiny.sd()
    base.vae.tile_latent_min_size, base.vae.tile_sample_min_size = 4, 8
    plain, tiled = (generate(base, request(vae_tiling=tiling)).pictures[0].tobytes() for tiling in (False, True))
    assert plain != tiled


def test_other_programs_are_told():
    made = Made(request("euler", spacing="karras", clip_skip=2), 0, "tiny", "0" * 16)
    assert "Schedule type: Karras, Clip skip: 2" in parameters(made)


@pytest.mark.parametrize("before", [72, 73, 74, 75])
def test_a_word_of_several_vectors_goes_whole_into_the_next_window(before):
    base = tiny.sd()
    concept = Concept(ConceptCard(token="<w>", family="sd1", vectors=4), (torch.randn(4, 32),))
    with concept.attach(base) as taught:
        chunks = _chunks(taught, 0, parse_weights(" ".join(["fox"] * before) + " <w> cat"))
    new = [[i >= len(base.tokenizers[0]) for i in ids] for ids, _ in chunks]
    assert [sum(own) for own in new] == [0, 4] and len(chunks[0][0]) == before
    assert all(len(ids) <= 75 for ids, _ in chunks)


def test_a_word_longer_than_a_window_is_cut_nonetheless():
    base = tiny.sd()
    concept = Concept(ConceptCard(token="<w>", family="sd1", vectors=100), (torch.randn(100, 32),))
    with concept.attach(base) as taught:
        chunks = _chunks(taught, 0, parse_weights("a <w>"))
    assert [len(ids) for ids, _ in chunks] == [1, 75, 25]
