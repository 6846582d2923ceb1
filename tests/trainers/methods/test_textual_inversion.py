"""Textual Inversion follows the official diffusers script's mathematics exactly."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch.nn import functional as F

from pipelines.events import StepDone
from pipelines.generation import generate
from pipelines.models.components import from_pipeline
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny
from trainers.data.batches import prompt_templates
from trainers.loop.loop import step_generator
from trainers.loop.train import train
from trainers.methods.textual_inversion import TextualInversion, TextualInversionConfig
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig

STEPS = 5


def run(token="<my-fox>", init="fox", vectors=1, **pace):
    data = DataConfig(images="unused", flip=0.5)
    settings = {"steps": STEPS, "batch": 2, "learning_rate": 5e-3, "scale_lr": False} | pace
    return Run(
        TextualInversion(),
        TextualInversionConfig(token=token, init=init, vectors=vectors),
        TrainConfig(**settings),
        data,
    )


def learn(components, the_run):
    losses = []
    concept = train(
        components,
        the_run,
        tiny.examples(),
        on_event=lambda e: losses.append(e.terms) if isinstance(e, StepDone) else None,
    )
    return concept, losses


def drawn(the_run, pixels, step, generator):
    """The draws of a step in our order: pictures by (seed, epoch), then mirroring and templates."""
    batch, indices = the_run.train.batch, []
    for place in range(step * batch, (step + 1) * batch):
        order = torch.Generator().manual_seed(the_run.train.seed * 9_176_263 + place // len(pixels))
        indices.append(int(torch.randperm(len(pixels), generator=order)[place % len(pixels)]))
    flips = torch.rand(batch, generator=generator) < the_run.data.flip
    templates = prompt_templates("object")
    chosen = torch.randint(len(templates), (batch,), generator=generator).tolist()
    images = torch.stack([pixels[i].flip(-1) if flip else pixels[i] for i, flip in zip(indices, flips, strict=True)])
    return images, [templates[k] for k in chosen]


def official(pipeline, the_run):
    """The official scripts' update, transcribed: whole tables trained, old rows restored after every step.

    Everything but the draws is done the scripts' way: pictures are encoded every step, noise added by the scheduler,
    the tables resized, one AdamW over all of both. With two text encoders it is the SDXL script.
    """
    unet, vae = pipeline.unet, pipeline.vae
    toks = [t for t in (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)) if t is not None]
    texts = [t for t in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)) if t is not None]
    names = [the_run.config.token] + [f"{the_run.config.token}_{i}" for i in range(1, the_run.config.vectors)]
    for module in (unet, vae, *texts):
        module.requires_grad_(False)
    tables, ids = [], []
    for tok, text in zip(toks, texts, strict=True):
        assert tok.add_tokens(names) == len(names)
        ids = tok.convert_tokens_to_ids(names)
        text.resize_token_embeddings(len(tok), mean_resizing=False)
        table = text.get_input_embeddings().weight
        with torch.no_grad():
            table[ids] = table[tok.encode(the_run.config.init, add_special_tokens=False)[0]].clone()
        table.requires_grad_(True)
        tables.append(table)
    kept = [table.detach().clone() for table in tables]
    optimizer = torch.optim.AdamW(tables, lr=the_run.train.rate, weight_decay=the_run.train.weight_decay)
    noising = DDPMScheduler.from_config(pipeline.scheduler.config)
    side = unet.config.sample_size * 2
    pixels = [to_tensor(e.picture.resize((side, side), 3)) for e in tiny.examples()]
    batch, losses = the_run.train.batch, []
    for step in range(the_run.train.steps):
        generator = step_generator(the_run.train.seed, step)
        images, templates = drawn(the_run, pixels, step, generator)
        posterior = vae.encode(images).latent_dist
        spread = torch.randn(posterior.mean.shape, generator=generator)
        latents = (posterior.mean + posterior.std * spread) * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(noising.config.num_train_timesteps, (batch,), generator=generator)
        captions = [wording.format(" ".join(names)) for wording in templates]
        outs = []
        for tok, text in zip(toks, texts, strict=True):
            tokens = tok(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
            outs.append(text(tokens, output_hidden_states=True))
        if len(texts) == 1:
            conditions = {"encoder_hidden_states": outs[0][0]}
        else:
            original = torch.tensor([[e.picture.height, e.picture.width] for e in tiny.examples()[:1]]).expand(batch, 2)
            sizes = torch.cat([original, torch.tensor([[0, 0, side, side]]).expand(batch, 4)], dim=1).float()
            added = {"text_embeds": outs[1][0], "time_ids": sizes}
            both = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
            conditions = {"encoder_hidden_states": both, "added_cond_kwargs": added}
        guess = unet(noising.add_noise(latents, noise, timesteps), timesteps, **conditions).sample
        target = (
            noise if noising.config.prediction_type == "epsilon" else noising.get_velocity(latents, noise, timesteps)
        )
        loss = F.mse_loss(guess.float(), target.float(), reduction="mean")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for table, before in zip(tables, kept, strict=True):
                old = torch.ones(len(table), dtype=torch.bool)
                old[min(ids) : max(ids) + 1] = False
                table[old] = before[old]
        losses.append(float(loss.detach()))
    return [table.detach()[ids] for table in tables], losses


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_losses_and_rows_equal_the_official_update(monkeypatch, prediction, vectors):
    monkeypatch.setattr("trainers.loop.train.REPORT", 1)
    the_run = run(vectors=vectors)
    concept, losses = learn(tiny.sd(prediction_type=prediction), the_run)
    rows, expected = official(tiny.sd_pipeline(prediction_type=prediction), the_run)
    assert [terms["denoise"] for terms in losses] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(concept.rows[0], rows[0], atol=1e-6, rtol=1e-5)
    start = tiny.sd().text_encoders[0].get_input_embeddings().weight[tiny.tokenizer().convert_tokens_to_ids("fox</w>")]
    assert (concept.rows[0] - start).norm() > 1e-2


def test_loss_displacement_and_norm_are_reported(monkeypatch):
    for module in ("trainers.loop.train", "trainers.loop.previews"):
        monkeypatch.setattr(f"{module}.REPORT", 1)
    _, reports = learn(tiny.sd(), run())
    assert len(reports) == STEPS
    assert all({"denoise", "displacement", "norm"} <= set(report) for report in reports)
    assert reports[-1]["displacement"] > reports[0]["displacement"] > 0


@pytest.mark.parametrize("vectors", [1, 2])
def test_sdxl_equals_the_official_update_in_both_encoders(monkeypatch, vectors):
    monkeypatch.setattr("trainers.loop.train.REPORT", 1)
    the_run = run(vectors=vectors, steps=4)
    concept, losses = learn(tiny.sdxl(), the_run)
    rows, expected = official(tiny.sdxl_pipeline(), the_run)
    assert [terms["denoise"] for terms in losses] == pytest.approx(expected, rel=1e-5)
    assert [tuple(part.shape) for part in concept.rows] == [(vectors, 32), (vectors, 48)]
    for ours, theirs in zip(concept.rows, rows, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert concept.card.family == "sdxl"


@pytest.mark.parametrize(("token", "vectors"), [("<my-fox>", 1), ("<my-fox>", 3), ("<R>", 1), ("sks", 2)])
def test_the_saved_concept_gives_the_same_picture_in_plain_diffusers(tmp_path, token, vectors):
    base = tiny.sd()
    concept, _ = learn(base, run(token=token, vectors=vectors))
    path = concept.save(tmp_path / "concept.safetensors")
    request = Request(
        prompt=f"a photo of {token} on a table",
        concepts=(ConceptUse(source=str(path)),),
        steps=3,
        seed=2,
        scheduler="ddim",
        guidance=Guidance(scale=4.0),
        width=16,
        height=16,
    )
    ours = generate(base, request).latents
    pipeline: StableDiffusionPipeline = tiny.sd_pipeline()
    pipeline.load_textual_inversion(str(path))
    theirs = pipeline(
        request.prompt,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
        width=16,
        height=16,
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    plain = generate(base, request.model_copy(update={"concepts": (), "prompt": "a photo of fox on a table"})).latents
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_stable_diffusion_2_with_its_own_padding_equals_the_official_update(monkeypatch):
    monkeypatch.setattr("trainers.loop.train.REPORT", 1)
    settings = {"dim": 1024, "prediction_type": "v_prediction"}
    the_run = run(steps=3)
    concept, losses = learn(tiny.frozen(from_pipeline(tiny.sd_pipeline(**settings), "tiny-2")), the_run)
    rows, expected = official(tiny.sd_pipeline(**settings), the_run)
    assert concept.card.family == "sd2"
    assert [terms["denoise"] for terms in losses] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(concept.rows[0], rows[0], atol=1e-6, rtol=1e-5)


def test_upper_case_words_of_several_vectors_work_here(tmp_path):
    base = tiny.sd()
    concept, _ = learn(base, run(token="<R>", vectors=3))
    with concept.attach(base) as taught:
        from trainers.losses import caption_ids

        ids = caption_ids(taught, 0, ["a <R> b"])[0].tolist()
        fox = caption_ids(taught, 0, ["a <r> b"])[0].tolist()
    first = len(base.tokenizers[0])
    assert ids[2:5] == [first, first + 1, first + 2]
    assert first not in fox


def test_the_pocket_recipe_applies_only_where_nothing_was_set():
    method, data = TextualInversion(), DataConfig(images="unused")
    config = TextualInversionConfig(token="<x>", init="fox")
    chosen = Run(method, config, TrainConfig(steps=7), data).with_recipe("pocket")
    assert chosen.train.steps == 7
    assert chosen.train.learning_rate == method.recipe("pocket", config)["learning_rate"]
    assert chosen.data.flip == 0.0
    plain = Run(method, config, TrainConfig(), data)
    assert plain.with_recipe("sd1") == plain


def test_the_defaults_are_the_official_recipe():
    pace = TrainConfig()
    assert (pace.steps, pace.batch * pace.accumulate, pace.weight_decay) == (3000, 4, 1e-2)
    assert pace.rate == pytest.approx(2e-3)


def test_components_of_a_pipeline_are_shared():
    pipeline = tiny.sd_pipeline()
    assert from_pipeline(pipeline, "x").unet is pipeline.unet


def test_random_module_state_is_not_used():
    base = tiny.sd()
    state, before = random.getstate(), torch.get_rng_state()
    learn(base, run(steps=2))
    assert random.getstate() == state
    assert torch.equal(before, torch.get_rng_state())
