"""Regions with prompts of their own: each place follows the prompt and the weights of its region."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from pipelines.concepts.concept import Concept
from pipelines.errors import Cancelled, RequestError
from pipelines.generation import generate
from pipelines.predictions.regions import covered, kept_to_regions
from pipelines.request.boxes import Box
from pipelines.request.regions import Region, region_use
from pipelines.request.request import ConceptUse, Grounding, Guidance, Request
from tests import tiny, tiny_flows
from tests.pipelines.test_regional import COLUMNS, LEFT, RIGHT, learned, words_alone


@pytest.fixture(scope="module")
def gated():
    return tiny.open_gates(tiny.gated())


@pytest.fixture(scope="module")
def plain():
    return tiny.sd()


def asked(*regions, prompt="a dog", concepts=(), **fields):
    return Request(
        prompt=prompt,
        regions=regions,
        concepts=[ConceptUse(source=name) for name in concepts],
        guidance=Guidance(scale=3.0, rescale=0.0),
        **{"scheduler": "ddim", "steps": 1, "width": 16, "height": 16} | fields,
    )


def latents(base, request, concepts=None):
    return generate(base, request, concepts=concepts).latents[0]


def test_after_a_step_each_place_has_the_prediction_of_its_prompt(gated):
    before = tiny.snapshot(gated)
    drawn = latents(gated, asked(Region(prompt="a fox", box=LEFT), grounding=Grounding(beta=1.0)))
    assert tiny.same(before, gated)
    box = {"boxes": (Box(phrase="a fox", box=LEFT),), "grounding": Grounding(beta=1.0)}
    fox, dog = latents(gated, asked(prompt="a fox", **box)), latents(gated, asked(**box))
    torch.testing.assert_close(drawn[..., 3:], dog[..., 3:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(drawn[..., :3], fox[..., :3], atol=1e-5, rtol=1e-4)
    assert (fox - dog).abs().max() > 2e-4


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_base_without_gated_layers_draws_a_region_by_itself_at_first(plain, family):
    base = plain if family == "sd" else tiny_flows.base(family)
    sampler = {"scheduler": "ddim" if family == "sd" else "euler", "steps": 6, "width": 32, "height": 32}
    one = Region(prompt="a fox", box=(0, 0, 0.5, 1))
    drawn = generate(base, asked(one, **sampler)).latents
    assert bool(drawn.isfinite().all()) and not torch.allclose(drawn, generate(base, asked(**sampler)).latents)
    assert generate(base, asked(one, **sampler)).latents.equal(drawn)


def test_two_concepts_act_in_their_regions_alone(gated):
    both = {"a": learned(gated, "<a>", 1), "b": learned(gated, "<b>", 2)}
    regions = (Region(prompt="a <a>", box=LEFT), Region(prompt="a <b>", box=RIGHT))
    fields = {"concepts": ("a", "b"), "grounding": Grounding(beta=0.0)}
    drawn = latents(gated, asked(*regions, **fields), both)
    bare = {name: words_alone(one) for name, one in both.items()}
    for place, prompt, concepts in (
        ("left", "a <a>", {**bare, "a": both["a"]}),
        ("right", "a <b>", {**bare, "b": both["b"]}),
        ("between", "a dog", bare),
    ):
        alone = latents(gated, asked(prompt=prompt, **fields), concepts)
        torch.testing.assert_close(drawn[..., COLUMNS[place]], alone[..., COLUMNS[place]], atol=1e-5, rtol=1e-4)
    assert kept_to_regions(asked(*regions), list(both.values())) == {0: [0], 1: [1]}
    assert kept_to_regions(asked(*regions, prompt="a <a>"), list(both.values())) == {1: [1]}


@pytest.mark.parametrize("boxes", [False, True], ids=["prompt", "box without regions"])
def test_what_was_learned_together_is_laid_in_once(gated, boxes):
    """One of two partners is named by a region, the other everywhere: their common change is there at strength 1."""
    one = learned(gated, "<a>", 1)
    partner = learned(gated, "<b>", 2)
    both = {"a": one, "b": Concept(partner.card, partner.rows, one.changes)}
    region = Region(prompt="a <b>", box=RIGHT)
    asked_for = {"concepts": ("a", "b"), "grounding": Grounding(beta=0.0, region=False)}
    if boxes:
        asked_for["boxes"] = (Box(phrase="<a>", box=LEFT),)
    drawn = latents(gated, asked(region, prompt="a <a>", **asked_for), both)
    alone = latents(gated, asked(prompt="a <b>", **asked_for | {"boxes": ()}), both)
    torch.testing.assert_close(drawn[..., COLUMNS["right"]], alone[..., COLUMNS["right"]], atol=1e-5, rtol=1e-4)


def test_a_mask_with_a_soft_rim_fades_and_its_region_is_scaled(tmp_path):
    mask = Image.new("L", (64, 32))
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 31), fill=255)
    mask.save(tmp_path / "mask.png")
    cells = covered(Region(prompt="x", mask=str(tmp_path / "mask.png"), soft=0.25), 1, (32, 32), 2)
    assert cells.shape == (16, 16) and bool((cells[:, :8] == 1).all())
    fade = cells[0, 8:].tolist()
    assert fade == sorted(fade, reverse=True) and 0 < fade[0] < 1 and fade[-1] == 0
    hard = covered(Region(prompt="x", mask=str(tmp_path / "mask.png")), 1, (32, 32), 2)
    assert set(hard.flatten().tolist()) == {0.0, 1.0}


def test_the_base_is_whole_when_it_is_stopped(gated):
    both = {"a": learned(gated, "<a>", 1)}
    before, steps = tiny.snapshot(gated), iter([False, True])
    request = asked(Region(prompt="a <a>", box=LEFT), concepts=("a",), steps=4)
    with pytest.raises(Cancelled):
        generate(gated, request, concepts=both, should_stop=lambda: next(steps))
    assert tiny.same(before, gated)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Region(prompt="a fox"), "neither a box nor a mask"),
        (lambda: Region(prompt="a fox", box=(0, 0, 1, 1), mask="m.png"), "a box and a mask; give one"),
        (lambda: Region(prompt="a fox", box=(0, 0, 2.5, 1)), "fractions from 0 to 1"),
        (lambda: Region(prompt="a fox", box=(0.5, 0, 0.5, 1)), "has no area"),
        (lambda: region_use("a fox"), "not a prompt with its place"),
        (lambda: region_use("a fox:1,2"), "not a prompt with its place"),
        (lambda: asked(*[Region(prompt="a fox", box=LEFT)] * 11), "at most 10"),
    ],
)
def test_a_region_that_cannot_be_is_one_sentence(make, said):
    with pytest.raises((RequestError, ValueError), match=said):
        make()


def test_an_empty_or_missing_mask_is_named(gated, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    for name, said in (("black.png", "Region 1: in black.png nothing is white"), ("none.png", "Region 1: .*none.png")):
        with pytest.raises(RequestError, match=said):
            latents(gated, asked(Region(prompt="a fox", mask=str(tmp_path / name))))
