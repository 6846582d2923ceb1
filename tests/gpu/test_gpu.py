"""Tests that need a GPU. Run with `pytest -m gpu` where there is one; needs no more than training does."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from pipelines.concepts.concept import Concept
from pipelines.errors import Cancelled
from pipelines.events import Note, Preview, StepDone
from pipelines.generation import generate
from pipelines.models.loading import load
from pipelines.request.request import ConceptUse, Request
from tests import tiny
from trainers.data.folders import read_folder
from trainers.loop.cuda_graphs import CudaGraphStep, CudaGraphUNet
from trainers.loop.launch import DTYPES, narrowed
from trainers.loop.loop import optimise
from trainers.loop.muon import Muon
from trainers.loop.schedule import Schedule
from trainers.loop.train import train
from trainers.methods import methods
from trainers.run import Run, run_of
from trainers.settings import DataConfig, TrainConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
WOLF = Path(__file__).parent.parent.parent / "studio" / "examples" / "wolf"
REQUEST = Request(prompt="a fox", steps=4, width=16, height=16, scheduler="ddim")


def test_a_seed_means_the_same_picture_as_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_cpu = generate(tiny.sd(), REQUEST).latents
    on_gpu = generate(tiny.sd().to(DEVICE), REQUEST).latents
    torch.testing.assert_close(on_gpu, on_cpu, atol=2e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_gives_finite_pictures(dtype):
    assert torch.isfinite(generate(tiny.sd().to(DEVICE, dtype), REQUEST).latents).all()


# -- training pocket in low precision ----------------------------------------------------------------------------

STEPS = 40
WAYS = {
    "textual-inversion": {"token": "<wolf>", "init": "fox"},
    "dreambooth": {"token": "<wolf>", "class_word": "fox", "pivotal": True},
}


def pocket(name, precision, **pace):
    """A run on pocket by its recipe, and the base with what stays frozen in that precision."""
    settings = {**WAYS[name], "images": WOLF, "steps": STEPS, "precision": precision, **pace}
    run = run_of(methods()[name], settings).with_recipe("pocket")
    return run, narrowed(load("pocket", device=DEVICE), run)


def learned(name, precision, **more):
    """Return the concept of the wolf, the events of its training, and its base."""
    run, base = pocket(name, precision, preview_every=STEPS)
    events = []
    return train(base, run, read_folder(WOLF).examples, on_event=events.append, **more), events, base


@cache
def whole(name, precision):
    """A training without a break; once for all tests."""
    return learned(name, precision)


@cache
def start(name):
    """The concept before its first step: trained at a rate of nearly nothing."""
    run, base = pocket(name, "no", steps=1, learning_rate=1e-12)
    return train(base, run, read_folder(WOLF).examples)


def numbers(concept):
    """All that was learned, in one row."""
    return torch.cat([tensor.float().flatten() for _, tensor in sorted(concept.tensors().items())])


def distance(one, other):
    return float((numbers(one) - numbers(other)).abs().mean())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", list(WAYS))
def test_what_is_frozen_is_low_and_what_is_trained_is_float32(name, precision):
    concept, events, base = whole(name, precision)
    assert {base.unet.dtype, base.vae.dtype} == {DTYPES[precision]} and base.text_encoders[0].dtype == torch.float32
    assert base.device.type == "cuda"
    untouched = pocket(name, precision)[1]
    assert tiny.same(tiny.snapshot(untouched), base), "the base is bit-identical afterwards"
    assert {tensor.dtype for tensor in concept.tensors().values()} == {torch.float32}
    assert torch.isfinite(numbers(concept)).all()
    steps = [event for event in events if isinstance(event, StepDone)]
    assert all(value < 10 for event in steps for value in event.terms.values()) and steps[-1].step == STEPS
    assert len([event for event in events if isinstance(event, Preview)]) == 1
    # It learns what float32 learns: most of the way there, rounding and skipped steps apart.
    exact = whole(name, "no")[0]
    moved = distance(exact, start(name))
    assert moved > 1e-4 and distance(concept, exact) < 0.6 * moved


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", list(WAYS))
def test_a_concept_draws_the_same_in_low_precision(name, precision, tmp_path):
    concept = whole(name, precision)[0]
    path = concept.save(tmp_path / "wolf.safetensors")
    assert Concept.load(path).digest() == concept.digest()
    plain = Request(prompt="a fox on a blue background", steps=8)
    uses = Request(prompt="a <wolf> on a blue background", steps=8, concepts=(ConceptUse(source=str(path)),))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))  # a seed's depends on the precision
    base = load("pocket", device=DEVICE, dtype=DTYPES[precision])
    drawn, other = (generate(base, request, noise=noise).latents for request in (uses, plain))
    wide = generate(load("pocket", device=DEVICE), uses, noise=noise).latents
    assert torch.isfinite(drawn).all()
    assert (drawn - wide).abs().mean() < 0.5 * (drawn - other).abs().mean(), "the wolf, whatever the precision"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", list(WAYS))
def test_a_training_goes_on_where_it_was_stopped(name, precision, tmp_path):
    asked = iter(range(STEPS))
    with pytest.raises(Cancelled, match=f"step {STEPS // 2} of {STEPS}"):
        learned(name, precision, keep=tmp_path / "state", should_stop=lambda: next(asked) == STEPS // 2)
    resumed, events, _ = learned(name, precision, keep=tmp_path / "state")
    first = next(event.step for event in events if isinstance(event, StepDone))
    assert first > STEPS // 2, "it did not begin anew"
    uninterrupted = whole(name, precision)[0]
    # Not bit for bit as on a CPU: a GPU adds up in an order that varies.
    assert distance(resumed, uninterrupted) < 0.1 * distance(uninterrupted, start(name))


# -- every form of training, on a tiny base ----------------------------------------------------------------------

FORMS = {
    "full weights": ("dreambooth", {"token": "<x>", "class_word": "fox", "pivotal": True, "form": "full"}),
    "DoRA": ("dreambooth", {"token": "<x>", "class_word": "fox", "pivotal": True, "dora": True, "text_encoder": True}),
    "keys and values": ("custom-diffusion", {"token": "<x>", "class_word": "fox"}),
    "a relation": ("reversion", {"token": "<x>", "init": "fox", "left": "fox", "right": "cat", "lora": True}),
    "a word": ("textual-inversion", {"token": "<x>", "init": "fox"}),
}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_learns_something_finite(form, precision):
    name, settings = FORMS[form]
    method = methods()[name]
    pace = TrainConfig(steps=20, batch=2, learning_rate=1e-3, scale_lr=False, precision=precision, ema=0.5)
    run = Run(method, method.Settings(**settings), pace, DataConfig(images=Path("unused"), flip=0.0))
    base = narrowed(tiny.sd().to(DEVICE), run)
    before = tiny.snapshot(base)
    concept = train(base, run, tiny.examples())
    assert tiny.same(before, base)
    assert torch.isfinite(numbers(concept)).all() and {row.dtype for row in concept.rows} == {torch.float32}
    still = run.train.model_copy(update={"steps": 1, "learning_rate": 1e-12})
    nothing = train(base, Run(method, run.config, still, run.data), tiny.examples())
    assert distance(concept, nothing) > 1e-5


def test_a_recorded_unet_gives_what_the_unet_gives_with_its_gradients():
    unet = tiny.sd().to("cuda").unet.train().requires_grad_(True)
    context = torch.randn(2, 7, unet.config["cross_attention_dim"], generator=torch.Generator().manual_seed(1)).cuda()
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).cuda()
    timesteps, notes = torch.tensor([3, 500], device="cuda"), []
    recorded = CudaGraphUNet(unet, half=False, on_event=notes.append)
    gradients = []
    for call in (recorded, recorded, lambda *given: unet(*given).sample):
        unet.zero_grad()
        call(sample, timesteps, context).square().mean().backward()
        gradients.append(unet.conv_in.weight.grad.clone())
    assert not notes and len(recorded.calls) == 1
    torch.testing.assert_close(gradients[1], gradients[2], atol=1e-4, rtol=1e-3)


def test_recorded_steps_are_those_of_the_optimisers_with_their_rates(monkeypatch):
    made, notes = [], []
    for after in (5, 1000):
        monkeypatch.setattr(CudaGraphStep, "AFTER", after)
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).cuda()
        matrices, rest = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
        optimizers = [Muon(matrices, 1e-2), torch.optim.AdamW(rest, 1e-2, fused=True)]

        def losses(step, generator, model=model):
            return {"square": (model(torch.randn((32, 8), generator=generator).cuda()) - 1).square().mean()}

        optimise(
            losses,
            optimizers,
            Schedule(40, seed=3, clip=0.5),
            rate=lambda step, steps: 1 - step / 40,
            on_event=notes.append,
        )
        made.append([one.detach().clone() for one in model.parameters()])
    assert not [note for note in notes if isinstance(note, Note)]
    for recorded, eager in zip(*made, strict=True):
        torch.testing.assert_close(recorded, eager, atol=1e-4, rtol=1e-3)


# -- bases of published sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", gpu.FORMS)
@pytest.mark.parametrize("size", list(gpu.SIZES))
def test_a_lora_is_learned_on_a_base_of_a_published_size_in_the_memory_that_was_predicted(size, form):
    """With random weights; what is kept of one picture's activations comes on top, checkpointed."""
    found = gpu.lora(size, form, DEVICE)
    assert found.predicted <= found.peak < found.predicted + (6 << 30)
    assert 0 < found.seconds < 60
