"""Previews on the way to a picture show what it is going to be, not the noise it still has."""

from __future__ import annotations

import pytest
import torch

from pipelines.conditions.preview import Watch
from pipelines.generation import generate
from pipelines.models.components import decode
from pipelines.models.latent_colours import latent_colours
from pipelines.models.loading import load
from pipelines.models.schedulers import KINDS
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import Request

pytestmark = pytest.mark.pocket
STEPS = 12


@pytest.fixture(scope="module")
def base():
    return load("pocket")


class Steps(Watch):
    """Keeps latents and estimate of each step."""

    def __init__(self):
        super().__init__(lambda event: None)
        self.latents, self.estimates = [], []

    def constrain(self, latents, step):
        self.latents.append(latents)
        self.estimates.append(step.estimate())
        return super().constrain(latents, step)


@pytest.mark.parametrize("name", list(KINDS))
def test_the_estimate_comes_close_to_the_picture_long_before_the_latents(base, name):
    request = Request(prompt="a fox on a blue background", scheduler=name, steps=STEPS)
    steps = Steps()
    finished = generate(base, request, conditions=[steps]).latents
    assert torch.equal(finished, generate(base, request).latents)  # whoever watches changes nothing

    def far(latents):
        return float((latents - finished).square().mean().sqrt() / finished.std())

    estimates, noisy = [far(one) for one in steps.estimates], [far(one) for one in steps.latents]
    assert len(estimates) == STEPS
    assert max(estimates[-2:]) < 0.25
    half = STEPS // 2
    assert sum(estimates[:half]) < 0.75 * sum(noisy[:half])


def test_previews_are_pictures_of_the_estimate(base):
    request, seen = Request(prompt="a fox on a blue background", steps=STEPS), []
    picture = to_tensor(generate(base, request, conditions=[Watch(seen.append)]).pictures[0])
    far = [float((to_tensor(event.picture) - picture).abs().mean()) for event in seen]
    assert [event.step for event in seen] == [2, 4, 6, 8, 10]
    assert far[-1] < 0.2 and far[-1] < 0.8 * far[0]
    assert {event.picture.size for event in seen} == {(64, 64)}


def test_colours_of_latents_are_nearly_those_of_the_decoded_picture(base, monkeypatch):
    """As near as a linear map can be, which here is a correlation of 0.94; nothing is decoded for them."""
    colours, prompts = (
        latent_colours(base),
        ("a fox on a blue background", "a cat left of a tree on a green background"),
    )
    latents = torch.cat([generate(base, Request(prompt=prompt, steps=STEPS)).latents for prompt in prompts])
    decoded = torch.nn.functional.interpolate(decode(base, latents), size=latents.shape[-2:], mode="area")
    pair = torch.stack([decoded.flatten(), colours(latents).flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.85
    calls, real = [], type(base.family).decode
    monkeypatch.setattr(type(base.family), "decode", lambda *of: (calls.append(of), real(*of))[1])
    generate(base, Request(prompt=prompts[0], steps=STEPS), conditions=[Watch(lambda event: None)])
    assert len(calls) == 1, "the picture itself"
