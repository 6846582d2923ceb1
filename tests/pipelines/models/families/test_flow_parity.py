"""Each family of rectified flow draws through the studio's one loop what its own pipeline of diffusers draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    Flux2KleinInpaintPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
)
from PIL import Image

from pipelines.conditions.inpaint import Inpainting
from pipelines.generation import generate
from pipelines.models.components import decode
from pipelines.models.loading import from_pipeline
from pipelines.request.request import Guidance, Request
from tests import tiny, tiny_flows

PROMPT, NEGATIVE, SIDE, STEPS, SEED = "a fox on a hat", "a cat", 32, 6, 3
TOLERANCE = 1e-5

SCALED = {
    "sd3": (4.0, {"guidance_scale": 4.0, "negative_prompt": NEGATIVE}),
    "flux1": (3.5, {"guidance_scale": 3.5}),
    "flux2": (4.0, {"guidance_scale": 4.0}),
    "z-image": (4.0, {"guidance_scale": 3.0, "negative_prompt": NEGATIVE}),  # its number is one less
    "qwen-image": (4.0, {"true_cfg_scale": 4.0, "negative_prompt": NEGATIVE}),
    "krea2": (4.5, {"guidance_scale": 3.5, "negative_prompt": NEGATIVE}),  # its number is one less
}
"""Family -> the studio's guidance scale, and what the pipeline takes for the same."""


def ours(components, scale, conditions=(), noise=None, steps=STEPS, **asked):
    # Klein's pipeline has no negative prompt: its other branch is the empty text.
    negative = "" if components.family.name == "flux2" else NEGATIVE
    fields = {"prompt": PROMPT, "negative_prompt": negative, "width": SIDE, "height": SIDE, "seed": SEED} | asked
    request = Request(**fields, steps=steps, guidance=Guidance(scale=scale))
    made = generate(components, request, conditions=conditions, noise=noise)
    return (decode(components, made.latents) / 2 + 0.5).clamp(0, 1)


def theirs(pipe, steps=STEPS, **told):
    generator = torch.Generator().manual_seed(SEED)
    fixed = {"height": SIDE, "width": SIDE, "output_type": "pt", "generator": generator}
    return pipe(prompt=PROMPT, num_inference_steps=steps, **(fixed | told)).images


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("family", tiny_flows.PIPELINES)
def test_text_to_image_is_that_of_the_pipeline(family, guided):
    pipe = tiny_flows.pipeline(family)
    components = tiny.frozen(from_pipeline(pipe, f"tiny-{family}"))
    scale, told = SCALED[family]
    if not guided:
        scale, told = 1.0, {key: 1.0 for key in told if key.endswith("scale")}
        told = {"guidance_scale": 0.0} if family in ("z-image", "krea2") else told
    expected = theirs(pipe, **told)
    assert float(expected.std()) > 0.02
    assert (ours(components, scale) - expected).abs().max() < TOLERANCE


def test_flux_schnell_is_guided_by_a_negative_branch_where_it_is_asked_to():
    pipe = tiny_flows.pipeline("flux1", guidance=False)
    components = tiny.frozen(from_pipeline(pipe, "tiny-schnell"))
    expected = theirs(pipe, true_cfg_scale=3.0, negative_prompt=NEGATIVE, guidance_scale=0.0)
    assert not components.distilled
    assert (ours(components, 3.0) - expected).abs().max() < TOLERANCE


def test_stable_diffusion_3_draws_without_t5_as_diffusers_does():
    pipe = tiny_flows.pipeline("sd3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    components = tiny.frozen(from_pipeline(pipe, "tiny-sd3"))
    assert len(components.text_encoders) == 2
    assert (ours(components, 4.0) - theirs(pipe, **SCALED["sd3"][1])).abs().max() < TOLERANCE


def test_the_distilled_krea_has_a_shift_of_its_own():
    pipe = tiny_flows.pipeline("krea2", distilled=True)
    components = tiny.frozen(from_pipeline(pipe, "tiny-krea2"))
    assert components.defaults.scale == 1.0
    assert (ours(components, 1.0) - theirs(pipe, guidance_scale=0.0)).abs().max() < TOLERANCE


@pytest.mark.parametrize("steps", [4, 9])
def test_the_shift_of_klein_depends_on_the_number_of_steps(steps):
    pipe = tiny_flows.pipeline("flux2")
    components = tiny.frozen(from_pipeline(pipe, "tiny-flux2"))
    assert (ours(components, 1.0, steps=steps) - theirs(pipe, steps=steps, guidance_scale=1.0)).abs().max() < TOLERANCE


def test_other_shapes_than_squares_and_several_pictures():
    """Rows and columns are told apart, and picture i is that of its own seed."""
    for family in tiny_flows.PIPELINES:
        pipe = tiny_flows.pipeline(family)
        components = tiny.frozen(from_pipeline(pipe, f"tiny-{family}"))
        scale, told = SCALED[family]
        expected = theirs(pipe, height=24, width=40, **told)
        both = ours(components, scale, height=24, width=40, seed=SEED - 1, count=2)
        assert (both[1:] - expected).abs().max() < TOLERANCE, family


# -- a picture to begin with ------------------------------------------------------------------------------------

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8), "RGB")
MASK = Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8))
IMAGE = {
    "sd3": StableDiffusion3Img2ImgPipeline,
    "flux1": FluxImg2ImgPipeline,
    "z-image": ZImageImg2ImgPipeline,
    "qwen-image": QwenImageImg2ImgPipeline,
}
PAINT = {
    "sd3": StableDiffusion3InpaintPipeline,
    "flux1": FluxInpaintPipeline,
    "flux2": Flux2KleinInpaintPipeline,
    "z-image": ZImageInpaintPipeline,
    "qwen-image": QwenImageInpaintPipeline,
}


def over(kind, pipe):
    """Another pipeline over the same parts."""
    known = kind.__init__.__code__.co_varnames[1 : kind.__init__.__code__.co_argcount]
    made = kind(**{key: value for key, value in pipe.components.items() if key in known})
    for name in ("prompt_template_encode_start_idx",):
        if hasattr(pipe, name):
            setattr(made, name, getattr(pipe, name))
    made.set_progress_bar_config(disable=True)
    return made


def noise_of(components, drawn_before):
    """The noise of a generator that drew the posterior of the picture first, where the pipeline does that."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, components.channels, SIDE // components.factor, SIDE // components.factor)
    if drawn_before:
        torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("family", IMAGE)
def test_image_to_image_is_that_of_the_pipeline(family):
    pipe = tiny_flows.pipeline(family)
    components = tiny.frozen(from_pipeline(pipe, f"tiny-{family}"))
    scale, told = SCALED[family]
    expected = theirs(over(IMAGE[family], pipe), steps=8, image=PICTURE, strength=0.5, **told)
    mine = ours(components, scale, [Inpainting(PICTURE, strength=0.5)], noise_of(components, True), steps=8)
    assert (mine - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", PAINT)
def test_the_known_region_of_an_inpainting_is_kept_as_the_pipeline_keeps_it(family):
    sixteen = family == "sd3"  # whose pipeline takes no other number of channels
    pipe = tiny_flows.pipeline(family, **({"channels": 16} if sixteen else {}))
    components = tiny.frozen(from_pipeline(pipe, f"tiny-{family}"))
    scale, told = SCALED[family]
    told = told | {"image": PICTURE, "mask_image": MASK, "strength": 0.5}
    expected = theirs(over(PAINT[family], pipe), steps=8, **told, **({"output_type": "latent"} if sixteen else {}))
    if sixteen:  # diffusers' pipeline leaves the shift out where it decodes
        expected = (decode(components, expected) / 2 + 0.5).clamp(0, 1)
    noise = noise_of(components, family != "flux2")
    mine = ours(components, scale, [Inpainting(PICTURE, MASK, strength=0.5)], noise, steps=8)
    assert (mine - expected).abs().max() < TOLERANCE
    kept = ours(components, scale, [Inpainting(PICTURE, strength=0.5)], noise, steps=8)
    assert (kept - expected).abs().max() > 0.01, "the mask has an effect"
