"""Inpainting and image-to-image give what diffusers' pipelines give on the same noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from pipelines.conditions.inpaint import Inpainting
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
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))


def holed(box=(8, 4, 20, 12)):
    mask = Image.new("L", PICTURE.size)
    mask.paste(255, box)
    return mask


def request(name, count=1, **fields):
    guidance = Guidance(scale=4.0, rescale=0.0)
    return Request(
        **{
            "prompt": "a fox", "negative_prompt": "a dog", "scheduler": name, "steps": 5, "seed": 3, "count": count,
            "width": 24, "height": 16, "guidance": guidance,
        }
        | fields
    )  # fmt: skip


def noise_behind_draws(asked, draws):
    """The noise of upstream's own generators, which have drawn latents of the picture before."""
    generators = [torch.Generator().manual_seed(asked.seed + i) for i in range(asked.count)]
    shape = (1, 4, asked.height // 2, asked.width // 2)
    for which in draws:
        torch.randn(shape, generator=generators[which])
    return torch.cat([torch.randn(shape, generator=one) for one in generators])


def theirs_of(pipeline, asked, **call):
    pipeline.scheduler = UPSTREAM[asked.scheduler].from_config(pipeline.scheduler.config)
    return pipeline(
        asked.prompt,
        negative_prompt=asked.negative_prompt,
        num_images_per_prompt=asked.count,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance.scale,
        generator=[torch.Generator().manual_seed(asked.seed + i) for i in range(asked.count)],
        **{"output_type": "latent", **call},
    ).images


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "euler"])
def test_latents_equal_those_of_the_inpainting_pipeline(name, channels, strength):
    pipeline, asked = tiny.inpaint_pipeline(channels), request(name, count=2)
    theirs = theirs_of(
        pipeline, asked, image=PICTURE, mask_image=holed(), strength=strength, width=24, height=16
    )  # fmt: skip
    noise = noise_behind_draws(asked, [0] if channels == 4 or strength < 1 else [])
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))
    ours = generate(base, asked, conditions=[Inpainting(PICTURE, holed(), strength=strength)], noise=noise).latents
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_chance_of_the_sampler_itself_does_not_change_what_is_kept():
    """Euler's ancestral draws follow upstream's from other places of the generators; the kept latents need none."""
    base, asked = tiny.sd_inpaint(4), request("euler-a")
    one, two = (
        generate(base, asked.model_copy(update={"seed": seed}), conditions=[Inpainting(PICTURE, holed())]).latents
        for seed in (1, 2)
    )
    kept = torch.ones(8, 12, dtype=torch.bool)
    kept[2:6, 4:10] = False
    assert torch.equal(one[..., kept], two[..., kept]) and not torch.equal(one, two)


def test_a_mask_across_latents_is_that_of_the_whole_latents():
    pipeline, asked = tiny.inpaint_pipeline(9), request("ddim")
    theirs = theirs_of(pipeline, asked, image=PICTURE, mask_image=holed(), strength=1.0, width=24, height=16)
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))
    ours = generate(base, asked, conditions=[Inpainting(PICTURE, holed((9, 5, 19, 11)))]).latents
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "euler"])
@pytest.mark.parametrize("strength", [0.8, 0.4])
def test_without_a_mask_the_latents_equal_those_of_image_to_image(name, strength):
    inpainting = tiny.inpaint_pipeline(4)
    pipeline = StableDiffusionImg2ImgPipeline(**inpainting.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    asked = request(name, count=2)
    theirs = theirs_of(pipeline, asked, image=PICTURE, strength=strength)
    noise = noise_behind_draws(asked, [0, 1])
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))
    ours = generate(base, asked, conditions=[Inpainting(PICTURE, strength=strength)], noise=noise).latents
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_surroundings_alone_equal_those_of_the_cropping_pipeline():
    pipeline, asked = tiny.inpaint_pipeline(9), request("ddim", width=16, height=16)
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    mask = Image.new("L", large.size)
    mask.paste(255, (40, 20, 48, 28))
    theirs = theirs_of(
        pipeline, asked, image=large, mask_image=mask, strength=1.0, width=16, height=16, padding_mask_crop=4,
        output_type="pil",
    )  # fmt: skip
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))
    ours = generate(base, asked, conditions=[Inpainting(large, mask, only_masked=True, padding=4)]).pictures
    np.testing.assert_allclose(*(np.asarray(one[0], dtype=float) for one in (ours, theirs)), atol=1)
