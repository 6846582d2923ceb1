"""DreamBooth: the official scripts' mathematics where they are right, and what they lack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch.nn import functional as F

from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference, LowRank
from pipelines.errors import ConfigError
from pipelines.generation import generate
from pipelines.models.families.sd import StableDiffusion
from pipelines.models.loading import from_pipeline
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny
from trainers.data.batches import LatentSet, ordinary
from trainers.loop.train import train
from trainers.methods.dreambooth import DreamBooth, DreamBoothConfig
from trainers.methods.parts.adapters import BOXES, layers, low_rank, whole
from trainers.run import Run
from trainers.settings import DataConfig, LowRankConfig, TrainConfig
from trainers.stickers.world import HELD_OUT

METHOD = DreamBooth()


def run(steps=3, **settings):
    config = {"token": "z", "class_word": "fox", "prior": "none"} | {
        key: value for key, value in settings.items() if key in DreamBoothConfig.model_fields
    }
    pace = {"steps": steps, "batch": 2, "learning_rate": 1e-3, "scale_lr": False} | {
        key: value for key, value in settings.items() if key in TrainConfig.model_fields
    }
    return Run(METHOD, DreamBoothConfig(**config), TrainConfig(**pace), DataConfig(images="unused", flip=0.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def learn(base, the_run, examples=None, **more):
    return train(base, the_run, examples or tiny.examples(), **more)


# -- the loss ----------------------------------------------------------------------------------------------------


def official_loss(base, batch, prior, alphas_cumprod, snr_gamma=None):
    """The official script's loss for one joined batch, with the weights of its advanced version (split by halves).

    The script never weights the class by its SNR; here each half is weighted by its own timesteps.
    """
    noising = DDPMScheduler.from_config(base.scheduler_config)
    generator = seeded(3)
    draws = []
    for part in (batch, prior):
        noise = torch.randn(part.latents.shape, generator=generator)
        draws.append((noise, torch.randint(1000, (len(noise),), generator=generator)))
    latents = torch.cat((batch.latents, prior.latents))
    noise, times = (torch.cat(parts) for parts in zip(*draws, strict=True))
    ids = base.tokenizers[0](
        batch.captions + prior.captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    states = base.text_encoders[0](ids)[0]
    guess = base.unet(noising.add_noise(latents, noise, times), times, states).sample
    velocity = noising.config.prediction_type == "v_prediction"
    wanted = noising.get_velocity(latents, noise, times) if velocity else noise
    (own, other), (target, prior_target) = guess.chunk(2), wanted.chunk(2)
    errors = [F.mse_loss(*pair, reduction="none").mean((1, 2, 3)) for pair in ((own, target), (other, prior_target))]
    if snr_gamma is not None:
        alphas = noising.alphas_cumprod[times]
        snrs = (alphas / (1 - alphas)).chunk(2)
        weights = [snr.clamp(max=snr_gamma) / (snr + 1 if velocity else snr) for snr in snrs]
        errors = [error * weight for error, weight in zip(errors, weights, strict=True)]
    return [error.mean() for error in errors]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_terms_equal_the_official_scripts(prediction, gamma):
    base = tiny.sd(prediction_type=prediction)
    config = DreamBoothConfig(token="z", class_word="fox", prior="pictures", snr_gamma=gamma)
    data = LatentSet(base, tiny.examples(), resolution=16)
    with METHOD.prepare(base, config, seeded()) as trainable:
        batch = data.draw(0, 3, config.trigger, trainable.templates, seeded(1))
        prior = data.draw(1, 3, config.class_word, trainable.templates, seeded(2))
        terms = METHOD.losses(trainable, replace(batch, prior=prior), seeded(3))
        own, other = official_loss(base, batch, prior, trainable.state.process.alphas_cumprod, gamma)
    assert batch.captions == ["a photo of z fox"] * 3 and prior.captions == ["a photo of fox"] * 3
    torch.testing.assert_close(terms["denoise"], own, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["prior"], other, rtol=1e-5, atol=0)


def test_the_prior_weight_scales_the_prior_alone():
    base, data = tiny.sd(), None
    seen = {}
    for weight in (1.0, 3.0):
        config = DreamBoothConfig(token="z", class_word="fox", prior="model", prior_weight=weight)
        data = data or LatentSet(base, tiny.examples(), resolution=16)
        with METHOD.prepare(base, config, seeded()) as trainable:
            with torch.no_grad():
                for parameter in trainable.parameters.values():
                    parameter.add_(0.1)
            seen[weight] = METHOD.losses(
                trainable, data.draw(0, 2, config.trigger, trainable.templates, seeded(1)), seeded(3)
            )
    torch.testing.assert_close(seen[1.0]["denoise"], seen[3.0]["denoise"])
    torch.testing.assert_close(3 * seen[1.0]["prior"], seen[3.0]["prior"])


@pytest.mark.parametrize("form", ["lora", "full"])
@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
def test_the_cheap_prior_pulls_to_the_base_itself(form, make):
    """Its target is the base's own prediction: nothing to pull at first, the whole distance later."""
    base = make()
    config = DreamBoothConfig(token="z", class_word="fox", form=form, text_encoder=True)
    data = LatentSet(base, tiny.examples(), resolution=16)
    with METHOD.prepare(base, config, seeded()) as trainable:
        batch = data.draw(0, 2, config.trigger, trainable.templates, seeded(1))
        assert METHOD.losses(trainable, batch, seeded(3))["prior"] < 1e-10
        with torch.no_grad():
            for parameter in trainable.parameters.values():
                parameter.add_(0.05)
        moved = METHOD.losses(trainable, batch, seeded(3))["prior"]
    assert moved > 1e-4
    with METHOD.prepare(base, config, seeded()) as trainable:
        assert METHOD.losses(trainable, batch, seeded(3))["prior"] < 1e-10, "the base is as it was"


def test_a_mask_keeps_the_background_out_of_what_is_learned():
    base = tiny.sd()
    config = DreamBoothConfig(token="z", class_word="fox", prior="none", background=0.0)
    mask = Image.new("L", (20, 20), 0)
    mask.paste(255, (0, 0, 10, 20))
    pictures = [replace(example, mask_source=mask) for example in tiny.examples()]
    data = LatentSet(base, pictures, resolution=16)
    with METHOD.prepare(base, config, seeded()) as trainable:
        batch = data.draw(0, 2, config.trigger, trainable.templates, seeded(1))
        guess = METHOD.losses(trainable, batch, seeded(3))["denoise"]
        everything = METHOD.losses(trainable, replace(batch, masks=None), seeded(3))["denoise"]
    assert batch.masks is not None and batch.masks[..., :4].min() == 1 and batch.masks[..., 4:].max() == 0
    assert not torch.isclose(guess, everything)


def test_with_a_scope_of_the_world_every_second_caption_held_fast_is_an_ordinary_one():
    base = tiny.sd()
    config = DreamBoothConfig(token="z", class_word="fox", prior="model", prior_scope="world")
    data = LatentSet(base, tiny.examples(), resolution=16)
    with METHOD.prepare(base, config, seeded()) as trainable:
        for index in range(30):
            batch = data.draw(index, 3, config.trigger, trainable.templates, seeded(index))
            METHOD.losses(trainable, batch, seeded(index))
        asked = list(trainable.state.captions._known)
    assert {"a photo of z fox", "a photo of fox"} <= set(asked)
    others = set(asked) - {"a photo of z fox", "a photo of fox"}
    assert len(others) > 20 and others <= set(ordinary("world"))


@pytest.mark.parametrize(("every", "held"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_the_base_is_held_fast_on_every_so_many_th_picture(every, held, monkeypatch):
    base = tiny.sd()
    config = DreamBoothConfig(token="z", class_word="fox", prior_every=every)
    data = LatentSet(base, tiny.examples(), resolution=16)
    sizes = []
    forward = base.unet.forward
    monkeypatch.setattr(base.unet, "forward", lambda x, *a, **k: (sizes.append(len(x)), forward(x, *a, **k))[1])
    with METHOD.prepare(base, config, seeded()) as trainable:
        batch = data.draw(0, 4, config.trigger, trainable.templates, seeded(1))
        terms = METHOD.losses(trainable, batch, seeded(3))
    assert sizes == [held, 4 + held], "the base's own prediction, then both in one call"
    assert abs(terms["prior"].item()) < 1e-6, "untrained changes are the base"


@pytest.mark.parametrize("world", ["pocket", "world"])
def test_ordinary_captions_are_plain_and_hold_no_held_out_thing(world):
    captions = ordinary(world)
    assert len(set(captions)) == len(captions) > 100
    words = {word.strip(",.") for caption in captions for word in caption.split()}
    assert not words & set(HELD_OUT) and "{}" not in " ".join(captions)


# -- what is trained ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", list(StableDiffusion.targets))
def test_layers_for_boxes_are_never_adapted(targets):
    base = tiny.sd()
    names = layers(base.unet, StableDiffusion.targets[targets])
    assert names and not any(part in name.split(".") for name in names for part in BOXES)
    assert any("fuser" in name for name, _ in base.unet.named_modules())


def test_full_training_leaves_layers_for_boxes_and_the_word_table_alone():
    base = tiny.sd()
    concept = learn(base, run(form="full", text_encoder=True, learning_rate=1e-2))
    assert not any(part in key for key in concept.changes for part in (*BOXES, "token_embedding"))
    trained = {key.partition(".")[0] for key in concept.changes}
    assert trained == {"unet", "text_encoder"}
    assert all(
        isinstance(change, Difference) and change.difference.dtype == torch.float16
        for change in concept.changes.values()
    )


def sd2():
    """Stable Diffusion 2.x in small: another width of the text, v-prediction."""
    return tiny.sd(dim=1024, prediction_type="v_prediction")


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("make", [tiny.sd, sd2, tiny.sdxl])
def test_a_low_rank_concept_gives_the_same_latents_as_the_training_it_comes_from(dora, make):
    base = make()
    the_run = run(dora=dora, alpha=2.0, rank=3, text_encoder=True, targets="all", prior="model")
    request = Request(prompt="a z fox", steps=2, seed=4, scheduler="ddim")
    with METHOD.prepare(base, the_run.config, seeded()) as trainable:
        with torch.no_grad():
            for index, parameter in enumerate(trainable.parameters.values()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(index)))
        during = generate(trainable.components, request).latents
        concept = METHOD.export(trainable)
    assert all(isinstance(change, LowRank) for change in concept.changes.values())
    use = request.model_copy(update={"concepts": (ConceptUse(source="c"),)})
    after = generate(base, use, concepts={"c": concept}).latents
    torch.testing.assert_close(during, after, atol=1e-4, rtol=0)
    assert not torch.allclose(after, generate(base, request).latents, atol=1e-3)


@pytest.mark.parametrize("dora", [False, True])
def test_plain_diffusers_loads_the_file_with_its_true_strength(tmp_path, dora):
    """Alpha is not the rank here: without the header's metadata diffusers would apply another strength."""
    base = tiny.sd()
    # transformers' loader drops the magnitudes of a text encoder, so DoRA is compared on the UNet.
    the_run = run(steps=4, rank=2, alpha=6.0, dora=dora, text_encoder=not dora, learning_rate=2e-2)
    concept = learn(base, the_run)
    path = concept.save(tmp_path / "lora.safetensors")
    request = Request(prompt="a z fox", concepts=(ConceptUse(source=str(path)),), steps=3, seed=2,
                      scheduler="ddim", guidance=Guidance(scale=4.0), width=16, height=16)  # fmt: skip
    ours = generate(base, request).latents
    pipeline: StableDiffusionPipeline = tiny.sd_pipeline()
    pipeline.load_lora_weights(str(path))
    theirs = pipeline(request.prompt, num_inference_steps=3, guidance_scale=4.0, height=16, width=16,
                      generator=seeded(2), output_type="latent").images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    plain = generate(base, request.model_copy(update={"concepts": ()})).latents
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_plain_diffusers_loads_weights_and_word_of_a_pivotal_concept(tmp_path):
    base = tiny.sd()
    concept = learn(base, run(steps=4, token="<rex>", pivotal=True, vectors=2, learning_rate=2e-2))
    path = concept.save(tmp_path / "rex.safetensors")
    loaded = Concept.load(path)
    assert torch.equal(loaded.rows[0], concept.rows[0]) and loaded.card.vectors == 2
    request = Request(prompt="a <rex> here", concepts=(ConceptUse(source=str(path)),), steps=3, seed=2,
                      scheduler="ddim", guidance=Guidance(scale=4.0), width=16, height=16)  # fmt: skip
    ours = generate(base, request).latents
    pipeline: StableDiffusionPipeline = tiny.sd_pipeline()
    pipeline.load_lora_weights(str(path))
    pipeline.load_textual_inversion({"<rex>": loaded.rows[0]})
    theirs = pipeline(request.prompt, num_inference_steps=3, guidance_scale=4.0, height=16, width=16,
                      generator=seeded(2), output_type="latent").images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_plain_sdxl_loads_the_file(tmp_path):
    pipeline = tiny.sdxl_with_real_blocks()
    base = tiny.frozen(from_pipeline(pipeline, "tiny-xl"))
    path = learn(base, run(steps=3, learning_rate=2e-2, text_encoder=True)).save(tmp_path / "xl.safetensors")
    request = Request(prompt="a z fox", concepts=(ConceptUse(source=str(path)),), steps=2, seed=2,
                      scheduler="ddim", guidance=Guidance(scale=4.0), width=16, height=16)  # fmt: skip
    ours = generate(base, request).latents
    pipeline.load_lora_weights(str(path))
    theirs = pipeline(request.prompt, num_inference_steps=2, guidance_scale=4.0, height=16, width=16,
                      generator=seeded(2), output_type="latent").images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_full_concept_is_the_difference_and_its_strength_a_straight_line():
    base = tiny.sd()
    concept = learn(base, run(form="full", learning_rate=1e-3))
    key = next(key for key in concept.changes if key.endswith("to_k.weight"))
    name = key.removeprefix("unet.")
    before = base.unet.get_parameter(name).clone()
    for strength in (0.0, 0.5, 1.0):
        with concept.attach(base, strength):
            expected = before + strength * concept.changes[key].difference.float()
            assert torch.equal(base.unet.get_parameter(name), expected)
    assert torch.equal(base.unet.get_parameter(name), before)


# -- peft's traces ------------------------------------------------------------------------------------------------


def test_injected_layers_leave_nothing_behind_and_keep_what_transformers_installed():
    """transformers installs hooks at the first forward and marks that; losing the mark would install them twice."""
    base = tiny.sdxl()
    encoder = base.text_encoders[0]
    ids = base.tokenizers[0](["a fox"], padding="max_length", return_tensors="pt").input_ids
    names = layers(encoder, ("q_proj", "v_proj"))
    state = torch.get_rng_state()
    with low_rank("text_encoder", encoder, names, LowRankConfig(), seeded()) as trained:
        inside = encoder(ids, output_hidden_states=True).hidden_states  # the very first forward
        with trained.off():
            assert not any("lora" in name for name, _ in encoder.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    outside = encoder(ids, output_hidden_states=True).hidden_states
    assert len(inside) == len(outside)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    assert not any("peft" in name for name in vars(encoder))


def test_other_trainable_parameters_stay_trainable():
    base = tiny.sd()
    concept = learn(base, run(token="<rex>", pivotal=True, text_encoder=True, learning_rate=1e-2))
    start = base.text_encoders[0].get_input_embeddings().weight[base.tokenizers[0]("fox").input_ids[1]]
    assert (concept.rows[0][0] - start).norm() > 1e-3


def test_whole_weights_must_be_float32():
    base = tiny.sd()
    torch.nn.Module.to(base.unet, torch.bfloat16)
    with pytest.raises(ConfigError, match="float32 only"), whole("unet", base.unet, ["conv_in.weight"]):
        pass
    with pytest.raises(ConfigError, match="no such weights"), whole("unet", base.unet, []):
        pass
    with pytest.raises(ConfigError, match="no layer"), low_rank("unet", base.unet, [], LowRankConfig(), seeded()):
        pass


def test_what_is_trained_beside_a_narrow_base_is_float32():
    base = tiny.sd()
    torch.nn.Module.to(base.unet, torch.bfloat16)
    with METHOD.prepare(base, DreamBoothConfig(token="z", class_word="fox", dora=True), seeded()) as trainable:
        assert {parameter.dtype for parameter in trainable.parameters.values()} == {torch.float32}
        data = LatentSet(base, tiny.examples(), resolution=16)
        batch = data.draw(0, 2, "z fox", trainable.templates, seeded(1))
        torch.stack(list(METHOD.losses(trainable, batch, seeded(2)).values())).sum().backward()


def test_class_pictures_are_the_same_whatever_the_seed_on_parts_put_together_in_memory(tmp_path):
    for seed in (0, 1):
        own = {"prior": "pictures", "num_class_images": 2, "seed": seed}
        learn(tiny.sd(), run(steps=1, **own), class_folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
