"""ReVersion against the authors' arithmetic, on every family; what is wrong with its input is said before training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError, ConfigError, DataError
from pipelines.events import Note, StepDone
from pipelines.generation import generate
from pipelines.models.families.clip import caption_ids
from pipelines.models.noise import alphas_cumprod_of
from pipelines.request.request import ConceptUse, Request
from tests import tiny
from trainers.data.batches import Batch, Example
from trainers.loop.train import train
from trainers.losses import drawn, pixels_of, uncropped
from trainers.methods.parts.steering import bases, focal_timesteps
from trainers.methods.reversion import PAPER, ReVersion, ReVersionConfig
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig

CAPTIONS = ("a fox {} a cat", "a photo of a cat {} a fox", "a fox {} a toy")


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def named(count=3, captions=CAPTIONS):
    return [
        Example(one.name, one.picture, (captions[index % len(captions)],))
        for index, one in enumerate(tiny.examples(count))
    ]


def run(config=None, **pace):
    settings = {"steps": 3, "batch": 2, "learning_rate": 1e-2, "scale_lr": False} | pace
    return Run(ReVersion(), config or settings_of(), TrainConfig(**settings), DataConfig(images="unused"))


def settings_of(**more):
    return ReVersionConfig(**{"token": "<r>", "init": "and"} | more)


def batch_of(base, captions, generator, token="<r>"):
    channels, count = base.unet.config["in_channels"], len(captions)
    latents = torch.randn(count, channels, 8, 8, generator=generator)
    spoken = [caption.replace("{}", token) for caption in captions]
    return Batch(latents, spoken, list(range(count)), uncropped(count, (8 * base.factor,) * 2), 0, None)


# -- the losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl], ids=["sd", "sdxl"])
def test_a_step_is_the_authors_arithmetic_with_every_caption_steered(make):
    """Denoising error at focal timesteps, plus the contrastive term of each text encoder's row."""
    base, config = make(), settings_of(focal=0.7, steer=0.05, positives=3)
    words = bases(base, ())
    with ReVersion().prepare(base, config, seeded()) as trainable:
        batch = batch_of(base, CAPTIONS[:2], seeded(1))
        with torch.no_grad():
            got = ReVersion().losses(trainable, batch, seeded(9))
        generator, alphas_cumprod = seeded(9), alphas_cumprod_of(base.scheduler_config, base.device)
        noise, _ = drawn(batch, config, base.family.process(base), generator)
        timesteps = focal_timesteps(2, len(alphas_cumprod), 0.7, generator)
        level = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = level.sqrt() * batch.latents + (1 - level).sqrt() * noise
        with torch.no_grad():
            arguments = trainable.state.captions(batch.captions, batch.frames, pixels_of(base, batch.latents))
            guess = base.unet(noisy, timesteps, **arguments).sample
        assert float(got["denoise"]) == pytest.approx(float(F.mse_loss(guess, noise)), rel=1e-4)
        expected = 0.0
        for which, (basis, row) in enumerate(zip(words, trainable.state.rows, strict=True)):
            picked = [torch.randperm(len(basis.rows), generator=generator)[:3] for _ in batch.captions]
            toward = F.cosine_similarity(row.detach(), basis.rows[torch.cat(picked)]) / 0.07
            others = [i for i in caption_ids(base, which, batch.captions).flatten().tolist() if i not in basis.stops]
            others = [i for i in others if i < len(basis.table)]
            away = F.cosine_similarity(row.detach(), basis.table[others]) / 0.07
            ratio = toward.exp().sum() / (toward.exp().sum() + away.exp().sum())
            expected += 0.05 / len(words) * float(-ratio.log())
        assert float(got["steer"]) == pytest.approx(expected, rel=1e-4)


PREPOSITIONS = """aboard about above across after against along alongside amid amidst among amongst anti around astride
at atop before behind below beneath beside between beyond by down following from in including inside into near of off on
onto opposite out outside over past regarding round through throughout to toward towards under underneath up upon versus
with within"""
"""The authors' list (`templates/relation_words.py` of their repository), in its order."""


def test_a_step_is_worked_out_from_the_authors_lists_and_draws_alone():
    """Nothing of the project but the networks: word lists, draws, schedule and formulas stand here."""
    base, config = tiny.sd(), settings_of(focal=0.5, steer=0.01, positives=4)
    tokenizer = base.tokenizers[0]
    table = base.text_encoders[0].get_input_embeddings().weight.detach().clone()
    captions = ("a fox {} the cat", "the house {} a fox")
    with ReVersion().prepare(base, config, seeded()) as trainable, torch.no_grad():
        batch = batch_of(base, captions, seeded(1))
        got = ReVersion().losses(trainable, batch, seeded(9))
        row = trainable.state.rows[0].detach()
        ids = trainable.components.tokenizers[0](
            batch.captions, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        states = base.text_encoders[0](ids)[0]
        generator = seeded(9)
        noise = torch.randn(2, 4, 8, 8, generator=generator)
        torch.randint(1000, (2,), generator=generator)  # the even draw, which the focal one replaces
        density = 1 - 0.5 * torch.cos(torch.pi * torch.arange(1000, dtype=torch.float64) / 1000)
        times = torch.multinomial(density, 2, replacement=True, generator=generator)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        level = (1 - betas).cumprod(0)[times].view(-1, 1, 1, 1)
        guess = base.unet(level.sqrt() * batch.latents + (1 - level).sqrt() * noise, times, states).sample
    assert float(got["denoise"]) == pytest.approx(float(F.mse_loss(guess, noise)), rel=1e-4)
    single = [ids[0] for word in PREPOSITIONS.split() if len(ids := tokenizer(word).input_ids[1:-1]) == 1]
    assert len(single) == 13
    picked = torch.cat([torch.randperm(13, generator=generator)[:4] for _ in captions])
    things = [tokenizer(word).input_ids[1] for word in ("fox", "cat", "house", "fox")]  # not: a, the, <r>, padding
    toward, away = (
        torch.exp(F.cosine_similarity(row, table[which], dim=-1) / 0.07)
        for which in (torch.tensor(single)[picked], torch.tensor(things))
    )
    wanted = -0.01 * torch.log(toward.sum() / (toward.sum() + away.sum()))
    assert float(got["steer"]) == pytest.approx(float(wanted), rel=1e-4)


def test_switched_off_it_is_textual_inversion():
    base = tiny.sd()
    with ReVersion().prepare(base, settings_of(steer=0, focal=0), seeded()) as trainable:
        losses = ReVersion().losses(trainable, batch_of(base, CAPTIONS, seeded(1)), seeded(2))
        assert set(losses) == {"denoise"}
        assert list(trainable.parameters) == ["rows_0"]


def test_steering_reaches_the_row_and_neither_prepositions_nor_nouns():
    base = tiny.sd()
    table = base.text_encoders[0].get_input_embeddings().weight
    with ReVersion().prepare(base, settings_of(), seeded()) as trainable:
        losses = ReVersion().losses(trainable, batch_of(base, CAPTIONS, seeded(1)), seeded(2))
        losses["steer"].backward()
        assert trainable.parameters["rows_0"].grad.abs().sum() > 0
    assert table.grad is None


@pytest.mark.parametrize(("config", "term"), [({"norm_pull": 0.5}, "norm_pull"), ({"lora": True}, "keep")])
def test_extensions_are_terms_of_their_own(config, term):
    base = tiny.sd()
    batch = batch_of(base, CAPTIONS[:2], seeded(1))
    with ReVersion().prepare(base, settings_of(), seeded()) as trainable:
        assert term not in ReVersion().losses(trainable, batch, seeded(2))
    with ReVersion().prepare(base, settings_of(**config), seeded()) as trainable:
        assert term in ReVersion().losses(trainable, batch, seeded(2))


def test_the_pull_is_toward_the_length_of_ordinary_prepositions():
    base = tiny.sd()
    with ReVersion().prepare(base, settings_of(norm_pull=1.0, steer=0), seeded()) as trainable:
        usual = float(trainable.state.bases[0].rows.norm(dim=-1).median())
        with torch.no_grad():
            trainable.state.rows[0].mul_(3 * usual / trainable.state.rows[0].norm())
        loss = ReVersion().losses(trainable, batch_of(base, CAPTIONS[:1], seeded(1)), seeded(2))["norm_pull"]
        assert float(loss) == pytest.approx(4.0, rel=1e-4)  # (3 - 1)^2


def test_masks_leave_out_what_is_neither_thing():
    base = tiny.sd()
    batch = batch_of(base, CAPTIONS[:2], seeded(1))
    everything = torch.ones(2, 1, 8, 8)
    half = everything.clone()
    half[..., :4] = 0
    with ReVersion().prepare(base, settings_of(steer=0), seeded()) as trainable:
        whole, shown = [
            float(ReVersion().losses(trainable, replace(batch, masks=masks), seeded(2))["denoise"])
            for masks in (everything, half)
        ]
    assert whole != pytest.approx(shown, rel=1e-3)


# -- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl], ids=["sd", "sdxl"])
def test_a_relation_is_learned_saved_and_used_between_other_things(make, vectors, tmp_path):
    base = make()
    before = tiny.snapshot(base)
    steps = []
    concept = train(base, run(settings_of(vectors=vectors)), named(), on_event=steps.append)
    assert tiny.same(before, base), "the base is as it was"
    card = Concept.load(concept.save(tmp_path / "r.safetensors")).card
    assert (card.kind, card.method, card.vectors) == ("relation", "reversion", vectors)
    assert card.left == "fox, cat" and card.right == "cat, fox, toy"
    assert card.example == "a fox <r> a cat"
    told = next(event.terms for event in steps if isinstance(event, StepDone))
    assert {"denoise", "steer", "displacement", "norm", "prepositions"} <= set(told)
    request = Request(prompt="a toy <r> a dog", concepts=(ConceptUse(source="r"),), steps=2)
    with_it = generate(base, request, concepts={"r": concept}).latents
    without = generate(base, request.model_copy(update={"concepts": (ConceptUse(source="r", strength=0.0),)}),
                       concepts={"r": concept}).latents  # fmt: skip
    assert not torch.equal(with_it, without)


def test_names_given_once_make_the_captions():
    spoken = []
    method = ReVersion()
    losses = method.losses

    class Listening(ReVersion):
        def losses(self, trainable, batch, generator):
            spoken.extend(batch.captions)
            return losses(trainable, batch, generator)

    plain = [Example(one.name, one.picture, ()) for one in tiny.examples()]
    the_run = Run(Listening(), settings_of(left="fox", right="old toy"), run().train, DataConfig(images="unused"))
    concept = train(tiny.sd(), the_run, plain)
    assert all("fox <r> a" in one or "fox <r> an old toy" in one or "fox <r> old toy" in one for one in spoken)
    assert (concept.card.left, concept.card.right) == ("fox", "old toy")


def test_a_prompt_without_both_sides_gives_a_note():
    base = tiny.sd()
    concept = train(base, run(), named())
    for prompt, noted in (("a fox <r>", True), ("<r> a fox", True), ("a fox <r> a toy", False)):
        events = []
        request = Request(prompt=prompt, concepts=(ConceptUse(source="r"),), steps=1)
        generate(base, request, concepts={"r": concept}, on_event=events.append)
        notes = [event.text for event in events if isinstance(event, Note)]
        assert bool(notes) is noted
        assert not noted or "name one thing before it and one after it" in notes[0]


def test_the_papers_values_are_the_recipe_of_real_models():
    recipe = ReVersion().recipe("sd1", settings_of())
    assert recipe == PAPER
    config = settings_of()
    assert (config.steer, config.temperature, config.focal, config.positives) == (0.01, 0.07, 0.5, 4)
    assert recipe["steps"] == 3000 and recipe["flip"] == 0, "mirroring would turn left into right"


# -- bad input --------------------------------------------------------------------------------------------------


def refused(examples, config=None):
    base = tiny.sd()
    before = tiny.snapshot(base)
    with pytest.raises(DataError) as error:
        train(base, run(config), examples)
    assert tiny.same(before, base)
    return str(error.value)


@pytest.mark.parametrize("caption", ["a fox {}", "{} a fox", "a photo of {}", "{}"])
def test_a_caption_with_fewer_than_two_things_is_refused(caption):
    said = refused(named(captions=(CAPTIONS[0], caption)))
    assert caption.replace("{}", "")[:5] in said and "Name one before the {} and one after it" in said


def test_pictures_without_names_are_refused_with_the_ways_to_give_them():
    said = refused([Example(one.name, one.picture, ()) for one in tiny.examples()])
    assert "--left" in said and "--right" in said and "pairs.json" in said


@pytest.mark.parametrize("given", [{"left": "cat"}, {"right": "box"}])
def test_one_name_alone_is_refused(given):
    assert "Give both --left and --right" in refused(named(), settings_of(**given))


def test_a_positive_word_of_several_tokens_is_refused():
    with pytest.raises(ConfigError, match="tokens for"):
        train(tiny.sd(), run(settings_of(basis=("and", "upside-down"))), named())


def test_an_initial_word_of_several_tokens_is_refused():
    with pytest.raises(ConceptError):
        train(tiny.sd(), run(settings_of(init="upside-down")), named())
