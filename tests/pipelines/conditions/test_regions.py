"""Words of a boxed thing act in its box alone."""

from __future__ import annotations

import pytest
import torch

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.condition import Branch, Step
from pipelines.conditions.regions import Regions, on_grid
from pipelines.conditions.text import Text
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.models.loading import set_attention
from pipelines.request.request import Box, ConceptUse, Grounding, Guidance, Request
from tests import tiny

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
STEP = Step(0, 4, torch.tensor(900), torch.tensor(600))
PROMPT = "a fox and a house"


def asked(*boxes, region=True, **fields):
    return Request(
        boxes=boxes,
        grounding=Grounding(beta=1.0, region=region),
        guidance=Guidance(scale=4.0, rescale=0.0),
        **{"prompt": PROMPT, "scheduler": "ddim", "steps": 4, "width": 16, "height": 16} | fields,
    )


def test_cells_of_a_box():
    grid = on_grid((0.25, 0.5, 0.75, 1.0), 8, 4)
    assert grid.tolist() == [[False] * 8] * 2 + [[False] * 2 + [True] * 4 + [False] * 2] * 2
    assert on_grid((0.9, 0.9, 0.91, 0.91), 2, 2).tolist() == [[False, False], [False, True]], "never empty"
    assert on_grid((0.999, 0.999, 1.0, 1.0), 4, 4).sum() == 1


def attention_outputs(base, prompt, boxes):
    """Return the output of the first cross-attention for one noisy picture; regions drawn for `boxes`."""
    seen = []
    layer = next(m for n, m in base.unet.named_modules() if n.endswith("attn2"))
    hook = layer.register_forward_hook(lambda module, args, out: seen.append(out))
    text, regions = Text(prompt, "", (16, 16)), Regions(boxes, prompt, "", (16, 16))
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with text.attach(base, 1), regions.attach(base, 1), torch.no_grad():
        arguments = text.conditioning(Branch.POSITIVE, STEP) | regions.conditioning(Branch.POSITIVE, STEP)
        base.unet(sample, STEP.timestep, **arguments)
    hook.remove()
    return seen[0].reshape(8, 8, -1)


def test_a_word_changes_nothing_outside_its_box():
    """With the last word another, only places in its box and what comes after it in the text could tell."""
    base = tiny.sd()
    # The words after a phrase know of it: here there are none but the end of the text, hidden below as well.
    window = base.tokenizers[0].model_max_length
    outputs = []
    for noun in ("house", "car"):
        prompt = f"a fox and a {noun}"
        text, regions = Text(prompt, "", (16, 16)), Regions([Box(phrase=noun, box=RIGHT)], prompt, "", (16, 16))
        with text.attach(base, 1), regions.attach(base, 1), torch.no_grad():
            masks = regions.conditioning(Branch.POSITIVE, STEP)["cross_attention_kwargs"]["regions"]
            word = int((masks["64"][0, 0] < 0).nonzero()[0])
            masks["64"][..., word:] = masks["64"][..., word : word + 1]
            context = text.conditioning(Branch.POSITIVE, STEP)["encoder_hidden_states"]
            layer = next(m for n, m in base.unet.named_modules() if n.endswith("attn2"))
            hidden = torch.randn(1, 64, layer.query_dim, generator=torch.Generator().manual_seed(0))
            outputs.append(layer(hidden, encoder_hidden_states=context, regions=masks).reshape(8, 8, -1))
        assert context.shape[1] == window
    difference = (outputs[0] - outputs[1]).abs().amax(dim=-1)
    assert difference[:, :4].max() == 0
    assert difference[:, 4:].min() > 1e-6


def test_boxes_over_everything_are_as_no_regions():
    base = tiny.gated()
    whole = (Box(phrase="fox", box=(0, 0, 1, 1)), Box(phrase="house", box=(0, 0, 1, 1)))
    kept, free = (generate(base, asked(*whole, region=region)).latents for region in (True, False))
    torch.testing.assert_close(kept, free, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_regions_act_and_leave_no_processor_behind(attention):
    base = tiny.gated()
    set_attention(base.unet, attention)
    before, processors = tiny.snapshot(base), base.unet.attn_processors
    boxes = (Box(phrase="a fox", box=LEFT), Box(phrase="the house", box=RIGHT))
    kept, free = (generate(base, asked(*boxes, region=region)).latents for region in (True, False))
    assert (kept - free).abs().max() > 1e-3
    assert tiny.same(before, base)
    assert all(base.unet.attn_processors[name] is processor for name, processor in processors.items())


def test_both_implementations_of_attention_hide_the_same():
    boxes = [Box(phrase="fox", box=LEFT)]
    outputs = []
    for attention in ("sdpa", "eager"):
        base = tiny.sd()
        set_attention(base.unet, attention)
        outputs.append(attention_outputs(base, PROMPT, boxes))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)


def test_regions_of_pictures_that_are_not_square_and_long_prompts():
    base = tiny.gated()
    longer = f"{PROMPT}, {', '.join(['a small cat'] * 40)}"
    request = asked(Box(phrase="fox", box=LEFT), prompt=longer, negative_prompt="a dog", width=24, height=16)
    assert generate(base, request).latents.shape == (1, 4, 8, 12)
    late = asked(Box(phrase="tree", box=RIGHT), prompt=f"{longer}, a tree")
    base_two = tiny.gated()
    assert not torch.equal(
        generate(base_two, late).latents,
        generate(base_two, late.model_copy(update={"grounding": Grounding(beta=1.0)})).latents,
    )


def test_a_concept_of_several_vectors_is_kept_to_its_box():
    base = tiny.gated()
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    concept = Concept(ConceptCard(token="<my-fox>", vectors=2, init="fox", family=base.family.name), (rows,))
    request = asked(
        Box(phrase="a <my-fox>", box=LEFT),
        Box(phrase="house", box=RIGHT),
        prompt="a <my-fox> and a house",
        concepts=(ConceptUse(source="x"),),
    )
    with concept.attach(base) as with_word:
        regions = Regions(request.boxes, request.prompt, "", (16, 16))
        with regions.attach(with_word, 1):
            mask = regions.conditioning(Branch.POSITIVE, STEP)["cross_attention_kwargs"]["regions"]["64"]
    hidden = (mask[0] < 0).reshape(8, 8, -1)
    assert hidden[0, 7].sum() == 2 and hidden[0, 0].sum() == 1, "two vectors left, one word right"
    assert generate(base, request, concepts={"x": concept}).latents.isfinite().all()


def test_boxes_of_one_phrase_share_its_words():
    boxes = [Box(phrase="fox", box=(0, 0, 0.25, 1)), Box(phrase="a fox", box=(0.75, 0, 1, 1))]
    regions = Regions(boxes, "two things: a fox beside a fox", "", (16, 16))
    with regions.attach(tiny.sd(), 2):
        mask = regions.conditioning(Branch.POSITIVE, STEP)["cross_attention_kwargs"]["regions"]["64"]
    hidden = (mask[1] < 0).reshape(8, 8, -1).any(dim=-1)
    assert hidden[0].tolist() == [False] * 2 + [True] * 4 + [False] * 2


def test_a_phrase_the_prompt_does_not_say_is_refused_by_number_and_name():
    boxes = (Box(phrase="a fox", box=LEFT), Box(phrase="a red car", box=RIGHT))
    with pytest.raises(RequestError, match=r"Box 2 \('a red car'\): the prompt does not say 'red car'"):
        generate(tiny.gated(), asked(*boxes))


def test_the_negative_branch_sees_everything_from_everywhere():
    base = tiny.sd()
    regions = Regions([Box(phrase="house", box=RIGHT)], PROMPT, "a dog", (16, 16))
    with regions.attach(base, 2):
        hidden, free = (regions.conditioning(b, STEP)["cross_attention_kwargs"]["regions"]
                        for b in (Branch.POSITIVE, Branch.NEGATIVE))  # fmt: skip
        assert set(hidden) == set(free) == {"64", "16"}
        for places in free:
            assert free[places].shape == hidden[places].shape and not free[places].any()
            # "a fox and a house" behind the start token: only its fifth word is hidden, from the left half.
            seen = (hidden[places][0] == 0).reshape(-1, 8 if places == "64" else 4, 77)
            assert not seen[:, : seen.shape[1] // 2, 5].any() and seen[:, seen.shape[1] // 2 :, 5].all()
            assert seen[..., :5].all() and seen[..., 6:].all()


def test_words_are_kept_to_their_boxes_where_one_of_several_is_learned():
    base = tiny.gated()
    rows = tuple(torch.randn(1, encoder.config.hidden_size) for encoder in base.text_encoders)
    concept = Concept(ConceptCard(token="<x>", family=base.family.name, vectors=1), rows)
    use = (ConceptUse(source="x"),)

    def made(*phrases, prompt="a <x> beside a house", region=None):
        boxes = tuple(Box(phrase=phrase, box=box) for phrase, box in zip(phrases, (LEFT, RIGHT), strict=False))
        request = Request(
            prompt=prompt, boxes=boxes, concepts=use, steps=1, grounding=Grounding(beta=1.0, region=region)
        )
        return generate(base, request, concepts={"x": concept})

    decided = made("a <x>", "a house")
    assert decided.request.grounding.region is True
    assert torch.equal(decided.latents, made("a <x>", "a house", region=True).latents)
    assert not torch.equal(decided.latents, made("a <x>", "a house", region=False).latents)
    assert made("a <x>").request.grounding.region is False  # there is nothing to leak from
    assert made("a house", "a house").request.grounding.region is False
    assert made("a <x>", "a tree").request.grounding.region is False  # the prompt does not say it
