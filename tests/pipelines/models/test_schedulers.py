from __future__ import annotations

import pytest
import torch

from pipelines.models.schedulers import KINDS, build, estimate, step_options
from pipelines.request.samplers import SAMPLERS
from tests import tiny


@pytest.mark.parametrize("name", list(KINDS))
def test_the_noise_schedule_is_the_bases_own(name):
    config = tiny.sd(prediction_type="v_prediction", timestep_spacing="trailing").scheduler_config
    scheduler = build(name, config, 7, "cpu")
    assert len(scheduler.timesteps) == 7
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_schedule == "scaled_linear"
    if "timestep_spacing" in scheduler.config:
        assert scheduler.config.timestep_spacing == "trailing"


def test_latents_are_not_clipped_even_where_the_default_would():
    config = {key: value for key, value in tiny.sd().scheduler_config.items() if key != "clip_sample"}
    assert build("ddim", config, 5, "cpu").config.clip_sample is False


@pytest.mark.parametrize("name", list(KINDS))
def test_chance_comes_from_the_generators_given(name):
    scheduler = build(name, tiny.sd().scheduler_config, 4, "cpu")
    latents, guess = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))

    def stepped(seed):
        fresh = build(name, tiny.sd().scheduler_config, 4, "cpu")
        options = step_options(fresh, [torch.Generator().manual_seed(seed)])
        return fresh.step(guess, fresh.timesteps[0], latents, **options).prev_sample

    state = torch.get_rng_state()
    assert torch.equal(stepped(1), stepped(1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(stepped(1), stepped(2)) == (name not in ("euler-a", "lcm"))
    assert scheduler.init_noise_sigma > 0


def test_every_sampler_has_the_name_other_programs_know():
    assert set(SAMPLERS) == set(KINDS)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", list(KINDS))
def test_a_right_prediction_gives_the_finished_latents_at_every_step(name, kind):
    config = tiny.sd(prediction_type=kind, timestep_spacing="leading").scheduler_config  # whole timesteps
    scheduler = build(name, config, 6, "cpu")
    target, noise = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    latents = noise * scheduler.init_noise_sigma
    options = step_options(scheduler, [torch.Generator().manual_seed(2)])
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep)
        share = scheduler.alphas_cumprod[int(timestep)]
        alpha, sigma = share**0.5, (1 - share) ** 0.5
        guess = (seen - alpha * target) / sigma
        prediction = guess if kind == "epsilon" else alpha * guess - sigma * target
        stepped = scheduler.step(prediction, timestep, latents, **options)
        assert torch.allclose(estimate(scheduler, stepped, prediction, latents), target, atol=2e-3)
        latents = stepped.prev_sample


def test_what_is_predicted_otherwise_is_refused():
    scheduler = build("unipc", dict(tiny.sd().scheduler_config) | {"prediction_type": "flow_prediction"}, 4, "cpu")
    latents = torch.ones(1, 4, 4, 4)
    stepped = scheduler.step(latents, scheduler.timesteps[0], latents)
    with pytest.raises(ValueError, match="flow"):
        estimate(scheduler, stepped, latents, latents)
