"""The denoising loop against samplers written out by hand, and what it promises around the mathematics."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from pipelines import Concept, ConceptCard
from pipelines.concepts.token_embeddings import single_rows
from pipelines.errors import Cancelled, ConceptError, RequestError
from pipelines.generation import generate
from pipelines.models.components import decode
from pipelines.models.schedulers import KINDS
from pipelines.pictures.tensors import to_pictures
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def small(**fields):
    return Request(**({"prompt": "a fox", "steps": 3, "width": 16, "height": 16, "scheduler": "ddim"} | fields))


def alphas():
    """The noise schedule of Stable Diffusion, cumulative: betas linear in their root."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0)


def contexts(base, *prompts):
    tokenizer, encoder = base.tokenizers[0], base.text_encoders[0]
    with torch.no_grad():
        return [encoder(tokenizer(p, padding="max_length", return_tensors="pt").input_ids)[0] for p in prompts]


def by_hand(base, request, timesteps, step):
    """The loop of guided denoising, one branch a UNet call; `step` is the sampler."""
    positive, negative = contexts(base, request.prompt, request.negative_prompt)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(request.seed))
    guidance, count = request.guidance, len(timesteps)
    for index, t in enumerate(timesteps):

        def predict(context, sample, t=t):
            with torch.no_grad():
                return base.unet(sample, t, encoder_hidden_states=context).sample

        def guided(sample, index=index, predict=predict):
            c = predict(positive, sample)
            if not guidance.start <= index / count < guidance.stop:
                return c
            u = predict(negative, sample)
            mixed = c * guidance.scale + u * (1 - guidance.scale)
            matched = mixed * (c.std() / mixed.std())
            return mixed + guidance.rescale * (matched - mixed)

        x = step(x, t, index, guided)
    return x


GUIDANCE = [
    Guidance(scale=1.0, rescale=0.0),
    Guidance(scale=0.0, rescale=0.0),
    Guidance(scale=6.0, rescale=0.0),
    Guidance(scale=6.0, rescale=0.5),
    Guidance(scale=6.0, rescale=0.0, start=0.25, stop=0.75),
    Guidance(scale=6.0, rescale=1.0, stop=0.5),
]


@pytest.mark.parametrize("guidance", GUIDANCE, ids=str)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_is_the_formula_of_its_paper(guidance, kind):
    base = tiny.sd(prediction_type=kind)
    request = small(steps=4, seed=2, guidance=guidance, negative_prompt="a dog")
    table, stride = alphas(), 250

    def step(x, t, index, guided):
        a = table[t]
        before = table[t - stride] if t >= stride else table[0]
        guess = guided(x)
        epsilon = guess if kind == "epsilon" else a.sqrt() * guess + (1 - a).sqrt() * x
        clean = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
        return before.sqrt() * clean + (1 - before).sqrt() * epsilon

    expected = by_hand(base, request, [751, 501, 251, 1], step)
    torch.testing.assert_close(generate(base, request).latents, expected, atol=1e-4, rtol=1e-4)


def test_euler_is_one_straight_line_a_step(base):
    request = small(steps=4, seed=3, scheduler="euler", guidance=Guidance(scale=3.0, rescale=0.0))
    timesteps = [999, 666, 333, 0]  # evenly spread: the base says nothing of its spacing, and so is the sampler's own
    sigmas = [float(((1 - alphas()[t]) / alphas()[t]).sqrt()) for t in timesteps] + [0.0]
    start = sigmas[0]

    def step(x, t, index, guided):
        x = x * start if index == 0 else x
        here, there = sigmas[index], sigmas[index + 1]
        return x + (there - here) * guided(x / (here**2 + 1) ** 0.5)

    expected = by_hand(base, request, timesteps, step)
    torch.testing.assert_close(generate(base, request).latents, expected, atol=1e-4, rtol=1e-4)


def test_noise_that_is_given_takes_the_place_of_the_seeds(base):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    given = generate(base, small(seed=99), noise=noise.clone()).latents
    assert torch.equal(given, generate(base, small(seed=5)).latents)
    assert not torch.equal(given, generate(base, small(seed=99)).latents)


def test_more_pictures_than_are_decoded_at_once_all_come_out_in_order(base):
    result = generate(base, small(steps=1, count=10))
    assert len(result.pictures) == 10
    for latents, picture in zip(result.latents, result.pictures, strict=True):
        alone = to_pictures(decode(base, latents[None]))[0]
        difference = torch.tensor(list(alone.tobytes())).sub(torch.tensor(list(picture.tobytes()))).abs()
        assert difference.max() <= 1  # rounding: a batch adds up in another order


@pytest.mark.parametrize(("width", "height"), [(16, 24), (32, 16), (20, 28)])
def test_pictures_have_the_size_asked_for(base, width, height):
    result = generate(base, small(width=width, height=height))
    assert result.pictures[0].size == (width, height)
    assert result.latents.shape == (1, 4, height // 2, width // 2)


@pytest.mark.parametrize("name", list(KINDS))
def test_the_global_generator_is_neither_read_nor_moved(base, name):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = generate(base, small(scheduler=name)).latents
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, generate(base, small(scheduler=name)).latents)


def test_a_negative_prompt_does_nothing_while_guidance_is_off(base):
    off = Guidance(scale=1.0)
    assert torch.equal(
        generate(base, small(guidance=off, negative_prompt="a dog")).latents,
        generate(base, small(guidance=off)).latents,
    )
    assert not torch.equal(generate(base, small(negative_prompt="a dog")).latents, generate(base, small()).latents)


def test_the_largest_seed_is_a_seed_also_for_several_pictures(base):
    two = generate(base, small(seed=2**63 - 1, count=2, steps=1)).latents
    assert not torch.equal(two[0], two[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_gives_float32_latents_near_the_full_ones(dtype):
    request = small(guidance=Guidance(scale=2.0, rescale=0.0))
    full = generate(tiny.sd(), request).latents
    narrow = generate(tiny.sd().to("cpu", dtype), request, noise=noise_of(request)).latents
    assert narrow.dtype == torch.float32
    assert float((narrow - full).abs().mean() / full.abs().mean()) < 0.05


def noise_of(request):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(request.seed))


@pytest.mark.parametrize(
    ("field", "value", "next_step"), [("height", 22, "20|24"), ("width", 17, "16"), ("width", 19, "20")]
)
def test_a_size_between_two_is_refused_with_a_size_that_works(base, field, value, next_step):
    with pytest.raises(RequestError, match=rf"The {field} {value} is no multiple of 4.*Use ({next_step})\.") as error:
        generate(base, small(**{field: value}))
    works = int(error.value.hint.split()[-1].rstrip("."))
    generate(base, small(steps=1, **{field: works}))


# -- stopping and failing -----------------------------------------------------------------------------------------


def fox(base):
    return {"x": Concept(ConceptCard(token="<x>", family=base.family.name), single_rows(base, "fox"))}


def test_stopping_is_asked_before_each_step_and_before_the_first(base):
    asked = []
    generate(base, small(steps=5), should_stop=lambda: bool(asked.append(1)))
    assert len(asked) == 5
    with pytest.raises(Cancelled, match="after step 0 of 5"):
        generate(base, small(steps=5), should_stop=lambda: True)


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
@pytest.mark.parametrize("how", ["stop", "listener", "condition"])
def test_whatever_ends_a_run_early_leaves_the_base_as_it_was(make, how):
    base = make()
    before, words = tiny.snapshot(base), [len(tokenizer) for tokenizer in base.tokenizers]
    uses = small(prompt="a <x>", concepts=(ConceptUse(source="x"),))

    def listener(event):
        if how == "listener":
            raise OSError("the reader is gone")

    conditions = [Broken()] if how == "condition" else []
    with pytest.raises((Cancelled, OSError, ZeroDivisionError)):
        generate(
            base, uses, concepts=fox(base), on_event=listener, should_stop=lambda: how == "stop", conditions=conditions
        )
    assert tiny.same(before, base) and words == [len(tokenizer) for tokenizer in base.tokenizers]
    assert not any(p.grad is not None for module in base.modules() for p in module.parameters())


def test_a_concept_file_that_is_missing_is_said_before_anything_is_drawn(base):
    steps = []
    with pytest.raises(ConceptError, match=r"no concept file gone\.safetensors"):
        generate(base, small(concepts=(ConceptUse(source="gone.safetensors"),)), on_event=steps.append)
    assert steps == []


def test_the_result_names_the_concepts_in_the_order_of_the_request(base):
    rows = single_rows(base, "fox")
    learned = {t: Concept(ConceptCard(token=f"<{t}>", family="sd1"), rows) for t in "ab"}
    uses = tuple(ConceptUse(source=source) for source in "ba")
    result = generate(base, small(concepts=uses, steps=1), concepts=learned)
    assert [concept.token for concept in result.concepts] == ["<b>", "<a>"]


# -- conditions beside the text -------------------------------------------------------------------------------------


class Broken:
    def attach(self, components, count):
        return nullcontext()

    def conditioning(self, branch, step):
        return {}

    def constrain(self, latents, step):
        raise ZeroDivisionError


class Push:
    """Adds to what the middle of the UNet makes; amount 0 is its neutral element."""

    def __init__(self, amount):
        self.amount = amount

    def attach(self, components, count):
        self.shape = (count, components.unet.config["block_out_channels"][-1], 4, 4)
        return nullcontext()

    def conditioning(self, branch, step):
        return {"mid_block_additional_residual": torch.full(self.shape, self.amount)}

    def constrain(self, latents, step):
        return latents + self.amount


class Shrink(Broken):
    def constrain(self, latents, step):
        return latents * 0.9


class Watch(Broken):
    def __init__(self):
        self.seen = []

    def constrain(self, latents, step):
        self.seen.append((step.index, None if step.following is None else int(step.following), latents))
        return latents


def test_a_neutral_condition_changes_nothing_and_another_does(base):
    plain = generate(base, small(count=2)).latents
    assert torch.equal(generate(base, small(count=2), conditions=[Push(0.0)]).latents, plain)
    assert not torch.allclose(generate(base, small(count=2), conditions=[Push(0.5)]).latents, plain, atol=1e-2)


def test_corrections_are_applied_in_the_order_given_after_every_step(base):
    before, after = Watch(), Watch()
    result = generate(base, small(steps=3), conditions=[before, Shrink(), after])
    assert [(index, following) for index, following, _ in after.seen] == [(0, 334), (1, 1), (2, None)]
    for (_, _, raw), (_, _, corrected) in zip(before.seen, after.seen, strict=True):
        assert torch.equal(raw * 0.9, corrected)
    assert torch.equal(result.latents, after.seen[-1][2])
