"""Several subjects learned in one run: each picture under its own word, each class kept, one set of weights for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pipelines.concepts.concept import Concept, attached
from pipelines.concepts.formats.delta_tensors import same
from pipelines.concepts.model_export import export_model
from pipelines.concepts.weight_deltas import Difference, LowRank
from pipelines.errors import Cancelled, ConceptError, ConfigError, DataError
from pipelines.events import StepDone
from pipelines.generation import generate
from pipelines.request.request import ConceptUse, Request
from tests import tiny
from trainers.data.batches import LatentSet
from trainers.loop.train import train
from trainers.methods import methods
from trainers.methods.custom_diffusion import CustomDiffusionConfig
from trainers.methods.dreambooth import DreamBoothConfig
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig

FORMS = {
    "pivotal": ("dreambooth", {"pivotal": True}, ("<a>", "<b>")),
    "identifiers": ("dreambooth", {}, ("z", "x")),
    "full": ("dreambooth", {"form": "full", "pivotal": True}, ("<a>", "<b>")),
    "custom-diffusion": ("custom-diffusion", {}, ("<a>", "<b>")),
}


def config(form="pivotal", **settings):
    name, own, (first, second) = FORMS[form]
    given = {"token": first, "class_word": "fox", "also": (f"there:{second}:car",), **own, **settings}
    return methods()[name].Settings(**given)


def run(form="pivotal", steps=3, flip=0.0, seed=0, **settings):
    pace = TrainConfig(steps=steps, batch=2, learning_rate=1e-2, scale_lr=False, seed=seed)
    return Run(methods()[FORMS[form][0]], config(form, **settings), pace, DataConfig(images=Path("unused"), flip=flip))


def pictures(form="pivotal"):
    first, second = (subject.trigger for subject in config(form).subjects)
    return [replace(e, word=word) for e, word in zip(tiny.examples(4), (first, second) * 2, strict=True)]


# -- settings -----------------------------------------------------------------------------------------------------


def test_subjects_are_read_from_their_spelling_also_with_colons_in_the_folder():
    own = DreamBoothConfig(token="zz", class_word="fox", also=("c:/cats:z:red cat", "d:y:dog"))
    assert [(s.token, s.class_word, s.trigger, s.images) for s in own.subjects] == [
        ("zz", "fox", "zz fox", None),
        ("z", "red cat", "z red cat", Path("c:/cats")),
        ("y", "dog", "y dog", Path("d")),
    ]
    pivotal = own.model_copy(update={"pivotal": True})
    assert [subject.trigger for subject in pivotal.subjects] == ["zz", "z", "y"]


def test_a_plain_caption_has_the_class_of_each_subject_in_its_place():
    own = DreamBoothConfig(token="z", class_word="fox", also=("there:zz:fox cub", "there:y:fox"))
    assert own.plain("a z fox left of a zz fox cub, a y fox") == "a fox left of a fox cub, a fox"
    words = CustomDiffusionConfig(token="<a>", class_word="fox", also=("there:<a>b:car",))
    assert words.plain("a <a>b and a <a>") == "a car and a fox"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"also": ("there:<b>",)}, "is not DIR:TOKEN:CLASS; write for example"),
        ({"also": ("there:<b>:",)}, "is not DIR:TOKEN:CLASS"),
        ({"also": (":<b>:car",)}, "is not DIR:TOKEN:CLASS"),
        ({"also": ("there:<A>:car",)}, "'<a>' is given to two subjects"),
        ({"also": ("there:<b>:car", "here:<b>:cat")}, "'<b>' is given to two subjects"),
        ({"also": (), "cut_mix": 0.5}, "cut_mix needs a second subject"),
        ({"cut_mix": 1.0}, "less than 1"),
        ({"prior": "pictures", "class_prompt": "a fox"}, "class_prompt is of one class"),
        ({"prior": "pictures", "class_images": "x"}, "class_images is of one class"),
    ],
)
def test_subjects_that_cannot_be_are_refused_with_the_next_step(settings, said):
    with pytest.raises(ValidationError) as caught:
        config(**settings)
    assert said in str(caught.value)


def test_the_recipe_gives_each_subject_the_steps_it_has_alone():
    for form, (name, own, _) in FORMS.items():
        method = methods()[name]
        alone = method.recipe("sd1", method.Settings(token="z", class_word="fox", **own))
        assert method.recipe("sd1", config(form))["steps"] == 2 * alone["steps"]


# -- learning -----------------------------------------------------------------------------------------------------


def test_each_picture_comes_under_the_word_of_its_own_subject():
    listed = pictures()
    listed[0] = replace(listed[0], captions=("a {} on blue", "no place for it"))
    listed[1] = replace(listed[1], captions=("a <b> on red", "a <a> on red"))
    data = LatentSet(tiny.sd(), listed, resolution=16)
    seen = {}
    for index in range(8):
        batch = data.draw(index, 2, "<a>", ("a photo of {}",), torch.Generator().manual_seed(index))
        for place, caption in zip(batch.indices, batch.captions, strict=True):
            seen.setdefault(place, set()).add(caption)
    assert seen == {0: {"a <a> on blue"}, 1: {"a <b> on red"}, 2: {"a photo of <a>"}, 3: {"a photo of <b>"}}
    assert data.unused_captions("<a>") == [listed[0].name, listed[1].name]


@pytest.mark.parametrize("form", list(FORMS))
def test_the_terms_are_the_means_over_each_subject_alone_and_its_own_class(form):
    """The joint loss, written out: picture i under its own word against its noise, and under its class against the
    base's own prediction there."""
    base, the_run = tiny.sd(), run(form)
    method, listed = the_run.method, pictures(form)
    plain = tiny.sd()
    with method.prepare(base, the_run.config, torch.Generator().manual_seed(0)) as trainable:
        with torch.no_grad():
            for parameter in trainable.parameters.values():  # away from the start, where the prior term is 0
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        batch = LatentSet(base, listed, resolution=16).draw(
            0, 4, the_run.config.trigger, ("a photo of {}",), torch.Generator().manual_seed(2)
        )
        terms = method.losses(trainable, batch, torch.Generator().manual_seed(3))
        again = torch.Generator().manual_seed(3)
        noise = torch.randn(batch.latents.shape, generator=again)
        times = torch.randint(1000, (4,), generator=again)
        alphas = trainable.state.process.alphas_cumprod[times][:, None, None, None]
        noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * noise
        classes = {subject.trigger: subject.class_word for subject in the_run.config.subjects}
        own, prior = [], []
        for i in range(4):
            (word,) = (word for word in classes if batch.captions[i] == f"a photo of {word}")

            def guess(model, caption, i=i):
                ids = model.tokenizers[0](caption, padding="max_length", return_tensors="pt").input_ids
                states = model.text_encoders[0](ids)[0]
                return model.unet(noisy[i : i + 1], times[i : i + 1], states).sample

            taught = trainable.components
            own.append((guess(taught, f"a photo of {word}") - noise[i]).square().mean())
            kept = guess(plain, f"a photo of {classes[word]}")
            prior.append((guess(taught, f"a photo of {classes[word]}") - kept).square().mean())
        assert len({caption for caption in batch.captions}) == 2
        torch.testing.assert_close(terms["denoise"], torch.stack(own).mean(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms["prior"], torch.stack(prior).mean(), rtol=1e-3, atol=1e-6)
        assert terms["prior"] > 0


@pytest.mark.parametrize(("form", "make"), [*((form, tiny.sd) for form in FORMS), ("pivotal", tiny.sdxl)])
def test_what_is_exported_together_equals_the_state_in_training(form, make):
    base, the_run = make(), run(form)
    first, second = (subject.trigger for subject in the_run.config.subjects)
    request = Request(prompt=f"a {first} above a {second}", steps=2, seed=4)
    with the_run.method.prepare(base, the_run.config, torch.Generator().manual_seed(0)) as trainable:
        untrained = generate(trainable.components, request).latents
        with torch.no_grad():
            for parameter in trainable.parameters.values():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        wanted = generate(trainable.components, request).latents
        concept = the_run.method.export(trainable)
    known = {"a": concept, "b": concept.partners[0]}
    used = request.model_copy(update={"concepts": tuple(ConceptUse(source=source) for source in known)})
    made = generate(base, used, concepts=known).latents
    # Differences of whole weights are stored in half precision.
    assert (made - wanted).norm() < 0.01 * (wanted - untrained).norm()


@pytest.mark.parametrize("form", list(FORMS))
def test_each_subject_becomes_a_concept_used_alone_or_together(form, tmp_path):
    base = tiny.sd()
    before = tiny.snapshot(base)
    the_run = run(form, text_encoder=True) if "custom" not in form else run(form)
    concept = train(base, the_run, pictures(form))
    assert tiny.same(before, base)
    (partner,) = concept.partners
    triggers = [subject.trigger for subject in the_run.config.subjects]
    assert [one.token for one in (concept, partner)] == triggers
    assert [one.card.init for one in (concept, partner)] == ["fox", "car"]
    assert concept.card.base_fingerprint == partner.card.base_fingerprint == base.fingerprint()
    assert concept.card.recipe["also"] == [f"DIR:{FORMS[form][2][1]}:car"], "no folder of the person's"
    assert type(the_run.config)(
        **{k: v for k, v in concept.card.recipe.items() if k in type(the_run.config).model_fields}
    )
    files = [one.save(tmp_path / f"{i}.safetensors") for i, one in enumerate((concept, partner))]
    first, second = map(Concept.load, files)
    assert not first.partners and same(first.changes, second.changes)
    if form == "identifiers":
        assert not first.rows
    else:
        assert not torch.equal(first.rows[0], second.rows[0])

    # Together in either order, and as they were in training.
    prompt = f"a {triggers[0]} and a {triggers[1]}"
    uses = tuple(ConceptUse(source=source) for source in "ab")
    request = Request(prompt=prompt, steps=2, seed=4)
    known = {"a": first, "b": second}
    latents = [
        generate(base, request.model_copy(update={"concepts": order}), concepts=known).latents
        for order in (uses, uses[::-1])
    ]
    torch.testing.assert_close(*latents, rtol=1e-4, atol=1e-5)
    alone = generate(
        base, request.model_copy(update={"prompt": f"a {triggers[1]}", "concepts": uses[1:]}), concepts=known
    )
    both = generate(base, request.model_copy(update={"prompt": f"a {triggers[1]}", "concepts": uses}), concepts=known)
    torch.testing.assert_close(alone.latents, both.latents, rtol=1e-4, atol=1e-5)
    assert tiny.same(before, base)


def difference_of(concept, key):
    change = concept.changes[key]
    assert isinstance(change, Difference)
    return change.difference.float()


def test_weights_learned_together_are_laid_in_once_at_the_largest_strength():
    base = tiny.sd()
    concept = train(base, run("custom-diffusion"), pictures())
    (partner,) = concept.partners
    key = next(iter(concept.changes))
    weight = base.unet.get_parameter(key.removeprefix("unet.")).clone()
    difference = difference_of(concept, key)
    for uses in ([(concept, 0.25), (partner, 0.75)], [(partner, 0.75), (concept, 0.25)]):
        with attached(base, uses) as taught:
            now = taught.unet.get_parameter(key.removeprefix("unet."))
            torch.testing.assert_close(now, weight + 0.75 * difference)
    # Others' weights are added to them.
    other = train(base, run("custom-diffusion", seed=1), pictures())
    other = replace(other, card=other.card.model_copy(update={"token": "<c>"}))
    with attached(base, [(concept, 1.0), (other, 1.0), (partner, 1.0)]) as taught:
        now = taught.unet.get_parameter(key.removeprefix("unet."))
        torch.testing.assert_close(now, weight + difference + difference_of(other, key))
    assert torch.equal(base.unet.get_parameter(key.removeprefix("unet.")), weight)


def test_the_same_numbers_at_another_scale_are_not_the_same_weights():
    concept = train(tiny.sd(), run(), pictures())
    assert same(concept.changes, dict(concept.changes)) and same({}, {})
    changes = {key: change for key, change in concept.changes.items() if isinstance(change, LowRank)}
    halved = {key: replace(change, scale=change.scale / 2) for key, change in changes.items()}
    assert len(changes) == len(concept.changes) and not same(concept.changes, halved) and not same(concept.changes, {})
    key = next(iter(changes))
    moved = {**changes, key: replace(changes[key], up=changes[key].up + 1)}
    assert not same(concept.changes, moved)


def test_a_word_used_twice_is_still_refused_and_nothing_stays(tmp_path):
    base = tiny.sd()
    before = tiny.snapshot(base)
    concept = train(base, run(), pictures())
    with pytest.raises(ConceptError, match="already a word"), attached(base, [(concept, 1.0), (concept, 1.0)]):
        pass
    assert tiny.same(before, base)


def test_a_whole_model_is_exported_with_all_subjects_in_it(tmp_path):
    from pipelines.models.loading import load

    base = tiny.sd()
    concept = train(base, run(), pictures())
    folder = export_model(base, [(concept, 1.0), (concept.partners[0], 1.0)], tmp_path / "whole")
    request = Request(prompt="a <a> and a <b>", steps=2, seed=4)
    known = {"a": concept, "b": concept.partners[0]}
    used = request.model_copy(update={"concepts": tuple(ConceptUse(source=source) for source in known)})
    exported = generate(load(str(folder)), request.model_copy(update={"scheduler": "ddim", "steps": 2})).latents
    torch.testing.assert_close(
        exported,
        generate(base, used.model_copy(update={"scheduler": "ddim"}), concepts=known).latents,
        rtol=1e-3,
        atol=1e-4,
    )


def test_each_class_gets_pictures_of_its_own_for_the_prior(tmp_path):
    events = []
    the_run = run(prior="pictures", num_class_images=2, also=("there:<b>:car", "there:<c>:fox"))
    listed = [*pictures(), replace(pictures()[0], word="<c>")]
    train(tiny.sd(), the_run, listed, class_folder=tmp_path, on_event=events.append)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["car", "fox"]
    terms = [event.terms for event in events if isinstance(event, StepDone) and event.terms]
    assert {"denoise", "prior"} <= set(terms[-1])


def test_a_joint_run_is_resumed_where_it_stopped(tmp_path):
    base, asked = tiny.sd(), iter([False, False, True])
    whole = train(base, run(steps=4, cut_mix=0.5), pictures())
    state = tmp_path / "state.pt"
    with pytest.raises(Cancelled):
        train(base, run(steps=4, cut_mix=0.5), pictures(), keep=state, should_stop=lambda: next(asked))
    resumed = train(base, run(steps=4, cut_mix=0.5), pictures(), keep=state)
    assert all(torch.equal(one, resumed.partners[0].tensors()[key]) for key, one in whole.partners[0].tensors().items())
    with pytest.raises(ConfigError, match="also"):
        train(base, run(steps=4, cut_mix=0.5, also=("there:<b>:bus",)), pictures(), keep=state)


def test_a_subject_without_a_picture_is_named():
    with pytest.raises(DataError, match=r"no picture of <b>.*Give each subject"):
        train(tiny.sd(), run(), [replace(e, word="<a>") for e in tiny.examples()])
