"""Concept Sliders: the targets of eq. 8, both signs in one batch, pictures that the base draws, signed strengths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError, ConfigError, DataError
from pipelines.events import Note
from pipelines.generation import generate
from pipelines.request.request import ConceptUse, Request
from tests import tiny
from trainers.data.batches import LatentSet, read_examples
from trainers.loop.train import train
from trainers.losses import conditioning, drawn, predicted
from trainers.methods import methods
from trainers.methods.slider import Slider, SliderConfig, _moved
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig

METHOD = Slider()
ENDS = "a small fox -> a large fox"


def config_of(**settings):
    return SliderConfig(**{"token": "larger", "between": ENDS} | settings)


def run_of(steps=3, images=None, **settings):
    pace = {"steps": steps, "batch": 2, "learning_rate": 1e-2, "scale_lr": False}
    own = {name: settings.pop(name) for name in list(settings) if name in TrainConfig.model_fields}
    return Run(METHOD, config_of(**settings), TrainConfig(**pace | own), DataConfig(images=images, flip=0.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def drawn_batch(base, caption="a fox{}"):
    examples = tiny.examples(2)
    return LatentSet(base, examples, resolution=16).draw(0, 2, "", (caption.replace("{}", ""),), seeded())


@torch.no_grad()
def base_predicts(base, batch, captions, noise, t):
    told = conditioning(base, captions, batch.frames, (16, 16))
    return predicted(base, batch.latents, t, noise, base.family.process(base), told)


def moved(trainable):
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(4)))


def test_targets_are_the_base_moved_to_either_end(base):
    config = config_of(about=("a fox",), push=3.0)
    batch = drawn_batch(base)
    with METHOD.prepare(base, config, seeded()) as trainable:
        moved(trainable)  # the targets must be those of the base, whatever was learned
        noise, t = drawn(batch, config, trainable.state.process, seeded(5))
        targets = _moved(trainable, batch, noise, t, seeded(6))
    plain, less, more = (
        base_predicts(base, batch, [text] * 2, noise, t) for text in ("a fox", "a small fox", "a large fox")
    )
    wanted = torch.cat((plain + 3 * (more - less), plain - 3 * (more - less)))
    assert torch.allclose(targets, wanted, atol=1e-5) and not torch.allclose(more, less, atol=1e-4)


def test_one_batch_is_learned_at_both_signs_and_the_strength_goes_below_zero(base):
    batch = drawn_batch(base)
    noise, t = torch.randn(batch.latents.shape, generator=seeded(3)), torch.tensor([300, 300])
    same = torch.cat((batch.latents[:1],) * 2), torch.cat((noise[:1],) * 2)
    with METHOD.prepare(base, config_of(), seeded()) as trainable:
        moved(trainable)
        told = conditioning(base, ["a fox"] * 2, batch.frames, (16, 16))
        process = trainable.state.process
        both = predicted(base, same[0], t, same[1], process, told).detach()
        with torch.no_grad():
            plus = predicted(base, same[0], t, same[1], process, told)
        concept = METHOD.export(trainable)
    for place, strength in ((0, 1.0), (1, -1.0)):
        with concept.attach(base, strength), torch.no_grad():
            alone = predicted(base, same[0], t, same[1], process, told)
        assert torch.allclose(both[place], alone[place], atol=1e-5)
    assert torch.allclose(plus[0], plus[1]) and not torch.allclose(both[0], both[1], atol=1e-3)
    assert concept.card.kind == "slider" and concept.card.vectors == 0


def test_between_pictures_each_end_is_denoised_at_its_sign(base, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    Image.new("RGB", (16, 16), "red").save(small / "a.png")
    the_run = run_of(between="", less_images=small, about=("a fox",), images=tmp_path)
    notes = []
    concept = train(base, the_run, tiny.examples(), on_event=notes.append)
    assert any(isinstance(one, Note) and one.text.startswith("3 pictures") for one in notes)
    # The red end is nearer at -1 than at 1, after a while.
    longer = run_of(steps=30, between="", less_images=small, about=("a fox",), images=tmp_path)
    learned = train(base, longer, tiny.examples(1))
    red = LatentSet(base, read_examples(small), resolution=16).draw(0, 1, "", ("a fox",), seeded())
    noise, t = torch.randn(red.latents.shape, generator=seeded(2)), torch.tensor([500])
    wanted = base.family.process(base).target(red.latents, noise, t)
    errors = {}
    for strength in (-1.0, 1.0):
        with learned.attach(base, strength):
            errors[strength] = float((base_predicts(base, red, ["a fox"], noise, t) - wanted).square().mean())
    assert errors[-1.0] < errors[1.0] and concept.changes


def test_what_would_act_on_one_end_alone_is_refused(base, tmp_path):
    (small := tmp_path / "small").mkdir()
    Image.new("RGB", (16, 16), "red").save(small / "a.png")
    the_run = run_of(between="", less_images=small, about=("a fox",), images=tmp_path)
    for changed, said in (
        ({"flip": 0.5}, "--flip would change"),
        ({"smaller_copies": 1}, "--smaller-copies would"),
        ({"buckets": True}, "a slider's other end"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(base, replace(the_run, data=the_run.data.model_copy(update=changed)), tiny.examples())
    masked = [replace(one, mask_source=Image.new("L", one.size)) for one in tiny.examples()]
    with pytest.raises(ConfigError, match="has a mask"):
        train(base, the_run, masked)
    Image.new("L", (16, 16), 255).save(small / "a.mask.png")
    with pytest.raises(ConfigError, match=r"a\.png has a mask"):
        train(base, the_run, tiny.examples())


def test_without_pictures_the_base_draws_them_once(base, tmp_path):
    notes = []
    the_run = run_of(pictures=4, about=("a {}",), between="a small {} -> a large {}", keep=("fox", "cat"))
    first = train(base, the_run, (), class_folder=tmp_path, on_event=notes.append)
    (folder,) = tmp_path.iterdir()
    times = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.png"))]
    again = train(base, the_run, (), class_folder=tmp_path)
    assert len(times) == 4 and times == [path.stat().st_mtime_ns for path in sorted(folder.glob("*.png"))]
    assert any(isinstance(one, Note) and "4 pictures that the base draws" in one.text for one in notes)
    a, b = first.tensors(), again.tensors()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert the_run.config.drawn_prompts == (
        "a fox", "a small fox", "a large fox", "a cat", "a small cat", "a large cat",
    )  # fmt: skip


def test_ends_are_said_of_the_thing_that_a_caption_names(base):
    config = config_of(between="a small {} -> a large {}", about=("a {}",), keep=("fox", "cat"))
    with METHOD.prepare(base, config, seeded()) as trainable:
        pairs = trainable.state.pairs
    assert pairs["a cat"] == [("a small cat", "a large cat")] and len(pairs[""]) == 2
    before = config_of(between="small fox -> large fox", keep=("old", "young"))
    with METHOD.prepare(base, before, seeded()) as trainable:
        assert trainable.state.pairs["small fox"] == [
            ("old small fox", "old large fox"),
            ("young small fox", "young large fox"),
        ]


def test_checkpointed_activations_learn_the_same(base):
    plain, spared = (train(base, run_of(gradient_checkpointing=on), tiny.examples()) for on in (False, True))
    a, b = plain.tensors(), spared.tensors()
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"between": ""}, "neither between nor less_images"),
        ({"less_images": "small"}, "not both"),
        ({"between": "a fox"}, "LESS -> MORE"),
        ({"between": "-> a fox"}, "LESS -> MORE"),
        ({"between": "a fox -> a fox"}, "a slider has two"),
        ({"between": "a {} -> two {}"}, "keep"),
        ({"dora": True}, "opposite"),
    ],
)
def test_what_makes_no_slider_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        config_of(**settings)


def test_a_method_of_pictures_says_that_they_are_missing():
    method = methods()["textual-inversion"]
    config = method.Settings(token="<x>", init="fox")
    with pytest.raises(DataError, match="requires pictures"):
        Run(method, config, TrainConfig(), DataConfig()).require_pictures()
    run_of().require_pictures()


def test_strengths_below_zero_are_for_weights_and_not_for_words(base, tmp_path):
    concept = train(base, run_of(), tiny.examples())
    path = concept.save(tmp_path / "larger.safetensors")
    loaded = Concept.load(path)
    pictures, notes = {}, []
    for strength in (-1.5, 0, 1.5):
        request = Request(prompt="a fox", concepts=(ConceptUse(source=str(path), strength=strength),), steps=2)
        pictures[strength] = generate(base, request, concepts={str(path): loaded}, on_event=notes.append).latents
    assert not torch.equal(pictures[-1.5], pictures[0]) and not torch.equal(pictures[-1.5], pictures[1.5])
    assert not [one for one in notes if isinstance(one, Note) and "larger" in one.text]  # no prompt has to say it
    word = concept.card.model_copy(update={"token": "<w>", "kind": "object", "vectors": 1})
    for strength in (-0.5, 2.5):
        with pytest.raises(ConceptError, match=r"strength .* of <w> is not between 0 and 2"):
            word.require_strength(strength)
    concept.card.require_strength(-4)
