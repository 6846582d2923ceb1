"""Attend-and-Excite: the loss of the paper, diffusers' own corrections, and nothing where it is off."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionAttendAndExcitePipeline

from pipelines.condition import Step
from pipelines.conditions.attention_maps import AttentionMaps
from pipelines.conditions.excite import Excitation, lacking, on_one_grid
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.models.loading import from_pipeline
from pipelines.request.excite import Excite
from pipelines.request.request import Guidance, Request
from tests import tiny, tiny_flows


def asked(words="fox", steps=10, **fields):
    excite = Excite(words=words, **fields.pop("excite", {}))
    given = {
        "prompt": "a fox and a cat",
        "scheduler": "ddim",
        "width": 16,
        "height": 16,
        "guidance": Guidance(scale=4.0),
    }
    return Request(**(given | {"steps": steps, "excite": excite} | fields))


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def test_off_is_off_to_the_bit_and_on_is_not(base):
    plain = generate(base, asked(words="")).latents
    for off in ({"strength": 0.0}, {"until": 0.0}):
        assert generate(base, asked(excite=off)).latents.equal(plain)
    before = tiny.snapshot(base)
    assert not generate(base, asked()).latents.equal(plain) and tiny.same(before, base)


@pytest.mark.parametrize("tries", [20, 3])
def test_latents_are_those_of_diffusers(tries, monkeypatch):
    """Words, thresholds, kernel, step lengths, and the step more behind a threshold."""
    pipeline = tiny.sd_pipeline()
    base = tiny.frozen(from_pipeline(pipeline, "tiny"))
    request = asked(words="fox, cat", steps=10, excite={"strength": 30.0, "tries": tries})
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = generate(base, request, noise=noise).latents
    scheduler = DDIMScheduler.from_config(base.scheduler_config)
    theirs = StableDiffusionAttendAndExcitePipeline(
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=pipeline.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    refine = theirs._perform_iterative_refinement_step
    monkeypatch.setattr(
        theirs, "_perform_iterative_refinement_step", lambda **given: refine(**given, max_refinement_steps=tries)
    )
    register = theirs.register_attention_control

    def register_those_there_are():  # it counts the gated layers too, which are not called
        register()
        theirs.attention_store.num_att_layers = sum("fuser" not in name for name in theirs.unet.attn_processors)

    monkeypatch.setattr(theirs, "register_attention_control", register_those_there_are)
    theirs.set_progress_bar_config(disable=True)
    words = dict(base.family.words(base, request.prompt))
    reference = theirs(
        request.prompt,
        token_indices=[words["fox"][0], words["cat"][0]],
        height=16,
        width=16,
        num_inference_steps=10,
        guidance_scale=4.0,
        latents=noise,
        max_iter_to_alter=5,
        thresholds={0: 0.05, 2: 0.5, 4: 0.8},
        scale_factor=30,
        attn_res=(8, 8),
        output_type="latent",
    ).images
    plain = generate(base, asked(words=""), noise=noise).latents
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3)


def test_a_correction_lowers_the_loss_and_pictures_are_corrected_each_for_itself(base):
    settings = Excite(words="fox, cat", strength=5.0, tries=0)
    excitation, step = Excitation(settings, "a fox and a cat"), Step(0, 10, torch.tensor(900), torch.tensor(800))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = base.family.encode_text(base, ["a fox and a cat"])

    def predict(sample):
        told = {name: one.expand(len(sample), -1, -1) for name, one in text.items()}
        return base.family.predict(base, sample, step.timestep, told)

    with torch.no_grad(), excitation.attach(base, 2):
        losses = [excitation._loss(latents, predict)[0]]
        corrected = excitation.corrected(latents, step, predict)
        losses.append(excitation._loss(corrected, predict)[0])
        alone = excitation.corrected(latents[1:], step, predict)
        late = excitation.corrected(latents, Step(5, 10, step.timestep, None), predict)
    assert bool((losses[1] < losses[0]).all()), losses
    torch.testing.assert_close(corrected[1:], alone, rtol=1e-4, atol=1e-5)
    assert late is latents and not corrected.requires_grad


def test_the_loss_is_what_the_word_looked_up_least_lacks():
    """Two words, each at one place with all of the attention but for a share; the other words nothing."""
    attention = torch.zeros(1, 4, 4, 5)
    attention[..., 0] = 1.0  # the start token takes no part
    attention[0, :, :, 1] = 0.02
    attention[0, :, :, 3] = 0.01
    shares = torch.tensor([2.0, 0.0, 1.0]).softmax(dim=0)
    expected = 1 - float(shares.min() * 0 + shares[2])
    assert lacking(attention, [[1], [3]]).item() == pytest.approx(expected, abs=1e-5)
    assert lacking(attention, [[1]]).item() == pytest.approx(1 - float(shares[0]), abs=1e-5)
    assert lacking(attention, [[1, 3]]).item() == pytest.approx(1 - float(shares[0] + shares[2]), abs=1e-5)


def test_the_grid_that_is_read_is_the_papers():
    """Of a UNet of 512 pixels 16 x 16 of 64; of `pocket` the finest it has; of other shapes as much."""
    layers = [torch.rand(1, side * side, 3) for side in (64, 32, 16, 16, 8)]
    torch.testing.assert_close(on_one_grid(layers, 64, 64).flatten(1, 2), torch.stack(layers[2:4]).mean(dim=0))
    assert on_one_grid([torch.rand(1, n, 3) for n in (64, 16)], 16, 16).shape == (1, 8, 8, 3)
    assert on_one_grid([torch.rand(1, n, 3) for n in (96 * 64, 48 * 32, 24 * 16)], 96, 64).shape == (1, 24, 16, 3)


def test_the_corrections_are_not_counted_among_what_is_watched(base):
    """One step is one prediction, whatever is computed before it."""
    watching = AttentionMaps("a fox and a cat")
    generate(base, asked(steps=1, excite={"until": 1.0, "tries": 0}), conditions=[watching])
    assert watching._calls == sum(bool(getattr(one, "is_cross_attention", False)) for one in base.unet.modules())


@pytest.mark.parametrize(
    ("words", "said"), [("dog", "does not say 'dog'.*fox, and, a, cat"), ("a cat fox", "does not say 'a cat fox'")]
)
def test_a_word_that_the_prompt_does_not_say_is_refused(base, words, said):
    with pytest.raises(RequestError, match=said):
        generate(base, asked(words=words))


def test_a_base_without_a_unet_is_refused_by_name():
    with pytest.raises(RequestError, match=r"tiny-sd3 \(Stable Diffusion 3.*\) lacks"):
        generate(tiny_flows.base("sd3"), asked(scheduler="euler", width=32, height=32))
