from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.errors import ModelError
from pipelines.models.families.clip import caption_ids
from pipelines.models.noise import DDPM, alphas_cumprod_of, min_snr_weights, noised, target
from tests import tiny
from trainers.data.batches import Batch
from trainers.losses import Captions, conditioning, denoising_errors, drawn, weighted_error
from trainers.settings import ObjectiveConfig


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def latents(seed):
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([0, 500, 999])


def test_alphas_and_noising_are_the_schedulers(base):
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    alphas_cumprod = alphas_cumprod_of(base.scheduler_config, torch.device("cpu"))
    torch.testing.assert_close(alphas_cumprod, scheduler.alphas_cumprod)
    expected = scheduler.add_noise(latents(0), latents(1), TIMES)
    torch.testing.assert_close(noised(latents(0), latents(1), alphas_cumprod[TIMES]), expected)


def test_zero_terminal_snr_is_respected():
    config = tiny.sd(rescale_betas_zero_snr=True).scheduler_config
    assert alphas_cumprod_of(config, torch.device("cpu"))[-1] < 1e-6


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
    ids = caption_ids(base, 0, ["a fox", "fox " * 200])
    assert ids.shape == (2, 77)
    tokenizer = base.tokenizers[0]
    assert ids[0].tolist() == tokenizer("a fox", padding="max_length").input_ids
    assert ids[1, -1] == tokenizer.eos_token_id


def test_conditioning_of_xl_tells_sizes():
    base = tiny.sdxl()
    given = conditioning(base, ["a fox"] * 2, torch.tensor([[20, 30, 0, 4], [40, 50, 1, 0]]), (16, 16))
    assert given["encoder_hidden_states"].shape == (2, 77, 80)
    assert given["added_cond_kwargs"]["time_ids"].tolist() == [[20, 30, 0, 4, 16, 16], [40, 50, 1, 0, 16, 16]]


PLAIN = ObjectiveConfig()


def batch_of(count=3, masks=None):
    whole = torch.cat([latents(0), latents(2)])[:count]
    return Batch(whole, ["a fox"] * count, [0] * count, torch.zeros(count, 4), 0, masks)


def test_the_loss_is_the_mean_squared_error_and_reaches_the_rows(base):
    process = DDPM.of(base.scheduler_config, torch.device("cpu"))
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        arguments = conditioning(words.components, ["a <x>"] * 3, torch.ones(3, 2), (16, 16))
        errors = denoising_errors(words.components, batch_of(), (latents(1), TIMES), process, arguments, PLAIN)
        noisy = noised(latents(0), latents(1), process.alphas_cumprod[TIMES])
        guess = base.unet(noisy, TIMES, arguments["encoder_hidden_states"]).sample
        torch.testing.assert_close(errors, (guess - latents(1)).square().mean((1, 2, 3)))
        errors.mean().backward()
        assert words.rows[0].grad.norm() > 0


# -- weighting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_counts_the_clean_picture_alike_for_every_prediction(kind):
    """An error of the clean latents d costs min(SNR, gamma) d^2 whatever is predicted (arXiv:2303.09556, eq. 5)."""
    gamma, level = 5.0, torch.tensor([0.99, 0.9, 0.5, 0.1, 0.01])
    a = level[:, None, None, None]
    clean, off, noise = torch.zeros(5, 4, 8, 8), torch.full((5, 4, 8, 8), 0.1), torch.randn(5, 4, 8, 8)
    x = noised(clean, noise, level)
    # The prediction that amounts to the clean latents `off`, given x.
    implied_noise = (x - a.sqrt() * off) / (1 - a).sqrt()
    guess = {"epsilon": implied_noise, "v_prediction": a.sqrt() * implied_noise - (1 - a).sqrt() * off, "sample": off}
    error = (guess[kind] - target(kind, clean, noise, level)).square().mean((1, 2, 3))
    snr = level / (1 - level)
    torch.testing.assert_close(
        min_snr_weights(kind, level, gamma) * error, snr.clamp(max=gamma) * 0.01, rtol=1e-4, atol=1e-7
    )


def test_min_snr_is_diffusers_own_where_that_is_right(base):
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    times = torch.arange(0, 1000, 50)
    snr = compute_snr(scheduler, times)
    level = scheduler.alphas_cumprod[times]
    torch.testing.assert_close(min_snr_weights("epsilon", level, 5.0), snr.clamp(max=5.0) / snr)
    torch.testing.assert_close(min_snr_weights("v_prediction", level, 5.0), snr.clamp(max=5.0) / (snr + 1))


def test_min_snr_stays_finite_at_zero_signal():
    for kind in ("epsilon", "v_prediction", "sample"):
        weights = min_snr_weights(kind, torch.tensor([0.0, 1e-9]), 5.0)
        assert torch.isfinite(weights).all()
    assert min_snr_weights("epsilon", torch.tensor([0.0]), 5.0) == 1.0


def test_a_mask_makes_a_weighted_mean_in_which_size_does_not_count(base):
    small, large = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    small[:, :, :2, :2], large[:, :, :6, :6] = 1, 1
    guess, wanted = torch.full((2, 4, 8, 8), 3.0), torch.zeros(2, 4, 8, 8)
    process, times = base.family.process(base), torch.tensor([500, 500])
    only = ObjectiveConfig(background=0.0)
    for masks in (small, large, None):
        torch.testing.assert_close(
            weighted_error(process, guess, wanted, times, only, masks), torch.tensor([9.0, 9.0]), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("background", [0.0, 0.1, 1.0])
def test_what_lies_outside_a_mask_counts_as_asked(base, background):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    guess = torch.zeros(1, 4, 8, 8)
    guess[..., 4:] = 1.0  # wrong only outside
    error = weighted_error(
        base.family.process(base),
        guess,
        torch.zeros_like(guess),
        torch.tensor([500]),
        ObjectiveConfig(background=background),
        mask,
    )
    assert float(error) == pytest.approx(background / (1 + background))


# -- draws -------------------------------------------------------------------------------------------------------


def generator():
    return torch.Generator().manual_seed(3)


def test_spread_timesteps_leave_no_gap_and_reach_everywhere(base):
    spread = ObjectiveConfig(spread_timesteps=True)
    for seed in range(20):
        _, times = drawn(batch_of(4), spread, base.family.process(base), torch.Generator().manual_seed(seed))
        ordered = times.sort().values
        assert set(ordered.diff().tolist()) <= {249, 250, 251}
        assert 0 <= int(times.min()) < 250 and 750 <= int(times.max()) < 1000


def test_offset_noise_shifts_whole_channels_and_changes_no_other_draw(base):
    process = base.family.process(base)
    plain, times = drawn(batch_of(), PLAIN, process, generator())
    offset, same = drawn(batch_of(), ObjectiveConfig(offset_noise=0.1), process, generator())
    assert torch.equal(times, same)
    shift = offset - plain
    torch.testing.assert_close(shift, shift.mean((2, 3), keepdim=True).expand_as(shift), atol=1e-6, rtol=0)
    assert 0 < shift.std() < 0.5 and len(shift[:, :, 0, 0].unique()) == 12


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
def test_kept_text_equals_text_encoded_anew(make):
    base = make()
    kept = Captions(base, frozen=True)
    captions, frames = ["a fox", "a house", "a fox"], torch.tensor([[1, 1, 3, 5]] * 3)
    calls = []
    handle = base.text_encoders[0].register_forward_hook(lambda *_: calls.append(1))
    first, again = kept(captions, frames, (16, 24)), kept(captions[::-1], frames, (16, 24))
    handle.remove()
    assert len(calls) == 2  # each caption once
    fresh = conditioning(base, captions, frames, (16, 24))
    torch.testing.assert_close(first["encoder_hidden_states"], fresh["encoder_hidden_states"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        again["encoder_hidden_states"], fresh["encoder_hidden_states"].flip(0), atol=1e-5, rtol=0
    )
    if base.family.name == "sdxl":
        assert first["added_cond_kwargs"]["time_ids"][0].tolist() == [1, 1, 3, 5, 16, 24]
        torch.testing.assert_close(
            first["added_cond_kwargs"]["text_embeds"], fresh["added_cond_kwargs"]["text_embeds"], atol=1e-5, rtol=1e-5
        )
