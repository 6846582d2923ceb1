"""Memory by arithmetic: of the published models from their configurations alone; of a training as it was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from diffusers import Flux2Transformer2DModel, UNet2DConditionModel, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from pipelines.errors import DataError
from pipelines.models.memory.quantised import quantise
from pipelines.models.single_files import SHIPPED
from pipelines.request.request import Box
from tests import tiny, tiny_flows
from trainers.data.batches import LatentSet
from trainers.loop.memory import Kept, MemoryChoice, latents, needed, sentences, weights
from trainers.loop.train import probe
from trainers.methods import methods
from trainers.run import run_of

GIB = 2**30
SUBJECT = {"images": "x", "token": "cow", "class_word": "fox", "resolution": 16, "batch": 2, "flip": 0.5}


def run(name="dreambooth", **settings):
    return run_of(methods()[name], SUBJECT | settings)


def on_meta(made, **parts):
    """The base with networks that have shapes alone."""
    with torch.device("meta"):
        return replace(made, **{name: part() for name, part in parts.items()})


def language(width, layers, inner):
    return Qwen3Model(
        Qwen3Config(
            hidden_size=width,
            num_hidden_layers=layers,
            intermediate_size=inner,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
        )
    )


def sdxl():
    unet = json.loads((SHIPPED / "sdxl.json").read_text(encoding="utf-8"))["unet"]
    return on_meta(tiny.sdxl(), denoiser=lambda: UNet2DConditionModel.from_config(unet))


def klein():
    shape = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    made = tiny_flows.base("flux2")
    return on_meta(
        made,
        denoiser=lambda: Flux2Transformer2DModel(**shape, guidance_embeds=False),
        text_encoders=lambda: (language(2560, 36, 9728),),
    )


def z_image():
    made = tiny_flows.base("z-image")
    return on_meta(made, denoiser=ZImageTransformer2DModel, text_encoders=lambda: (language(2560, 36, 9728),))


@pytest.mark.parametrize(
    ("base", "numbers", "gib"),
    [
        (sdxl, 2.567, {"bf16": 4.8, "int8": 2.7, "nf4": 1.8}),
        (klein, 3.876, {"bf16": 7.2, "int8": 3.7, "nf4": 2.3}),
        (z_image, 6.155, {"bf16": 11.5, "int8": 5.8, "nf4": 3.3}),
    ],
)
def test_sizes_of_the_published_models_follow_from_their_configurations(base, numbers, gib):
    made = base()
    assert sum(one.numel() for one in made.denoiser.parameters()) / 1e9 == pytest.approx(numbers, rel=2e-3)
    found = {
        "bf16": weights(made, run(), MemoryChoice("bf16")),
        "int8": weights(made, run(), MemoryChoice("bf16", "int8")),
        "nf4": weights(made, run(), MemoryChoice("bf16", "nf4")),
    }
    # On a GPU frozen text encoders and the autoencoder have left by the time of the first step.
    assert {name: pytest.approx(count / GIB, abs=0.1) for name, count in found.items()} == gib


def test_what_is_predicted_is_what_lies_in_memory():
    for form in ("int8", "nf4"):
        base = tiny.sdxl()
        predicted = weights(base, run(), MemoryChoice("no", form))
        for network in (base.denoiser, *base.text_encoders):
            quantise(network, form)
        stored = sum(one.numel() * one.element_size() for part in base.modules() for one in part.parameters())
        scales = sum(one.scale.numel() * 4 for part in base.modules() for one in part.modules() if hasattr(one, "form"))
        rows = 0 if form == "nf4" else scales  # nf4's are counted with its bits
        assert predicted == pytest.approx(stored + scales - rows, rel=2e-3)
        assert weights(base, run(), MemoryChoice("no", form)) == predicted, "also of what is quantised already"


def test_latents_are_estimated_as_large_as_they_are():
    base = tiny.sd()
    data = LatentSet(base, tiny.examples(3), resolution=16, flip=0.5)
    real = sum(t.numel() * t.element_size() for b in data.buckets for t in (b.posterior.mean, b.posterior.std))
    assert latents(base, run(), 3) == real


def test_a_trial_measures_what_is_kept_for_the_backward_pass():
    base, the_run = tiny.sd(), run()
    before = tiny.snapshot(base)
    tried = probe(base, the_run, tiny.examples())
    assert tiny.same(before, base)
    assert 0 < tried.kept.checkpointed < 0.8 * tried.kept.plain
    assert probe(base, run(batch=4), tiny.examples()).kept.plain > 1.6 * tried.kept.plain
    takes = needed(base, the_run, tried.trained, latents(base, the_run, 3), tried.kept)
    own, *others = takes
    assert own == MemoryChoice("no") and len(others) >= 4 and all(takes[one] <= takes[own] for one in others)
    assert {one.precision for one in others} == {"no"}, "16 bits are slow on a CPU"


def test_a_trial_takes_a_sample_of_data_that_was_examined_as_a_whole():
    plain = tiny.examples(1)[0]
    pairs = [replace(plain, name=f"{task}/{k}", after_source=plain.source) for task in "ab" for k in range(7)]
    box = (Box(phrase="fox", box=(0.1, 0.2, 0.6, 0.7)),)
    boxed = [*[plain] * 39, replace(plain, boxes=box)]
    for name, given, bad in (("incontext", pairs, pairs[:8]), ("grounding", boxed, boxed[:-1])):
        made = run_of(methods()[name], {"images": "x", "pairs": "x", "resolution": 16, "batch": 8})
        assert probe(tiny.sd(), made, given).trained > 0
        with pytest.raises(DataError, match="b holds 1 pair" if name == "incontext" else "no picture with a box"):
            probe(tiny.sd(), made, bad)


def test_one_that_fits_is_proposed_the_least_intrusive_first():
    takes = {MemoryChoice("no"): 8 * GIB, MemoryChoice("no", None, True): 6 * GIB, MemoryChoice("no", "int8"): 3 * GIB}
    assert len(sentences(takes, 9 * GIB)) == 2
    assert sentences(takes, 7 * GIB)[-1] == (
        "Warning: it does not fit as it is set (float32); --gradient-checkpointing does."
    )
    assert sentences(takes, 4 * GIB)[-1].endswith("--quantise int8 does.")
    assert "nor does any other choice" in sentences(takes, 2 * GIB)[-1]


def test_weights_that_are_trained_stay_wide_and_optimisers_count():
    base = tiny.sd()
    whole = run(form="full")
    assert {one.quantise for one in needed(base, whole, 0, 0, None)} == {None}
    takes = [needed(base, run(optimizer=name), 1000, 0, None)[MemoryChoice("no")] for name in ("adamw", "adamw8bit")]
    assert takes[0] - takes[1] == 6000
    assert Kept(100, 40).bytes(MemoryChoice("bf16", None, True)) == 20
