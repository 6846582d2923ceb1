"""Laws every method obeys; a new one is under them by being in `trainers.methods()`."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import ImageOps

from pipelines.concepts.concept import Concept
from pipelines.errors import Cancelled, ConfigError
from pipelines.events import Note, Preview, StepDone
from pipelines.generation import generate
from pipelines.gligen.layers import GatedLayers, with_adapter
from pipelines.gligen.tokens import grounding_input, has_grounding
from pipelines.models.components import CONCAT
from pipelines.models.inpainting_unet import has_inpainting_unet, inpainting_components
from pipelines.request.request import Box, ConceptUse, Request
from tests import tiny
from trainers.data.batches import LatentSet
from trainers.loop.train import train
from trainers.losses import conditioning, predicted, uncropped
from trainers.methods import methods
from trainers.run import Run
from trainers.settings import DataConfig, Destination, TrainConfig

METHODS = methods()
SETTINGS = {
    "p-plus": {"token": "<thing>", "init": "fox", "vectors": 2},
    "dreambooth": {"token": "<thing>", "class_word": "fox", "pivotal": True, "text_encoder": True},
    "custom-diffusion": {"token": "<thing>", "class_word": "fox"},
    "reversion": {"token": "<thing>", "init": "fox", "left": "fox", "right": "cat", "lora": True},
    "task-word": {"token": "<thing>", "init": "fox", "vectors": 2},
    "grounding": {"gate": 0.3, "half": False, "mirror": True},
}
"""Settings that reach more of a method than the values it is offered with."""
CHANCE = 5


def seeded():
    return torch.Generator().manual_seed(CHANCE)


def tensors_of(learned):
    """Return what a training gave, as tensors by name."""
    if isinstance(learned, Concept):
        return learned.tensors()
    return learned.tensors if isinstance(learned, GatedLayers) else learned.weights


def equal(one, other):
    """Return whether two trainings learned the very same."""
    a, b = tensors_of(one), tensors_of(other)
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def examples(count=3):
    """Pictures that every method can learn from: each with a box in it and a picture after a change."""
    box = (Box(phrase="fox", box=(0.1, 0.2, 0.6, 0.7)),)
    return [replace(one, boxes=box, after_source=ImageOps.invert(one.picture)) for one in tiny.examples(count)]


def drawn(method, trainable, the_run, base, index=0):
    """Return the batch of an index, as the loop gives it."""
    generator = torch.Generator().manual_seed(index)
    if trainable.batches is None:
        data = LatentSet(base, examples(), resolution=16)
        return data.draw(index, 2, the_run.config.trigger, trainable.templates, generator)
    given = trainable.completed(examples(), the_run.data, 0)
    return trainable.batches(given, the_run.train, the_run.data, lambda: 0.0)(index, generator)


BASES = {"sd": tiny.sd, "sdxl": tiny.sdxl, "inpainting": tiny.sd_inpaint}

CONCEPTS = [name for name, method in METHODS.items() if method.offers[0].words]
"""Methods that learn a word."""
OF = {"grounding": ("sd",), "incontext": ("sd",), "task-word": ("inpainting",)}
"""Bases of methods that know no others, or share with one above all that differs between them."""
PAIRS = [(name, base) for name in METHODS for base in OF.get(name, ("sd", "sdxl"))]


@pytest.fixture(params=PAIRS, ids=["-".join(pair) for pair in PAIRS])
def pair(request):
    return request.param


@pytest.fixture
def method(pair):
    return METHODS[pair[0]]


@pytest.fixture
def base(pair):
    return BASES[pair[1]]()


def of(names):
    """Let a law hold for some methods."""
    return pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[0] in names], ids="-".join)


of_concepts = of(CONCEPTS)
of_prompts = of([name for name in CONCEPTS if name != "task-word"])
"""Concepts that are called in prompts of pictures, and learned from pictures with captions."""


def run(method, **pace):
    word = {"token": "<thing>"} if "token" in method.Settings.model_fields else {}
    config = method.Settings(**method.offers[0].values | word | SETTINGS.get(method.name, {}))
    pace = {"steps": 3, "batch": 2, "learning_rate": 1e-2, "scale_lr": False} | pace
    return Run(method, config, TrainConfig(**pace), DataConfig(images="unused", resolution=16))


def test_only_declared_parameters_get_gradients(method, base):
    the_run = run(method)
    with method.prepare(base, the_run.config, seeded()) as trainable:
        parameters = list(trainable.parameters.values())
        optimizer = torch.optim.SGD(parameters, 1.0)
        for _ in range(2):  # what starts as zero beside something lets no gradient through at first
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(0)
            batch = drawn(method, trainable, the_run, base)
            torch.stack(list(method.losses(trainable, batch, generator).values())).sum().backward()
            optimizer.step()
        idle = [n for n, p in trainable.parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
        # SDXL reads the last but one layer of its text encoders; the last one of the first serves nothing.
        assert not [name for name in idle if base.family.name != "sdxl" or "text_encoder.encoder.layers.1" not in name]
        declared = {id(parameter) for parameter in parameters}
        others = [p for module in base.modules() for p in module.parameters() if id(p) not in declared]
        assert all(parameter.grad is None for parameter in others)


def test_the_base_is_bit_equal_afterwards_also_after_an_error(method, base):
    before = tiny.snapshot(base)
    words = [len(tokenizer) for tokenizer in base.tokenizers]
    train(base, run(method), examples())
    assert tiny.same(before, base)
    with pytest.raises(RuntimeError, match="on purpose"), method.prepare(base, run(method).config, seeded()):
        raise RuntimeError("on purpose")
    assert tiny.same(before, base)
    assert [len(tokenizer) for tokenizer in base.tokenizers] == words


def test_with_batch_and_noise_fixed_the_loss_falls(method, base):
    the_run = run(method)
    with method.prepare(base, the_run.config, seeded()) as trainable:
        batch = drawn(method, trainable, the_run, base)
        optimizer = torch.optim.AdamW(list(trainable.parameters.values()), 1e-2, weight_decay=0.0)
        losses = []
        for _ in range(20):
            generator = torch.Generator().manual_seed(0)
            loss = torch.stack(list(method.losses(trainable, batch, generator).values())).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_concept(method, base):
    first, again, other = (train(base, run(method, seed=seed), examples()) for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)


@of_prompts
def test_saved_loaded_and_attached_equals_the_trained_state(method, base, tmp_path):
    the_run = run(method)
    concept = train(base, the_run, examples())
    loaded = Concept.load(concept.save(tmp_path / "c.safetensors"))
    assert loaded.card.model_copy(update={"created": ""}) == concept.card
    assert equal(concept, loaded)
    request = Request(prompt="a <thing>", concepts=(ConceptUse(source="x"),), steps=2)
    pictures = [generate(base, request, concepts={"x": one}).latents for one in (concept, loaded)]
    assert torch.equal(*pictures)


def test_cancelling_leaves_the_base_clean_and_the_state_resumable(method, base, tmp_path):
    before = tiny.snapshot(base)
    steps = []
    whole = train(base, run(method, steps=4), examples())
    asked = iter([False, False, True])
    state = tmp_path / "state.pt"
    with pytest.raises(Cancelled):
        train(base, run(method, steps=4), examples(), keep=state, should_stop=lambda: next(asked))
    assert tiny.same(before, base)
    resumed = train(base, run(method, steps=4), examples(), keep=state, on_event=steps.append)
    assert any(isinstance(event, Note) and "after step 2" in event.text for event in steps)
    assert equal(whole, resumed)


def test_a_changed_configuration_is_not_resumed(method, base, tmp_path):
    state = tmp_path / "state.pt"
    train(base, run(method, steps=2), examples(), keep=state)
    with pytest.raises(ConfigError, match="learning_rate"):
        train(base, run(method, steps=4, learning_rate=2e-2), examples(), keep=state)


def test_other_pictures_or_another_base_are_not_resumed(method, base, tmp_path):
    state = tmp_path / "state.pt"
    train(base, run(method, steps=2), examples(), keep=state)
    with pytest.raises(ConfigError, match="pictures"):
        train(base, run(method, steps=4), examples(2), keep=state)
    with torch.no_grad():
        base.vae.encoder.conv_in.weight.mul_(2)
    with pytest.raises(ConfigError, match="base"):
        train(base, run(method, steps=4), examples(), keep=state)


def test_fewer_steps_than_are_done_are_refused(method, base, tmp_path):
    state = tmp_path / "state.pt"
    train(base, run(method, steps=4), examples(), keep=state)
    with pytest.raises(ConfigError, match="4 steps are done already"):
        train(base, run(method, steps=2), examples(), keep=state)


@of_prompts
def test_captions_without_the_token_are_said_to_be_left_out(method, base):
    events = []
    pictures = [replace(example, captions=("just a picture",)) for example in examples()]
    train(base, run(method, steps=1), pictures, on_event=events.append)
    said = any(isinstance(event, Note) and "3 captions have no <thing>" in event.text for event in events)
    assert said == bool(run(method).config.spoken)


def test_a_loss_that_is_no_number_stops_with_its_cause(method, base):
    with torch.no_grad():
        base.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"denoise.*stopped being a number"):
        train(base, run(method), examples())


def test_previews_show_what_is_learned_without_disturbing_the_training(method, base):
    events = []
    the_run = run(method, preview_every=2)
    shown = train(base, the_run, examples(), on_event=events.append)
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.step for preview in previews] == [2]
    assert the_run.config.spoken in previews[0].caption and "preview" not in previews[0].caption
    plain = train(base, run(method), examples())
    assert equal(shown, plain)


def test_the_last_step_is_always_reported(method, base):
    events = []
    train(base, run(method), examples(), on_event=events.append)
    assert [event.step for event in events if isinstance(event, StepDone)] == [3]


@of_concepts
def test_the_recipe_on_the_card_rebuilds_the_configuration(method, base):
    the_run = run(method)
    recipe = json.loads(train(base, the_run, examples()).card.model_dump_json())["recipe"]
    assert method.Settings(**{k: v for k, v in recipe.items() if k in method.Settings.model_fields}) == the_run.config
    assert TrainConfig(**{k: v for k, v in recipe.items() if k in TrainConfig.model_fields}) == the_run.train
    assert "images" not in recipe


@of_prompts
def test_candidates_are_those_of_shorter_runs_and_change_nothing(method, base):
    kept: dict[int, Concept] = {}
    the_run = run(method, candidates=2, ema=0.5)
    whole = train(base, the_run, examples(), offer=lambda step, one: kept.update({step: one}))
    assert list(kept) == [2, 3] and equal(kept[3], whole) and not equal(kept[2], whole)
    assert equal(whole, train(base, run(method, ema=0.5), examples()))
    assert equal(kept[2], train(base, run(method, ema=0.5, steps=2), examples()))
    assert kept[2].card.base_fingerprint == base.fingerprint() and kept[2].card.recipe["steps"] == 3


def prediction(components, trigger):
    """The UNet's prediction for a caption, from fixed latents, noise and timestep; with a box or a mask."""
    generator = torch.Generator().manual_seed(3)
    size = int(components.unet.config["sample_size"])
    clean, noise = (torch.randn(2, 4, size, size, generator=generator) for _ in range(2))
    pixels = (size * components.factor,) * 2
    captions = [f"a photo of {trigger} on a table", "a cat"]
    with torch.no_grad():
        arguments = conditioning(components, captions, uncropped(2, pixels), pixels)
        if has_inpainting_unet(components):
            arguments[CONCAT] = torch.randn(2, 5, size, size, generator=generator)
        elif not trigger and has_grounding(components.unet):
            told = torch.randn(2, 1, int(components.unet.config["cross_attention_dim"]), generator=generator)
            boxes = torch.tensor([0.1, 0.2, 0.6, 0.7]).expand(2, 1, 4)
            arguments["cross_attention_kwargs"] = grounding_input(told, boxes, torch.ones(2, 1))
        process = components.family.process(components)
        return predicted(components, clean, process.at(torch.tensor([300, 700])), noise, process, arguments)


def moved(trainable):
    """Change all that is trained by a draw, so that every part of it shows in a prediction.

    Whole weights move less: their differences are kept in float16, with an error of 1/4096 of the change.
    """
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in trainable.parameters.items():
            parameter.add_(
                (0.005 if name.endswith(".weight") else 0.1) * torch.randn(parameter.shape, generator=generator)
            )


@contextmanager
def read_back(learned, base, folder):
    """Give the base with what was learned, from its file."""
    path = learned.save(folder / ("model" if hasattr(learned, "weights") else "c.safetensors"))
    if isinstance(learned, Concept):
        with Concept.load(path).attach(base) as taught:
            yield taught
    elif isinstance(learned, GatedLayers):
        with with_adapter(base, path) as gated:
            yield gated
    else:
        yield inpainting_components(base, path)


def test_what_is_trained_predicts_what_is_exported_and_what_is_loaded(method, base, tmp_path):
    config = run(method).config
    untaught = prediction(base, config.trigger)
    with method.prepare(base, config, seeded()) as trainable:
        moved(trainable)
        wanted = prediction(trainable.components, config.trigger)
        learned = method.export(trainable)
    assert (wanted - untaught).abs().max() > 1e-3
    for taught in (learned.attach(base), read_back(learned, base, tmp_path)):
        with taught as components:
            assert (prediction(components, config.trigger) - wanted).abs().max() < 1e-5
    assert torch.equal(prediction(base, config.trigger), untaught)


def test_shared_settings_that_mean_nothing_are_refused(method):
    assert run(method).config.triggers or "candidates" in method.Settings.unused, "only concepts are measured"
    for name in method.Settings.unused:
        kind = next(one for one in (TrainConfig, DataConfig, Destination) if name in one.model_fields)
        whole = {"images": "unused"} if kind is DataConfig else {}
        given = kind.model_validate(whole | {name: kind.model_fields[name].default})
        parts = [given if isinstance(given, one) else one() for one in (TrainConfig, DataConfig, Destination)]
        with pytest.raises(ConfigError, match=f"{method.name} has no use for {name}"):
            Run(method, run(method).config, *parts)
