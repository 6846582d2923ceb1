"""The stage `unet` in small: what it is trained on, towards which target, and that it can stop at any step."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from pipelines.events import Note, StepDone
from trainers.loop.checkpoints import states
from trainers.loop.loop import step_generator
from trainers.pretrain import unet as stage
from trainers.pretrain.layout import TEXT
from trainers.pretrain.parts import autoencoder, scheduler
from trainers.pretrain.unet import Generator, encoded, train_unet
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import Stickers, scenes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    model = autoencoder().eval().requires_grad_(False)
    model.register_to_config(scaling_factor=1.7)
    return model


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(4)
    return Generator(64, build_tokenizer())


# -- what it learns from ----------------------------------------------------------------------------------------


def test_latents_are_those_of_the_stream_times_the_scaling_factor(vae, tmp_path):
    latents, captions = encoded(tmp_path, vae, 5, 31, 64, "cpu", lambda event: None)
    listed = scenes(5, 31)
    with torch.no_grad():
        expected = 1.7 * vae.encoder(Stickers().render(listed).images)
    assert latents.dtype == torch.float16 and latents.shape == (5, 4, 16, 16)
    torch.testing.assert_close(latents.float(), expected, atol=2e-3, rtol=2e-3)
    assert captions == [item.caption for item in listed]


def test_latents_are_encoded_once_for_one_autoencoder_and_anew_for_another(vae, tmp_path):
    notes = []
    first, _ = encoded(tmp_path, vae, 3, 31, 64, "cpu", notes.append)
    again, _ = encoded(tmp_path, vae, 3, 31, 64, "cpu", notes.append)
    assert torch.equal(first, again) and notes == [Note("encoding 3 pictures")]
    torch.manual_seed(9)
    other, _ = encoded(tmp_path, autoencoder().eval(), 3, 31, 64, "cpu", notes.append)
    assert len(notes) == 2 and not torch.allclose(other, first)
    encoded(tmp_path, vae, 3, 32, 64, "cpu", notes.append)
    assert len(notes) == 3, "another seed is another stream"


# -- the target -------------------------------------------------------------------------------------------------


class Seen:
    """Inputs and outputs of the networks, taken by hooks on the real ones."""

    def __init__(self, model):
        self.calls = []
        self.handle = model.unet.register_forward_hook(self._keep)

    def _keep(self, module, given, result):
        self.calls.append((*given, result.sample))


def denoising(generator, latents, captions, batch, seeds=(0,)):
    """Losses of `batch` pictures at some steps, and what the UNet saw."""
    losses, seen = stage._denoising(generator, latents, captions, batch, True, lambda event: None), Seen(generator)
    try:
        with torch.no_grad():
            terms = [losses(step, step_generator(5, step))["denoise"] for step in seeds]
    finally:
        seen.handle.remove()
    return terms, seen.calls


def test_the_loss_is_the_error_of_the_velocity_of_arxiv_2202_00512(generator):
    """One picture alone, so that the clean latents are known; noise follows from what the UNet was shown."""
    clean = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)).half()
    (loss,), ((noisy, timesteps, _, guess),) = denoising(generator, clean, ["a fox"], 4)
    level = scheduler().alphas_cumprod[timesteps].double()[:, None, None, None]
    x, z = clean.double(), noisy.double()
    noise = (z - level.sqrt() * x) / (1 - level).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.1), "what was added is unit noise"
    velocity = level.sqrt() * noise - (1 - level).sqrt() * x
    assert float(loss) == pytest.approx(float((guess - velocity).square().mean()), rel=1e-3)


def test_at_the_last_timestep_nothing_of_the_picture_is_left():
    """Zero terminal SNR (arXiv:2305.08891): only then may a background be darker or lighter than average."""
    noising = scheduler()
    assert float(noising.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-7)
    clean, noise, last = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), torch.tensor([999])
    torch.testing.assert_close(noising.add_noise(clean, noise, last), noise, atol=1e-3, rtol=0)  # pyright: ignore
    torch.testing.assert_close(noising.get_velocity(clean, noise, last), -clean, atol=1e-3, rtol=0)  # pyright: ignore


def test_timesteps_of_a_batch_are_one_of_each_eighth_of_the_way(generator):
    latents = torch.zeros(2, 4, 16, 16).half()
    _, calls = denoising(generator, latents, ["a fox", "a cat"], 8, range(3))
    for _, timesteps, _, _ in calls:
        assert sorted((timesteps // 125).tolist()) == list(range(8))
        assert len({int(t) % 125 for t in timesteps}) == 1, "one draw a batch, moved along"
    assert len({tuple(call[1].tolist()) for call in calls}) == 3, "drawn anew each step"


def test_a_tenth_of_the_captions_are_left_empty(generator):
    tokenizer = build_tokenizer()
    with torch.no_grad():
        ids = tokenizer(["", "a fox"], padding="max_length", return_tensors="pt").input_ids
        empty, fox = generator.text(ids).last_hidden_state
    _, calls = denoising(generator, torch.zeros(1, 4, 16, 16).half(), ["a fox"], 48, range(3))
    rows = torch.cat([context for _, _, context, _ in calls])
    is_empty = torch.isclose(rows, empty, atol=1e-4).flatten(1).all(1)
    is_fox = torch.isclose(rows, fox, atol=1e-4).flatten(1).all(1)
    assert bool((is_empty ^ is_fox).all())
    assert float(is_empty.float().mean()) == pytest.approx(0.1, abs=0.08)  # three deviations of 144 draws


def test_rates_are_those_of_muon_and_a_quarter_for_the_text_encoder(generator):
    muon, adam = generator.optimizers(1e-3)
    assert [group["lr"] for group in muon.param_groups] == [1e-3]
    assert [group["lr"] for group in adam.param_groups] == [1e-3, 2.5e-4]
    text = {id(parameter) for parameter in generator.text.parameters()}
    assert {id(p) for p in adam.param_groups[1]["params"]} == text
    assert all(p.ndim >= 2 for p in muon.param_groups[0]["params"])
    everything = [id(p) for one in (muon, adam) for group in one.param_groups for p in group["params"]]
    assert len(everything) == len(set(everything)), "nothing is stepped twice"


# -- the whole stage --------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, generator):
    torch.save(generator.text.state_dict(), tmp_path / TEXT)
    return tmp_path


def learn(work, vae, steps, on_event=lambda event: None, **more):
    settings: dict[str, Any] = {"batch": 2, "pictures": 3, "keep_every": 2, **more}
    return train_unet(work, vae, steps=steps, size=64, device="cpu", on_event=on_event, **settings)


def test_stopped_and_resumed_it_ends_bit_for_bit_like_one_that_was_not(work, vae):
    shown = []
    whole = learn(work, vae, 3, show=lambda model, step: shown.append(step), show_every=2)
    assert shown == [2, 3], "as often as asked, and at the end"
    assert not whole.training
    shutil.rmtree(work / "unet.state")

    def stop(event):
        if isinstance(event, StepDone):  # said with the last step, before its state is kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(work, vae, 3, stop)
    assert [place.name for place in states(work / "unet.state")] == ["step-00000002"]
    events = []
    resumed = learn(work, vae, 3, events.append)
    assert Note("resumed after step 2") in events
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_a_little_learning_moves_the_text_encoder_from_where_the_stage_before_left_it(work, vae, generator):
    start = {key: value.clone() for key, value in generator.text.state_dict().items()}
    model = learn(work, vae, 1)
    moved = [key for key, value in model.text.state_dict().items() if not torch.equal(value, start[key])]
    assert moved
    # One warming step of an average over five hundred: the start is still to be recognised.
    for key, value in model.text.state_dict().items():
        torch.testing.assert_close(value, start[key], atol=1e-3, rtol=1e-2)


def test_a_frozen_text_encoder_is_not_trained_and_the_unet_is(generator):
    copied = Generator(64, build_tokenizer())
    copied.load_state_dict(generator.state_dict())
    groups = [group["params"] for one in copied.optimizers(1e-3, text=False) for group in one.param_groups]
    trained = {id(parameter) for group in groups for parameter in group}
    assert not any(id(parameter) in trained or parameter.requires_grad for parameter in copied.text.parameters())
    assert any(id(parameter) in trained for parameter in copied.unet.parameters())
