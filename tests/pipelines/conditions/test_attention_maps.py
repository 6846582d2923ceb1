"""Attention maps: shares of attention by word, without a change of the picture."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from pipelines.conditions.attention_maps import AttentionMaps
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.models.attention import joint_layers, looked_up, shown
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
    assert list(maps) == [word for word, _ in base.family.words(base, request.prompt)]
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
    assert [word for word, _ in base.family.words(base, "a fox and a house")] == ["a", "fox", "and", "a (2)", "house"]
    assert [places for _, places in base.family.words(base, "a fox")] == [[1], [2]]


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


@pytest.fixture(scope="module", params=list(tiny_flows.PIPELINES))
def flow(request):
    return tiny_flows.base(request.param)


def test_transformers_are_watched_where_picture_and_text_attend_to_each_other(flow):
    """Nothing of the picture changes, and the shares of a prompt's words are less than all."""
    asked_ = asked("a fox, a thing", count=2, scheduler="euler", negative_prompt="a cat")
    watching = AttentionMaps(asked_.prompt)
    before = tiny.snapshot(flow)
    drawn = generate(flow, asked_, conditions=[watching]).latents
    assert drawn.equal(generate(flow, asked_).latents) and tiny.same(before, flow)
    side = 32 // flow.factor
    maps = watching.maps(side, side)
    assert list(maps) == ["a", "fox", ",", "a (2)", "thing"]
    total = torch.stack(list(maps.values())).sum(dim=0)
    assert total.shape == (2, side, side) and bool((total > 0).all()) and bool((total < 1).all())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in joint_layers(flow.denoiser))


def test_words_of_transformers_stand_where_their_tokens_do(flow):
    """A word of several tokens has all their places, and the row of text at them is what the word changes alone."""
    family = flow.family
    (_, a), (_, fox), (_, hat) = family.words(flow, "a fox hat")
    assert family.words(flow, "a (fox:1.3) hat") == family.words(flow, "a fox hat")
    told, other = (family.encode_text(flow, [text], plain=True) for text in ("a fox hat", "a fox cat"))
    states, others = (next(one for one in given.values() if one.ndim > 2)[0].flatten(1) for given in (told, other))
    differs = (states != others).any(dim=1).nonzero().flatten().tolist()
    assert min(a) < min(fox) < min(hat) <= max(hat) < len(states)
    # What was read before the word cannot know of it where the reader is causal: the first that differs is the word.
    assert min(differs) == (0 if family.name == "flux1" else min(hat))


def test_seats_of_picture_and_text_are_what_changes_with_each(flow):
    """In the first layer the tokens of the text do not know the picture yet; those of the picture differ with it."""
    keys, side = [], 32 // flow.factor
    told = flow.family.encode_text(flow, ["a fox"]) | flow.family.told_scale(flow, 1.0, 1)
    for seed in (1, 2):
        latents = torch.randn(1, flow.channels, side, side, generator=torch.Generator().manual_seed(seed))
        seen = []
        with torch.no_grad(), shown(flow, lambda query, key, mask, scale, seen=seen: seen.append(key)):
            flow.family.predict(flow, latents, torch.tensor(0.5), told)
        assert len(seen) == len(joint_layers(flow.denoiser))
        keys.append(seen[0][0].transpose(0, 1).flatten(1))
    differs = (keys[0] - keys[1]).abs().amax(dim=1) > 1e-5
    tokens = side**2 // (flow.multiple // flow.factor) ** 2
    begin, text = flow.family.seats(len(differs), tokens)
    assert bool(differs[begin : begin + tokens].all())
    assert not differs[[text + place for _, places in flow.family.words(flow, "a fox") for place in places]].any()


def test_joint_attention_is_that_of_torch():
    """Shares of the keys are what torch's own function gives for values of one each; masks, and fewer key heads."""
    query, key, value = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.eye(6).expand(2, 2, 6, 6)
    mask = torch.rand(2, 1, 1, 6) > 0.3
    mask[..., 0] = True
    given = {"attn_mask": mask, "enable_gqa": True, "scale": 0.2}
    shares = scaled_dot_product_attention(query, key, value, **given).mean(dim=1)
    seen = looked_up(query, key, mask, 0.2, slice(1, 5), [0, 3, 5])
    torch.testing.assert_close(seen, shares[:, 1:5][..., [0, 3, 5]])
    added = torch.zeros(2, 1, 6, 6).masked_fill(torch.rand(2, 1, 6, 6) > 0.8, -1e4)
    shares = scaled_dot_product_attention(query, key, value, attn_mask=added, enable_gqa=True).mean(dim=1)
    torch.testing.assert_close(looked_up(query, key, added, None, slice(2, 6), [1, 2]), shares[:, 2:][..., [1, 2]])


def test_a_base_that_cannot_be_watched_and_maps_of_nothing_are_sentences():
    base = tiny_flows.base("sd3")
    base.denoiser.transformer_blocks = torch.nn.ModuleList()
    with pytest.raises(RequestError, match=r"Stable Diffusion 3.*SD3Transformer2DModel.*has no layers"):
        generate(base, asked(scheduler="euler"), conditions=[AttentionMaps("a fox")])
    with pytest.raises(RequestError, match="No attention was seen"):
        AttentionMaps("a fox").maps(8, 8)
