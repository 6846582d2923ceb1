"""Bases distilled with their guidance (LCM): the scale is an embedding, there is one branch."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image

from pipelines.conditions.inpaint import Inpainting
from pipelines.events import Note
from pipelines.generation import generate
from pipelines.models.families.sd import embedded
from pipelines.models.loading import from_pipeline
from pipelines.request.request import Guidance, Request
from tests import tiny
from trainers.losses import conditioning, uncropped


def request(scale=8.0, **fields):
    fields_given = {"prompt": "a fox", "scheduler": "lcm", "steps": 4, "seed": 3, "count": 2, "width": 16, "height": 16}
    return Request(**(fields_given | {"guidance": Guidance(scale=scale)} | fields))


def compare(pipeline, asked, **call):
    base = tiny.frozen(from_pipeline(pipeline, "tiny-lcm"))
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    generators = [torch.Generator().manual_seed(asked.seed + i) for i in range(asked.count)]
    theirs = pipeline(asked.prompt, num_images_per_prompt=asked.count, num_inference_steps=asked.steps, width=16,
                      guidance_scale=asked.guidance.scale, generator=generators, output_type="latent", height=16,
                      **call).images  # fmt: skip
    ours = generate(base, asked).latents
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    return ours


@pytest.mark.parametrize("xl", [False, True])
def test_a_distilled_unet_is_told_the_scale_as_diffusers_tells_it(xl):
    drawn = [compare(tiny.lcm_pipeline(xl), request(scale)) for scale in (8.0, 1.5)]
    assert not torch.allclose(*drawn, atol=1e-3)


def test_a_negative_prompt_does_nothing_there_and_is_noted():
    base, said = tiny.frozen(from_pipeline(tiny.lcm_pipeline(), "tiny-lcm")), []
    plain = generate(base, request(), on_event=said.append).latents
    assert not any(isinstance(event, Note) for event in said)
    assert torch.equal(plain, generate(base, request(negative_prompt="a dog"), on_event=said.append).latents)
    assert any(isinstance(event, Note) and "distilled" in event.text for event in said)


def test_pictures_are_changed_with_it_too():
    base = tiny.frozen(from_pipeline(tiny.lcm_pipeline(), "tiny-lcm"))
    asked, picture = request(count=1, steps=4), Image.new("RGB", (16, 16), "teal")
    drawn = generate(base, asked, conditions=[Inpainting(picture, strength=0.5)]).latents
    without = generate(base, request(2.0, count=1), conditions=[Inpainting(picture, strength=0.5)]).latents
    assert not torch.allclose(drawn, without, atol=1e-3)


def test_the_embedding_is_its_closed_form():
    angles = [7000.0 * f for f in (1.0, 0.01, 0.0001)]
    wanted = [*(math.sin(angle) for angle in angles), *(math.cos(angle) for angle in angles)]
    torch.testing.assert_close(embedded(8.0, 6), torch.tensor([wanted]), atol=2e-3, rtol=0)
    assert embedded(8.0, 7).tolist()[0][-1] == 0 and embedded(1.0, 4).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_outside_its_interval_guidance_is_one():
    base = tiny.frozen(from_pipeline(tiny.lcm_pipeline(), "tiny-lcm"))
    never = request(guidance=Guidance(scale=8.0, start=0.5, stop=0.5))
    assert torch.equal(generate(base, never).latents, generate(base, request(1.0)).latents)


def test_such_a_base_has_defaults_of_its_kind_and_is_trained_without_guidance():
    base = tiny.frozen(from_pipeline(tiny.lcm_pipeline(), "tiny-lcm"))
    assert (base.defaults.scheduler, base.defaults.steps) == ("lcm", 4)
    embedding = conditioning(base, ["a fox", "a cat"], uncropped(2, (16, 16)), (16, 16))["timestep_cond"]
    assert torch.equal(embedding, embedded(1.0, 6).expand(2, -1))
    assert "timestep_cond" not in conditioning(tiny.sd(), ["a fox"], uncropped(1, (16, 16)), (16, 16))
