from __future__ import annotations

import pytest
import torch

from pipelines.metadata import SAMPLERS
from pipelines.schedulers import KINDS, build, step_options
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
