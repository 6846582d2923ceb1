from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from pipelines.errors import ModelError
from pipelines.tokens import new_words, single_rows
from tests import tiny
from trainers.terms import conditioning, denoising_loss, noise_levels, noised, prompt_ids, target


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def latents(seed):
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([0, 500, 999])


def test_noise_levels_and_noising_are_the_schedulers(base):
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    levels = noise_levels(base.scheduler_config, torch.device("cpu"))
    torch.testing.assert_close(levels, scheduler.alphas_cumprod)
    expected = scheduler.add_noise(latents(0), latents(1), TIMES)
    torch.testing.assert_close(noised(latents(0), latents(1), levels[TIMES]), expected)


def test_zero_terminal_snr_is_respected():
    config = tiny.sd(rescale_betas_zero_snr=True).scheduler_config
    assert noise_levels(config, torch.device("cpu"))[-1] < 1e-6


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_each_target_leads_back_to_the_clean_latents(kind):
    level = torch.tensor([0.9, 0.5, 0.1])
    a = level[:, None, None, None]
    clean, noise = latents(0), latents(1)
    x, y = noised(clean, noise, level), target(kind, clean, noise, level)
    recovered = {
        "epsilon": (x - (1 - a).sqrt() * y) / a.sqrt(),
        "v_prediction": a.sqrt() * x - (1 - a).sqrt() * y,
        "sample": y,
    }[kind]
    torch.testing.assert_close(recovered, clean, atol=1e-5, rtol=1e-5)


def test_the_velocity_is_the_schedulers(base):
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    expected = scheduler.get_velocity(latents(0), latents(1), TIMES)
    torch.testing.assert_close(
        target("v_prediction", latents(0), latents(1), scheduler.alphas_cumprod[TIMES]), expected
    )


def test_an_unknown_target_is_said():
    with pytest.raises(ModelError, match="flow"):
        target("flow", latents(0), latents(1), torch.ones(3))


def test_captions_are_padded_and_cut_to_the_window(base):
    ids = prompt_ids(base, 0, ["a fox", "fox " * 200])
    assert ids.shape == (2, 77)
    tokenizer = base.tokenizers[0]
    assert ids[0].tolist() == tokenizer("a fox", padding="max_length").input_ids
    assert ids[1, -1] == tokenizer.eos_token_id


def test_conditioning_of_xl_tells_sizes():
    base = tiny.sdxl()
    given = conditioning(base, ["a fox"] * 2, torch.tensor([[20, 30], [40, 50]]), 16)
    assert given["encoder_hidden_states"].shape == (2, 77, 80)
    assert given["added_cond_kwargs"]["time_ids"].tolist() == [[20, 30, 0, 0, 16, 16], [40, 50, 0, 0, 16, 16]]


def test_the_loss_is_the_mean_squared_error_and_reaches_the_rows(base):
    levels = noise_levels(base.scheduler_config, torch.device("cpu"))
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        arguments = conditioning(words.components, ["a <x>"] * 3, torch.ones(3, 2), 16)
        loss = denoising_loss(words.components, latents(0), TIMES, latents(1), levels, arguments)
        noisy = noised(latents(0), latents(1), levels[TIMES])
        guess = base.unet(noisy, TIMES, arguments["encoder_hidden_states"]).sample
        torch.testing.assert_close(loss, (guess - latents(1)).square().mean())
        loss.backward()
        assert words.rows[0].grad.norm() > 0
