"""Our loop gives what the diffusers pipelines give on the same noise."""

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

from pipelines.generation import generate
from pipelines.models.loading import from_pipeline
from pipelines.request.request import Guidance, Request
from tests import tiny

UPSTREAM = {
    "ddim": DDIMScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


def ours_and_theirs(pipeline, name, request, **call):
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))  # with the scheduler the pipeline came with
    pipeline.scheduler = UPSTREAM[name].from_config(pipeline.scheduler.config)
    generators = [torch.Generator().manual_seed(request.seed + i) for i in range(request.count)]
    theirs = pipeline(
        request.prompt,
        num_images_per_prompt=request.count,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance.scale,
        guidance_rescale=request.guidance.rescale or 0.0,
        generator=generators,
        output_type="latent",
        width=request.width,
        height=request.height,
        **call,
    ).images
    ours = generate(base, request).latents
    return ours, theirs


def request(name, **fields):
    return Request(
        prompt="a fox to the left of a house",
        scheduler=name,
        steps=6,
        seed=5,
        count=2,
        width=16,
        height=16,
        **({"guidance": Guidance(scale=4.0, rescale=0.0)} | fields),
    )


@pytest.mark.parametrize("name", list(UPSTREAM))
def test_latents_equal_those_of_the_stable_diffusion_pipeline(name):
    ours, theirs = ours_and_theirs(
        tiny.sd_pipeline(), name, request(name, negative_prompt="a dog"), negative_prompt="a dog"
    )
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "euler"])
def test_latents_equal_those_of_the_xl_pipeline(name):
    ours, theirs = ours_and_theirs(tiny.sdxl_pipeline(), name, request(name))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_negative_prompt_is_encoded_rather_than_zeroed_for_xl():
    ours, theirs = ours_and_theirs(
        tiny.sdxl_pipeline(), "ddim", request("ddim", negative_prompt="a dog"), negative_prompt="a dog"
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_v_prediction_with_zero_terminal_snr_and_rescaled_guidance():
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline = tiny.sd_pipeline(**settings)
    ours, theirs = ours_and_theirs(pipeline, "ddim", request("ddim", guidance=Guidance(scale=5.0, rescale=0.7)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_guidance_off_is_one_branch_and_equals_the_pipeline():
    ours, theirs = ours_and_theirs(tiny.sd_pipeline(), "ddim", request("ddim", guidance=Guidance(scale=1.0)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_pictures_that_are_not_square():
    ours, theirs = ours_and_theirs(
        tiny.sd_pipeline(), "ddim", request("ddim").model_copy(update={"width": 24, "height": 16})
    )
    assert ours.shape == (2, 4, 8, 12)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
