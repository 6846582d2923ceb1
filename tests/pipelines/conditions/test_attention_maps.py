"""Attention maps: shares of attention by word, without a change of the picture."""

from __future__ import annotations

import pytest
import torch

from pipelines.conditions.attention_maps import AttentionMaps, words_of
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.models.loading import load
from pipelines.request.guidance import Prompt
from pipelines.request.regions import Region
from pipelines.request.request import Box, ConceptUse, Grounding, Guidance, Request
from tests import tiny, tiny_flows
from tests.pipelines.test_regional import learned


def asked(prompt="a fox", **fields):
    given = {"steps": 2, "scheduler": "ddim", "width": 32, "height": 32, "guidance": Guidance(scale=3.0)}
    return Request(prompt=prompt, **(given | fields))


@pytest.fixture(scope="module")
def base():
    return tiny.open_gates(tiny.gated())


def test_the_picture_stays_and_all_shares_sum_up_to_less_than_everything(base):
    before, processors = tiny.snapshot(base), {name: id(one) for name, one in base.unet.attn_processors.items()}
    request = asked(count=2)
    watching = AttentionMaps(request.prompt)
    drawn = generate(base, request, conditions=[watching]).latents
    assert drawn.equal(generate(base, request).latents) and tiny.same(before, base)
    assert {name: id(one) for name, one in base.unet.attn_processors.items()} == processors
    maps = watching.maps(16, 16)
    assert list(maps) == [word for word, _ in words_of(base, request.prompt)]
    total = torch.stack(list(maps.values())).sum(dim=0)
    assert total.shape == (2, 16, 16) and bool((total > 0).all()) and bool((total < 1).all())


def test_words_kept_to_a_box_are_looked_up_there_alone(base):
    box = {"boxes": (Box(phrase="fox", box=(0, 0, 0.5, 1)),), "grounding": Grounding(beta=1.0, region=True)}
    watching = AttentionMaps("a fox")
    generate(base, asked(**box), conditions=[watching])
    fox = watching.maps(16, 16)["fox"][0]
    assert float(fox[:, 11:].max()) < 1e-6 < float(fox[:, :4].min())


def test_regions_and_further_prompts_are_not_counted_among_the_words(base):
    plain, more = AttentionMaps("a fox"), AttentionMaps("a fox")
    generate(base, asked(steps=1), conditions=[plain])
    others = {"also": (Prompt(prompt="a dog"),)}
    generate(base, asked(steps=1, **others), conditions=[more])
    torch.testing.assert_close(more.maps(8, 8)["fox"], plain.maps(8, 8)["fox"])
    whole, parted = AttentionMaps("a fox"), AttentionMaps("a fox")
    box = {"grounding": Grounding(beta=0.0)}
    generate(base, asked(steps=1, **box), conditions=[whole])
    generate(base, asked(steps=1, regions=(Region(prompt="a dog", box=(0, 0, 0.5, 1)),), **box), conditions=[parted])
    torch.testing.assert_close(parted.maps(8, 8)["fox"], whole.maps(8, 8)["fox"])


@pytest.mark.parametrize("name", ["pag", "seg", "grounding scale", "autoguidance"])
def test_only_the_prediction_under_the_prompt_is_counted(base, name):
    """At the first step it is the same under every guidance; a later one that stops changes nothing of its shape."""
    box = {"boxes": (Box(phrase="fox", box=(0, 0, 0.5, 1)),), "count": 2}
    more = {"grounding": Grounding(beta=1.0, scale=2.0)} if name == "grounding scale" else {}
    concepts = {"a": learned(base, "<a>", 1)} if name == "autoguidance" else {}
    box |= {"concepts": tuple(ConceptUse(source=one) for one in concepts)}
    preset = {} if name == "grounding scale" else {"preset": name}
    plain, other, stopped = (AttentionMaps("a fox") for _ in range(3))
    generate(base, asked(steps=1, **{"grounding": Grounding(beta=1.0)} | box), conditions=[plain], concepts=concepts)
    told = {"grounding": Grounding(beta=1.0)} | more | box
    guided = {"guidance": Guidance(scale=3.0, **preset)}
    generate(base, asked(**{"steps": 1} | told | guided), conditions=[other], concepts=concepts)
    torch.testing.assert_close(other.maps(8, 8)["fox"], plain.maps(8, 8)["fox"])
    guided = {"guidance": Guidance(scale=3.0, stop=0.5, **preset)}
    generate(base, asked(**{"steps": 2} | told | guided), conditions=[stopped], concepts=concepts)
    assert stopped.maps(8, 8)["fox"].shape == (2, 8, 8)


def test_words_are_whole_and_counted():
    base = load("pocket")
    assert [word for word, _ in words_of(base, "a fox and a house")] == ["a", "fox", "and", "a (2)", "house"]
    assert [places for _, places in words_of(base, "a fox")] == [[1], [2]]


def test_on_pocket_a_thing_is_looked_up_where_it_is_drawn():
    base = load("pocket")
    request = Request(prompt="a fox to the left of a house on a blue background", steps=8, seed=1)
    watching = AttentionMaps(request.prompt)
    generate(base, request, conditions=[watching])
    fox, house = (watching.maps(16, 16)[word][0] for word in ("fox", "house"))

    def middle(one):
        share = (one - one.min()).sum(dim=0)
        return float((share * torch.arange(16)).sum() / share.sum())

    assert middle(fox) + 1 < middle(house)


def test_a_base_without_a_unet_and_maps_of_nothing_are_sentences():
    with pytest.raises(RequestError, match="cross-attention of a UNet"):
        generate(tiny_flows.base("sd3"), asked(scheduler="euler", width=32), conditions=[AttentionMaps("a fox")])
    with pytest.raises(RequestError, match="No picture was drawn"):
        AttentionMaps("a fox").maps(8, 8)
