"""Frozen weights in 8 and 4 bits: what is computed with them, learned beside them, and drawn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.concepts.concept import Concept, attached
from pipelines.errors import ConfigError
from pipelines.generation import generate
from pipelines.models.loading import load
from pipelines.models.memory.offloading import leaving, offloaded
from pipelines.models.memory.quantised import BITS, NF4, QuantisedLinear, form_of, quantisable, quantise
from pipelines.request.request import Request
from tests import tiny, tiny_flows
from trainers.loop.launch import narrowed
from trainers.loop.train import train
from trainers.losses import conditioning, predicted, uncropped
from trainers.methods import methods
from trainers.run import run_of

pytestmark = pytest.mark.usefixtures("one_thread")
LIMITS = {"int8": 0.006, "fp8": 0.04, "nf4": 0.12}
"""Largest difference of a prediction from that of float32, as a share of its length."""
TINY = {"sd": tiny.sd, "sdxl": tiny.sdxl} | {
    family: lambda family=family: tiny_flows.base(family) for family in tiny_flows.PIPELINES
}


def prediction(base, caption="a fox on a hat"):
    generator = torch.Generator().manual_seed(3)
    shape = (1, base.channels, 32 // base.factor, 32 // base.factor)
    clean, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    process = base.family.process(base)
    t = process.draw(1, False, generator)
    with torch.no_grad():
        told = conditioning(base, [caption], uncropped(1, (32, 32)), (32, 32))
        return predicted(base, clean, t, noise, process, told)


def run(**more):
    settings = {"images": "x", "token": "cow", "class_word": "fox", "steps": 4, "batch": 2, "learning_rate": 0.02}
    return run_of(methods()["dreambooth"], settings | {"scale_lr": False, "resolution": 32} | more)


@pytest.mark.parametrize("family", TINY)
def test_predictions_are_those_of_float32_within_a_tolerance(family):
    plain = prediction(TINY[family]())
    for form, limit in LIMITS.items():
        base = TINY[family]()
        for network in (base.denoiser, *base.text_encoders):
            assert quantisable(network, form)
            quantise(network, form)
        assert base.dtype == torch.float32 and form_of(base.denoiser) == form
        off = float((prediction(base) - plain).norm() / plain.norm())
        assert 0 < off < limit, (form, off)


@pytest.mark.parametrize("form", BITS)
def test_gradients_are_those_of_the_weight_that_is_stored(form):
    layer = nn.Linear(32, 24)
    few = QuantisedLinear(layer, form)
    same = nn.Linear(32, 24)
    same.load_state_dict({"weight": few.plain(), "bias": layer.bias})
    rows = [torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for one, row in zip((few, same), rows, strict=True):
        one(row).square().sum().backward()
    torch.testing.assert_close(rows[0].grad, rows[1].grad)
    assert few.weight.grad is None and few.weight.dtype == torch.int8
    assert few.weight.numel() == 32 * 24 * (0.5 if form == "nf4" else 1)
    assert nn.Module.to(few, torch.bfloat16).weight.dtype == torch.int8, "no cast reaches the bits"


def test_the_values_of_nf4_are_those_of_bitsandbytes_and_are_kept_exactly():
    values = torch.tensor(NF4).repeat(4, 1)  # a block, whose largest number is 1
    layer = nn.Linear(16, 4, bias=False)
    layer.weight.data = values
    assert torch.equal(QuantisedLinear(layer, "nf4").plain(), values)


def test_embeddings_first_and_last_layers_and_those_for_boxes_stay():
    base = tiny.sd()
    names = quantisable(base.denoiser, "int8")
    assert not [name for name in names if "fuser" in name or "time_emb" in name.split(".")[0]]
    assert any("attn2.to_k" in name for name in names) and any("mid_block" in name for name in names)
    base = tiny_flows.base("z-image")
    assert not [name for name in quantisable(base.denoiser, "int8") if "embedder" in name]


@pytest.mark.parametrize("family", ["sd", "z-image"])
def test_a_lora_learned_beside_few_bits_serves_the_base_as_it_is(family, tmp_path):
    """It learns, its file loads on both, and the base in few bits is bit-equal afterwards."""
    the_run = run(quantise="int8", steps=12, optimizer="adamw")
    base, plain = narrowed(TINY[family](), the_run), TINY[family]()
    assert form_of(base.denoiser) == form_of(base.text_encoders[0]) == "int8" and form_of(base.vae) is None
    before = tiny.snapshot(base)
    said = []
    concept = train(base, the_run, tiny.examples(), on_event=said.append)
    assert tiny.same(before, base)
    loaded = Concept.load(concept.save(tmp_path / "c.safetensors"))
    untaught = prediction(plain)
    with loaded.attach(plain) as taught:
        on_plain = prediction(taught)
    with loaded.attach(base) as taught:
        on_few = prediction(taught)
    moved = (on_plain - untaught).norm()
    assert moved > 0.02 * untaught.norm()
    assert (on_few - on_plain).norm() < 0.3 * moved, "the same change on both"
    assert torch.equal(prediction(base), prediction(base)) and tiny.same(before, base)


def test_what_is_trained_predicts_what_its_file_predicts_on_few_bits():
    the_run = run(quantise="nf4")
    base = narrowed(TINY["z-image"](), the_run)
    with the_run.method.prepare(base, the_run.config, torch.Generator().manual_seed(0)) as trainable:
        with torch.no_grad():
            for name, value in trainable.parameters.items():
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
        wanted = prediction(trainable.components)
        concept = the_run.method.export(trainable)
    with concept.attach(base) as taught:
        assert (prediction(taught) - wanted).abs().max() < 1e-5


def test_whole_differences_and_two_concepts_act_on_few_bits_too():
    plain = tiny.sd()
    whole, low = (
        train(tiny.sd(), run(**more), tiny.examples()) for more in ({"form": "full", "learning_rate": 1e-3}, {})
    )
    few = tiny.sd()
    quantise(few.denoiser, "int8")
    for concepts in ((whole,), (whole, low), (low, whole)):
        found = []
        for base in (plain, few):
            untaught = prediction(base)
            with attached(base, [(one, 1.0) for one in concepts]) as taught:
                found.append(prediction(taught) - untaught)
        assert (found[1] - found[0]).norm() < 0.3 * found[0].norm()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"form": "full"}, "cannot be kept in int8.*--form lora"),
        ({"dora": True}, "DoRA.*--dora or --quantise"),
    ],
)
def test_what_needs_the_weights_themselves_is_refused_in_words(more, said):
    the_run = run(quantise="int8", **more)
    with pytest.raises(ConfigError, match=said):
        train(narrowed(tiny.sd(), the_run), the_run, tiny.examples())


def test_a_base_is_loaded_in_few_bits_and_keeps_its_name():
    few, plain = load("pocket", quantise="int8"), load("pocket")
    assert few.fingerprint() == plain.fingerprint() and form_of(few.denoiser) == "int8"
    request = Request(prompt="a fox", steps=4)
    drawn = [generate(base, request).latents for base in (few, plain)]
    assert 0 < (drawn[0] - drawn[1]).norm() < 0.2 * drawn[1].norm()


# -- networks that come to the device only while they work --------------------------------------------------------


@pytest.mark.parametrize("how", ["parts", "layers"])
def test_networks_that_wait_elsewhere_draw_the_same(how):
    request = Request(prompt="a fox", steps=2, width=32, height=32)
    for family in ("sdxl", "z-image"):
        plain = generate(TINY[family](), request)
        waiting = offloaded(TINY[family](), "cpu", how)
        assert waiting.device == torch.device("cpu") == waiting.place
        assert torch.equal(generate(waiting, request).latents, plain.latents)


def test_parts_leave_when_the_denoiser_works_and_keep_no_hook(monkeypatch):
    base = tiny.sd()
    plain, encoder = prediction(base), base.text_encoders[0]
    before = set(vars(base.vae)), set(vars(encoder)), len(base.denoiser._forward_pre_hooks)
    moves, real = [], nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda self, *to, **more: (moves.append(self), real(self, *to, **more))[1])
    with leaving(base, [base.vae, encoder]):
        moves.clear()
        assert torch.equal(prediction(base), plain)
        assert [id(one) for one in moves] == [id(base.vae), id(encoder)], "both left; on a CPU nothing has to come"
    assert before == (set(vars(base.vae)), set(vars(encoder)), len(base.denoiser._forward_pre_hooks))
