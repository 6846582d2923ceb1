"""Several things asked of one picture at once: concepts, strengths, weights, negative prompts, samplers."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file

from pipelines import Concept, ConceptCard, ConceptUse, Guidance, Request, generate
from pipelines.concepts.token_embeddings import single_rows
from pipelines.errors import ConceptError
from pipelines.models.loading import from_pipeline
from tests import tiny

BASES = {"sd": tiny.sd, "sdxl": tiny.sdxl}


@pytest.fixture(scope="module", params=list(BASES))
def base(request):
    return BASES[request.param]()


def concept(base, token, word, vectors=1):
    # Not the same number everywhere: the layer norm of the text encoder would take that out again.
    rows = tuple(row.expand(vectors, -1) + torch.linspace(-1, 1, row.shape[1]) for row in single_rows(base, word))
    return Concept(ConceptCard(token=token, init=word, family=base.family.name, vectors=vectors), rows)


def draw(base, prompt, *uses, concepts=None, **fields):
    request = Request(
        prompt=prompt,
        concepts=tuple(ConceptUse(source=source, strength=strength) for source, strength in uses),
        **({"steps": 2, "width": 16, "height": 16, "seed": 1} | fields),
    )
    return generate(base, request, concepts=concepts).latents


@pytest.fixture(scope="module")
def two(base):
    return {"a": concept(base, "<a>", "fox"), "b": concept(base, "<b>", "house", vectors=3)}


def test_two_concepts_work_in_one_prompt_in_any_order(base, two):
    prompt = "a <a> to the left of a <b>"
    one_way = draw(base, prompt, ("a", 1.0), ("b", 1.0), concepts=two)
    other_way = draw(base, prompt, ("b", 1.0), ("a", 1.0), concepts=two)
    torch.testing.assert_close(one_way, other_way, atol=1e-5, rtol=0)
    assert not torch.allclose(one_way, draw(base, "a fox to the left of a house"), atol=1e-3)


def test_each_has_its_own_strength(base, two):
    prompt = "a <a> to the left of a <b>"
    made = {
        strengths: draw(base, prompt, ("a", strengths[0]), ("b", strengths[1]), concepts=two)
        for strengths in itertools.product((0.0, 1.0), repeat=2)
    }
    for first, second in itertools.combinations(made.values(), 2):
        assert not torch.allclose(first, second, atol=1e-4)


def test_a_concept_at_strength_zero_is_its_class_word(base, two):
    taught = draw(base, "a <a> on a table", ("a", 0.0), concepts=two)
    torch.testing.assert_close(taught, draw(base, "a fox on a table"), atol=1e-4, rtol=0)


def test_a_concept_that_the_prompt_does_not_use_changes_nothing(base, two):
    assert torch.equal(draw(base, "a dog", ("a", 1.0), concepts=two), draw(base, "a dog"))


def test_a_concept_can_be_what_to_keep_away_from(base, two):
    guided = {"guidance": Guidance(scale=5.0)}
    kept_away = draw(base, "a dog", ("a", 1.0), concepts=two, negative_prompt="<a>", **guided)
    assert not torch.allclose(kept_away, draw(base, "a dog", negative_prompt="fox", **guided), atol=1e-4)


def test_weights_reach_learned_words(base, two):
    plain, weighted = (draw(base, f"a {word} on a table", ("b", 1.0), concepts=two) for word in ("<b>", "(<b>:1.4)"))
    assert not torch.allclose(plain, weighted, atol=1e-4)
    neutral = draw(base, "a (<b>:1.0) on a table", ("b", 1.0), concepts=two)
    assert torch.equal(plain, neutral)


def test_the_same_concept_twice_is_refused_and_leaves_no_residue(base, two):
    before = tiny.snapshot(base)
    with pytest.raises(ConceptError, match="already a word"):
        draw(base, "a <a>", ("a", 1.0), ("a", 0.5), concepts=two)
    assert tiny.same(before, base)


def test_a_concept_that_does_not_fit_leaves_no_residue_of_those_before_it(base, two):
    misfit = Concept(ConceptCard(token="<m>", family="sd2"), (torch.zeros(1, 1024),))
    before = tiny.snapshot(base)
    with pytest.raises(ConceptError, match=r"made for Stable Diffusion 2.x"):
        draw(base, "a <a> <m>", ("a", 1.0), ("m", 1.0), concepts=two | {"m": misfit})
    assert tiny.same(before, base)
    assert len(base.tokenizers[0]) == len(tiny.tokenizer())


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "unipc", "euler", "euler-a", "lcm"])
def test_concepts_work_with_every_sampler(base, two, scheduler):
    made, again = (
        draw(base, "a <a> and <b>", ("a", 1.0), ("b", 0.7), concepts=two, scheduler=scheduler, steps=3)
        for _ in range(2)
    )
    assert torch.isfinite(made).all() and torch.equal(made, again)


def test_a_long_prompt_with_a_concept_beyond_the_first_window(base, two):
    filler = "a dog, " * 40
    far = draw(base, f"{filler} and <a>", ("a", 1.0), concepts=two)
    assert not torch.allclose(far, draw(base, f"{filler} and fox"), atol=1e-5)


def test_several_pictures_with_a_concept_are_each_their_own(base, two):
    three = draw(base, "a <a>", ("a", 1.0), concepts=two, count=3)
    assert three.shape[0] == 3 and not torch.equal(three[0], three[1])
    alone = draw(base, "a <a>", ("a", 1.0), concepts=two, seed=3)
    torch.testing.assert_close(three[2:], alone, atol=1e-3, rtol=0)


def test_an_xl_concept_gives_the_same_in_plain_diffusers_loaded_half_by_half(tmp_path):
    pipeline = tiny.sdxl_pipeline()
    base = tiny.frozen(from_pipeline(tiny.sdxl_pipeline(), "tiny-xl"))
    path = concept(base, "<x>", "fox", vectors=2).save(tmp_path / "x.safetensors")
    ours = draw(base, "a <x> on a table", (str(path), 1.0), scheduler="ddim", guidance=Guidance(scale=4.0))
    halves = load_file(path)
    pipeline.load_textual_inversion(
        halves["clip_l"], token="<x>", text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
    )
    pipeline.load_textual_inversion(
        halves["clip_g"], token="<x>", text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
    )
    theirs = pipeline(
        "a <x> on a table",
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        width=16,
        height=16,
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_public_names_are_those_of_the_readme():
    import pipelines

    for name in pipelines.__all__:
        assert getattr(pipelines, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        pipelines.nonsense  # noqa: B018
