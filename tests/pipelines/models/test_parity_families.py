"""Parity with plain diffusers beyond the common case: families, schedules, sizes, prompts laid out by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from pipelines.generation import generate
from pipelines.models.loading import from_pipeline
from pipelines.models.schedulers import build
from pipelines.request.request import Guidance, Request
from tests import tiny

UPSTREAM = {
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "lcm": LCMScheduler,
    "unipc": UniPCMultistepScheduler,
}
LIKE_POCKET = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def request(name="ddim", **fields):
    defaults = {
        "prompt": "a fox to the left of a house",
        "scheduler": name,
        "steps": 4,
        "seed": 11,
        "width": 16,
        "height": 16,
        "guidance": Guidance(scale=4.0, rescale=0.0),
    }
    return Request(**(defaults | fields))


def compare(pipeline, request, scheduler=None, **call):
    """Assert that both give the same latents; `call` replaces what the pipeline is told, `scheduler` its settings."""
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))  # with the scheduler the pipeline came with
    pipeline.scheduler = UPSTREAM[request.scheduler].from_config(pipeline.scheduler.config, **(scheduler or {}))
    told = {"prompt": request.prompt, "num_images_per_prompt": request.count}
    if request.negative_prompt:
        told["negative_prompt"] = request.negative_prompt
    theirs = pipeline(
        **(told | call),
        num_inference_steps=request.steps,
        guidance_scale=request.guidance.scale,
        guidance_rescale=request.guidance.rescale,
        generator=[torch.Generator().manual_seed(request.seed + i) for i in range(request.count)],
        output_type="latent",
        width=request.width,
        height=request.height,
    ).images
    ours = generate(base, request).latents
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    return base


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "euler-a"])
def test_stable_diffusion_2_which_pads_with_another_token_is_encoded_alike(name):
    base = compare(tiny.sd_pipeline(dim=1024), request(name, negative_prompt="a dog", steps=3))
    assert base.family.name == "sd2" and base.tokenizers[0].pad_token == "!"


@pytest.mark.parametrize("name", list(UPSTREAM))
def test_every_sampler_agrees_on_the_zero_snr_schedule_that_pocket_uses(name):
    compare(tiny.sd_pipeline(**LIKE_POCKET), request(name))


def test_lcm_agrees_on_the_schedule_of_stable_diffusion():
    compare(tiny.sd_pipeline(), request("lcm", count=2, guidance=Guidance(scale=1.5, rescale=0.0)))


@pytest.mark.parametrize(("width", "height"), [(24, 16), (16, 32)])
def test_xl_is_told_height_before_width(width, height):
    compare(tiny.sdxl_pipeline(), request(width=width, height=height))


def test_an_xl_base_that_does_not_zero_empty_prompts_encodes_them():
    pipeline = tiny.sdxl_pipeline()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    base = compare(pipeline, request())
    assert not base.zero_empty
    zeroed = generate(tiny.sdxl(), request()).latents
    assert not torch.allclose(zeroed, generate(base, request()).latents, atol=1e-3)


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaled_guidance_of_several_xl_pictures_agrees(rescale):
    compare(tiny.sdxl_pipeline(), request(count=3, guidance=Guidance(scale=6.0, rescale=rescale)))


def test_special_tokens_written_into_a_prompt_mean_what_they_mean_upstream():
    compare(tiny.sd_pipeline(), request(prompt="a fox <|endoftext|> a cat"))


# -- prompts that the plain pipelines cannot read, laid out by hand and given to them as embeddings ------------------


def windows(tokenizer, encoder, text, count):
    """Every 75 tokens of a text encoded by themselves, laid end to end; empty ones follow up to `count`."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    rows = []
    for start in range(0, 75 * count, 75):
        row = [tokenizer.bos_token_id, *ids[start : start + 75], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (77 - len(row)))
    with torch.no_grad():
        return torch.cat([encoder(torch.tensor([row]), output_hidden_states=True).last_hidden_state for row in rows], 1)


@pytest.mark.parametrize(("words", "count"), [(74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_a_long_prompt_is_its_windows_laid_end_to_end(words, count):
    pipeline = tiny.sd_pipeline()
    long = " ".join(["fox", "house", "cat"] * 60).rsplit(" ", 180 - words)[0]
    assert len(long.split()) == words
    parts = (pipeline.tokenizer, pipeline.text_encoder)
    positive, negative = windows(*parts, long, count), windows(*parts, "a dog", count)
    assert positive.shape[1] == 77 * count
    compare(
        pipeline,
        request(prompt=long, negative_prompt="a dog", steps=2),
        prompt=None,
        negative_prompt=None,
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
    )


@pytest.mark.parametrize("other", ["a dog", "a (red:1.4) [dog]", "a dog, " * 30])
def test_prompt_and_negative_prompt_are_encoded_by_the_same_rules(other):
    # s c + (1 - s) u is symmetric, so the two may change places with s and 1 - s, whatever is written in them.
    base, first = tiny.sdxl(), "a (blue:0.6) fox"
    one_way = request(prompt=first, negative_prompt=other, guidance=Guidance(scale=0.3, rescale=0.0))
    other_way = request(prompt=other, negative_prompt=first, guidance=Guidance(scale=0.7, rescale=0.0))
    latents = generate(base, one_way).latents
    torch.testing.assert_close(latents, generate(base, other_way).latents, atol=1e-4, rtol=1e-4)
    without = generate(base, one_way.model_copy(update={"negative_prompt": "a cat"})).latents
    assert not torch.allclose(latents, without, atol=1e-4)


# -- the scheduler files of the official models ---------------------------------------------------------------------

SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SDXL = {key: value for key, value in SD15.items() if key != "_class_name"} | {
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
SD21 = SD15 | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
OFFICIAL = {"sd15": (PNDMScheduler, SD15), "sdxl": (EulerDiscreteScheduler, SDXL), "sd21": (DDIMScheduler, SD21)}


@pytest.mark.parametrize("model", list(OFFICIAL))
@pytest.mark.parametrize("name", list(UPSTREAM))
def test_a_sampler_built_from_an_official_file_steps_as_the_one_diffusers_makes_of_it(name, model):
    own_kind, config = OFFICIAL[model]
    theirs = UPSTREAM[name].from_config(own_kind.from_config(config).config, **(EXTRA.get(name, {})))
    theirs.set_timesteps(9)
    ours = build(name, config, 9, "cpu")
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert float(ours.init_noise_sigma) == float(theirs.init_noise_sigma)
    start = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    made = []
    for scheduler in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        latents = start * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            guess = torch.tanh(scheduler.scale_model_input(latents, timestep))
            options = {"generator": generator} if name in ("euler-a", "lcm") else {}
            latents = scheduler.step(guess, timestep, latents, **options).prev_sample
        made.append(latents)
    assert torch.equal(*made)


@pytest.mark.parametrize("model", list(OFFICIAL))
@pytest.mark.parametrize("name", list(UPSTREAM))
def test_a_pipeline_with_an_official_scheduler_is_sampled_as_the_folder_and_as_diffusers_do(name, model):
    kind, config = OFFICIAL[model]
    pipeline = tiny.sdxl_pipeline() if model == "sdxl" else tiny.sd_pipeline()
    pipeline.scheduler = kind.from_config(config)
    base = compare(pipeline, request(name, steps=5), scheduler=EXTRA.get(name, {}))
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    assert {key: base.scheduler_config[key] for key in given} == given
    assert build(name, base.scheduler_config, 9, "cpu").timesteps.tolist() == (
        build(name, config, 9, "cpu").timesteps.tolist()
    )


EXTRA = {"ddim": {"clip_sample": False}}  # the class default would clip where an official file leaves it out
