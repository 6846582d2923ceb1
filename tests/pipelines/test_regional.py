"""Weights of several concepts act in their own boxes: what one learned is not added to what another did."""

from __future__ import annotations

import pytest
import torch

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.concepts.weight_deltas import LowRank
from pipelines.errors import Cancelled
from pipelines.generation import generate
from pipelines.gligen.tokens import UNNAMED, read_as
from pipelines.models.memory.quantised import quantise
from pipelines.predictions.regional import View, boxed, boxes_seen, composed
from pipelines.predictions.weights import Weights
from pipelines.request.request import Box, ConceptUse, Grounding, Guidance, Request
from tests import tiny

LEFT, RIGHT = (0.0, 0.0, 0.375, 1.0), (0.625, 0.0, 1.0, 1.0)
ENDS = ("to_v.weight", "to_out.0.weight", "v_proj.weight")
COLUMNS = {"left": slice(0, 3), "between": slice(3, 5), "right": slice(5, 8)}


def learned(base, token, seed, text=False):
    """Return a concept of a word and low-rank changes of every cross-attention, and of the text encoder if asked."""
    g = torch.Generator().manual_seed(seed)
    changes = {}
    networks = {"unet": base.unet} | ({"text_encoder": base.text_encoders[0]} if text else {})
    for network, module in networks.items():
        for name, parameter in module.named_parameters():
            if name.endswith(ENDS) and "fuser" not in name:
                down, up = (
                    torch.randn(2, parameter.shape[1], generator=g),
                    torch.randn(len(parameter), 2, generator=g),
                )
                changes[f"{network}.{name}"] = LowRank(down, up, 1.0)
    card = ConceptCard(token=token, family="sd1", init="fox", method="dreambooth")
    return Concept(card, [rows + 0.1 * seed for rows in single_rows(base, "fox")], changes)


@pytest.fixture(scope="module")
def base():
    return tiny.gated()


@pytest.fixture(scope="module")
def pair(base):
    return {"a": learned(base, "<a>", 1), "b": learned(base, "<b>", 2)}


def asked(*, boxes=(("<a>", LEFT), ("<b>", RIGHT)), concepts=("a", "b"), region=None, **fields):
    return Request(
        prompt="a <a> and a <b>",
        boxes=[Box(phrase=phrase, box=box) for phrase, box in boxes],
        concepts=[ConceptUse(source=name) for name in concepts],
        grounding=Grounding(beta=1.0, region=region),
        guidance=Guidance(scale=3.0, rescale=0.0),
        **{"scheduler": "ddim", "steps": 1, "width": 16, "height": 16} | fields,
    )


def latents(base, concepts, request):
    return generate(base, request, concepts=concepts).latents[0]


def words_alone(concept):
    return Concept(concept.card, concept.rows)


@pytest.mark.parametrize("text", [False, True], ids=["UNet", "UNet and text encoder"])
def test_in_its_box_a_concept_draws_as_alone_and_elsewhere_the_base_does(base, text):
    """After one step nothing has spread yet: each place tells whose prediction it had."""
    both = {"a": learned(base, "<a>", 1, text), "b": learned(base, "<b>", 2, text)}
    before = tiny.snapshot(base)
    drawn = latents(base, both, asked())
    assert tiny.same(before, base)
    alone = {
        "left": {"a": both["a"], "b": words_alone(both["b"])},
        "between": {name: words_alone(one) for name, one in both.items()},
        "right": {"a": words_alone(both["a"]), "b": both["b"]},
    }
    for place, concepts in alone.items():
        theirs = latents(base, concepts, asked())
        torch.testing.assert_close(drawn[..., COLUMNS[place]], theirs[..., COLUMNS[place]], atol=1e-5, rtol=1e-4)
        for other in COLUMNS.keys() - {place}:
            assert (drawn[..., COLUMNS[other]] - theirs[..., COLUMNS[other]]).abs().max() > 1e-3, (place, other)


def test_the_seed_decides_and_the_strength_counts(base, pair):
    request = asked(steps=3)
    assert torch.equal(latents(base, pair, request), latents(base, pair, request))
    weaker = request.model_copy(update={"concepts": (ConceptUse(source="a", strength=0.5), ConceptUse(source="b"))})
    assert (latents(base, pair, weaker) - latents(base, pair, request)).abs().max() > 1e-3


def test_without_regions_changes_add_up_as_before(base, pair):
    drawn = latents(base, pair, asked(region=False))
    assert (drawn - latents(base, pair, asked())).abs().max() > 1e-3
    backwards = latents(base, dict(reversed(pair.items())), asked(region=False, concepts=("b", "a")))
    torch.testing.assert_close(drawn, backwards, atol=1e-4, rtol=1e-3)


def test_one_concept_and_those_learned_together_are_as_they_were(base, pair):
    twin = Concept(pair["b"].card, pair["b"].rows, pair["a"].changes)
    assert boxed(asked(), [pair["a"], twin]) == {}
    assert boxed(asked(), [pair["a"], words_alone(pair["b"])]) == {}
    assert boxed(asked(), []) == {}
    assert list(boxed(asked(), [pair["a"], pair["b"]])) == [0, 1]
    (box,) = boxed(asked(boxes=(("a <a>", LEFT), ("house", RIGHT))), [pair["a"], pair["b"]])[0]
    assert box.box == LEFT


def test_a_concept_that_no_box_names_acts_everywhere(base, pair):
    named = asked(boxes=(("<a>", LEFT),), region=True)
    drawn = latents(base, pair, named)
    theirs = latents(base, {"a": words_alone(pair["a"]), "b": pair["b"]}, named)
    torch.testing.assert_close(drawn[..., 3:], theirs[..., 3:], atol=1e-5, rtol=1e-4)
    assert (drawn[..., :3] - theirs[..., :3]).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_on_a_base_in_few_bits_each_box_has_the_weights_of_its_concept_too(form):
    base = tiny.gated()
    both = {"a": learned(base, "<a>", 1), "b": learned(base, "<b>", 2)}
    quantise(base.denoiser, form)
    drawn = latents(base, both, asked())
    alone = {"left": {**both, "b": words_alone(both["b"])}, "right": {**both, "a": words_alone(both["a"])}}
    for place, concepts in alone.items():
        theirs = latents(base, concepts, asked())
        torch.testing.assert_close(drawn[..., COLUMNS[place]], theirs[..., COLUMNS[place]], atol=1e-5, rtol=1e-4)
        bare = latents(base, {name: words_alone(one) for name, one in both.items()}, asked())
        assert (drawn[..., COLUMNS[place]] - bare[..., COLUMNS[place]]).abs().max() > 1e-3


def test_the_base_is_whole_again_when_it_is_stopped(base, pair):
    before, steps = tiny.snapshot(base), iter([False, True])
    with pytest.raises(Cancelled):
        generate(base, asked(steps=4), concepts=pair, should_stop=lambda: next(steps))
    assert tiny.same(before, base)


def test_predictions_are_put_together_place_by_place():
    base = torch.zeros(1, 1, 1, 4)
    first, second = (torch.full((1, 1, 1, 4), value) for value in (1.0, 3.0))
    one = View(torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]]), Weights())
    two = View(torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]]), Weights())
    assert composed(base, [(one, first), (two, second)]).flatten().tolist() == [1.0, 2.0, 3.0, 0.0]
    assert composed(base, []) is base


def test_a_concept_sees_its_box_as_of_a_thing_without_a_name_and_the_others_as_of_their_kinds(base, pair):
    request = asked(boxes=(("a <a>", LEFT), ("a <b>", RIGHT), ("house", (0.4, 0.4, 0.6, 0.6))))
    for index, phrases in ((0, ["a <a>", "a fox", "house"]), (1, ["a fox", "a <b>", "house"])):
        seen = boxes_seen(request, list(pair.values()), index)
        assert [box.phrase for box in seen.sets[0]] == phrases
        assert list(seen.learned) == [("<a>", "<b>")[index]]
        assert read_as(phrases, "pocket", seen.learned)[index] == UNNAMED["pocket"]
