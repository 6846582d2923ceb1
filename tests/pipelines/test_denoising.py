from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from pipelines.condition import Branch, merge, stack
from pipelines.conditions.text import Text
from pipelines.errors import Cancelled, RequestError
from pipelines.generation import generate
from pipelines.request.request import Guidance, Request
from tests import tiny


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def small(**fields):
    return Request(**({"prompt": "a fox", "steps": 4, "width": 16, "height": 16, "scheduler": "ddim"} | fields))


def test_the_same_request_gives_the_same_pictures_and_another_seed_others(base):
    first, again, other = (generate(base, small(seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first.latents, again.latents)
    assert first.pictures[0].tobytes() == again.pictures[0].tobytes()
    assert not torch.equal(first.latents, other.latents)


def test_picture_i_starts_from_seed_plus_i(base):
    both = generate(base, small(seed=3, count=2)).latents
    second = generate(base, small(seed=4)).latents
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)


def test_the_resolved_request_repeats_the_pictures_exactly(base):
    result = generate(base, Request(prompt="a fox", steps=3))
    assert result.request.width == 16 and result.request.scheduler == "dpm++2m" and result.request.guidance.scale == 7.5
    assert torch.equal(generate(base, result.request).latents, result.latents)


def test_the_base_is_untouched(base):
    before = tiny.snapshot(base)
    generate(base, small())
    assert tiny.same(before, base)


def test_progress_is_reported_for_each_step(base):
    steps = []
    generate(base, small(), on_event=steps.append)
    assert [(event.step, event.steps) for event in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_cancelling_stops_within_one_step(base):
    steps = []
    with pytest.raises(Cancelled, match="after step 2 of 4"):
        generate(base, small(), on_event=steps.append, should_stop=lambda: len(steps) == 2)
    assert len(steps) == 2


def test_a_size_the_base_cannot_do_names_the_next_that_it_can(base):
    with pytest.raises(
        RequestError, match=r"width 18 is no multiple of 4.*Use 16\.|width 18 is no multiple of 4.*Use 20\."
    ):
        generate(base, small(width=18))


def test_unguided_steps_outside_the_interval_equal_the_conditional_prediction_alone(base):
    guided_nowhere = generate(base, small(guidance=Guidance(scale=7.0, start=1.0))).latents
    unguided = generate(base, small(guidance=Guidance(scale=1.0))).latents
    assert torch.equal(guided_nowhere, unguided)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "unipc", "euler", "euler-a", "lcm"])
def test_every_scheduler_gives_finite_pictures_and_repeats(base, name):
    first, again = (generate(base, small(scheduler=name, seed=1)).latents for _ in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations_agree(attention):
    from pipelines.models.loading import set_attention

    base = tiny.sd()
    reference = generate(base, small()).latents
    set_attention(base.unet, attention)
    torch.testing.assert_close(generate(base, small()).latents, reference, atol=1e-4, rtol=0)


class Extra:
    """A condition that claims one argument."""

    def __init__(self, key):
        self.key = key

    def attach(self, components, count):
        return nullcontext()

    def conditioning(self, branch, step):
        return {self.key: torch.zeros(1, 3, 32)}

    def constrain(self, latents, step):
        return latents * 0.5


def test_two_conditions_on_the_same_argument_are_refused(base):
    with pytest.raises(RequestError, match="both set encoder_hidden_states"):
        generate(base, small(), conditions=[Extra("encoder_hidden_states")])


def test_a_condition_may_put_the_latents_right_after_each_step(base):
    halved = generate(base, small(), conditions=[Halve()]).latents
    assert halved.std() < 0.5 * generate(base, small()).latents.std()


class Halve:
    def attach(self, components, count):
        return nullcontext()

    def conditioning(self, branch, step):
        return {}

    def constrain(self, latents, step):
        return latents * 0.5


def test_nested_arguments_merge():
    assert merge([{"a": {"x": 1}}, {"a": {"y": 2}, "b": 3}]) == {"a": {"x": 1, "y": 2}, "b": 3}
    with pytest.raises(RequestError, match=r"a\.x"):
        merge([{"a": {"x": 1}}, {"a": {"x": 2}}])


def test_branches_with_different_arguments_cannot_be_stacked():
    with pytest.raises(ValueError, match="differ"):
        stack([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}])


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
def test_the_null_form_of_text_has_the_same_keys_and_shapes(make):
    base = make()
    text = Text("a fox", "", (16, 16))
    with text.attach(base, 3):
        positive, negative = (text.conditioning(branch, None) for branch in (Branch.POSITIVE, Branch.NEGATIVE))
        listed = [shapes_of(kwargs) for kwargs in (positive, negative)]
    assert listed[0] == listed[1]
    assert positive["encoder_hidden_states"].shape[0] == 3


def shapes_of(tree):
    return {key: shapes_of(value) if isinstance(value, dict) else tuple(value.shape) for key, value in tree.items()}
