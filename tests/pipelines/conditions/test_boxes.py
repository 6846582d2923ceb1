"""Boxes: what GLIGEN's own pipeline gives, and right where that one is not."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionGLIGENPipeline
from PIL import Image

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.conditions.boxes import Boxes
from pipelines.conditions.inpaint import Inpainting
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.models.loading import from_pipeline, load
from pipelines.request.request import Box, ConceptUse, Grounding, Guidance, Request
from tests import tiny

FOX = Box(phrase="a fox", box=(0.1, 0.2, 0.5, 0.6))
HOUSE = Box(phrase="a house", box=(0.55, 0.3, 0.95, 0.9))


def asked(*boxes, beta=1.0, scale=4.0, **fields):
    return Request(
        prompt="a fox to the left of a house",
        boxes=boxes,
        grounding=Grounding(beta=beta),
        guidance=Guidance(scale=scale, rescale=0.0),
        **{"scheduler": "ddim", "steps": 6, "seed": 5, "width": 16, "height": 16} | fields,
    )


def theirs(request):
    """Latents of the diffusers pipeline for the same noise, on the same weights."""
    parts = tiny.sd_pipeline()
    tiny.open_gates(from_pipeline(parts, "tiny"))
    kind = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}[request.scheduler]
    parts.register_modules(scheduler=kind.from_config(parts.scheduler.config))
    own = {name: part for name, part in parts.components.items() if name != "image_encoder"}
    pipeline = StableDiffusionGLIGENPipeline(**own, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        request.prompt,
        num_images_per_prompt=request.count,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance.scale,
        gligen_scheduled_sampling_beta=request.grounding.beta,
        gligen_phrases=[box.phrase for box in request.boxes],
        gligen_boxes=[list(box.box) for box in request.boxes],
        generator=[torch.Generator().manual_seed(request.seed + i) for i in range(request.count)],
        output_type="latent",
    ).images


@pytest.mark.parametrize(
    "request_",
    [
        asked(FOX, HOUSE, beta=0.3),
        asked(FOX, HOUSE, beta=1.0),
        asked(FOX, beta=0.5, scheduler="euler", count=2),
        asked(FOX, HOUSE, width=24, height=16),
        asked(FOX, HOUSE, scale=1.0),
        asked(FOX, HOUSE, beta=0.0),
    ],
    ids=["beta 0.3", "beta 1", "euler", "not square", "no guidance", "beta 0"],
)
def test_latents_equal_those_of_the_gligen_pipeline(request_):
    ours = generate(tiny.gated(), request_).latents
    torch.testing.assert_close(ours, theirs(request_), atol=1e-4, rtol=0)


def test_boxes_move_the_picture_and_phrases_matter():
    base = tiny.gated()
    plain, boxed, moved, renamed = (
        generate(base, asked(*boxes)).latents
        for boxes in ((), (FOX,), (HOUSE.model_copy(update={"phrase": "a fox"}),), (HOUSE,))
    )
    for one, other in ((plain, boxed), (boxed, moved), (moved, renamed)):
        assert (one - other).abs().max() > 1e-2


def test_the_order_of_boxes_does_not_matter():
    base = tiny.gated()
    one, other = generate(base, asked(FOX, HOUSE)).latents, generate(base, asked(HOUSE, FOX)).latents
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_without_boxes_the_picture_is_bit_identical_whatever_the_gates():
    plain = generate(tiny.sd(), asked()).latents
    assert torch.equal(plain, generate(tiny.gated(), asked()).latents)
    assert torch.equal(plain, generate(tiny.gated(), asked(), conditions=[Boxes([[]])]).latents)
    # Gates that were never trained are closed.
    torch.testing.assert_close(generate(tiny.sd(), asked(FOX)).latents, plain, atol=1e-5, rtol=0)


def test_each_picture_of_a_batch_may_have_its_own_boxes():
    base = tiny.gated()
    request = asked(count=3)
    sets = [[FOX], [], [HOUSE, FOX]]
    together = generate(base, request, conditions=[Boxes(sets, 1.0)]).latents
    for index, boxes in enumerate(sets):
        alone = generate(base, asked(*boxes, seed=request.seed + index)).latents
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


def test_the_base_is_as_before_and_another_pipeline_is_not_hampered():
    base = tiny.gated()
    before = tiny.snapshot(base)
    states = {name: dict(vars(module)) for name, module in base.unet.named_modules()}
    generate(base, asked(FOX, beta=0.3))
    with pytest.raises(RuntimeError, match="on purpose"), Boxes([[FOX]]).attach(base, 1):
        raise RuntimeError("on purpose")
    assert tiny.same(before, base)
    assert all(vars(module).keys() == states[name].keys() for name, module in base.unet.named_modules())
    assert all(module.enabled for name, module in base.unet.named_modules() if name.endswith("fuser"))


def test_layers_that_another_pipeline_left_switched_off_act_nonetheless():
    base = tiny.gated()
    expected = generate(base, asked(FOX)).latents
    for name, module in base.unet.named_modules():
        if name.endswith("fuser"):
            module.enabled = False
    assert torch.equal(generate(base, asked(FOX)).latents, expected)


def test_half_precision_follows_the_same_boxes():
    full = generate(tiny.gated(), asked(FOX, HOUSE)).latents
    half = generate(tiny.gated().to("cpu", torch.bfloat16), asked(FOX, HOUSE)).latents
    assert half.dtype == torch.float32 and (half - full).abs().mean() < 0.1 * full.std()


def test_a_learned_concept_stands_in_a_box():
    base = tiny.gated()
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    card = ConceptCard(token="<my-fox>", vectors=2, family=base.family.name)
    concept = Concept(card, (rows,))
    request = asked(Box(phrase="<my-fox>", box=FOX.box), concepts=(ConceptUse(source="x"),))
    named = generate(base, request, concepts={"x": concept}).latents
    plain = generate(base, asked(FOX), concepts={}).latents
    assert (named - plain).abs().max() > 1e-2
    weaker = request.model_copy(update={"concepts": (ConceptUse(source="x", strength=0.5),)})
    assert not torch.equal(generate(base, weaker, concepts={"x": concept}).latents, named)
    of_a_kind = Concept(card.model_copy(update={"init": "fox"}), (rows,))
    fox = asked(Box(phrase="fox", box=FOX.box))
    assert torch.equal(generate(base, request, concepts={"x": of_a_kind}).latents, generate(base, fox).latents)


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((0.5, 0.2, 0.1, 0.6), "right edge left of its left edge"),
        ((0.1, 0.6, 0.5, 0.2), "bottom edge above its top edge"),
        ((-0.1, 0.2, 0.5, 0.6), "outside the picture"),
        ((0.1, 0.2, 1.5, 0.6), "outside the picture"),
        ((0.1, 0.2, 0.1, 0.6), "no area"),
        ((float("nan"), 0.2, 0.5, 0.6), "not finite"),
        ((0.1, 0.2, float("inf"), 0.6), "not finite"),
        ((10, 20, 50, 60), "looks like pixels"),
    ],
)
def test_a_box_that_cannot_be_is_refused_by_number_and_name(box, said):
    with pytest.raises(RequestError, match=said) as error:
        Request.read({"prompt": "a fox", "boxes": [FOX.model_dump(), {"phrase": "a red fox", "box": box}]})
    assert "box 2" in error.value.message and "'a red fox'" in error.value.message


@pytest.mark.parametrize("fields", [{"phrase": ""}, {"box": (0.1, 0.2)}, {"box": ("a", 0, 1, 1)}, {"colour": "red"}])
def test_boxes_of_another_shape_are_refused_by_number(fields):
    with pytest.raises(RequestError, match="box 1"):
        Request.read({"prompt": "a fox", "boxes": [FOX.model_dump() | fields]})


def test_no_limit_is_silently_cut():
    def many(count):
        return [{"phrase": f"fox {i}", "box": FOX.box} for i in range(count)]

    with pytest.raises(RequestError, match=r"box 31 \('fox 30'\)"):
        Request.read({"prompt": "a fox", "boxes": many(31)})
    base = tiny.gated()
    with pytest.raises(RequestError, match=r"Box 31 \('fox 30'\)"):
        generate(base, asked(), conditions=[Boxes([[Box(**one) for one in many(31)]])])
    full = Request.read({"prompt": "a fox", "boxes": many(30)})
    assert len(full.boxes) == 30 and full.boxes[29].phrase == "fox 29"


def test_what_the_base_cannot_follow_is_refused_by_number_and_name():
    base = tiny.gated()
    for boxes, said in (
        ((FOX, Box(phrase="<my-wolf>", box=HOUSE.box)), r"Box 2 \('<my-wolf>'\): <my-wolf> is no concept"),
        ((Box(phrase="a fox", box=FOX.box, picture="fox.png"),), r"Box 1 \('a fox'\): .* no pictures"),
        ((Box(phrase="a fox " * 40, box=FOX.box),), "phrase 'a fox"),
    ):
        with pytest.raises(RequestError, match=said):
            generate(base, asked(*boxes))
    with pytest.raises(RequestError, match=r"Box 1 \('a fox'\): tiny-xl has no grounding\. .*--grounding-adapter"):
        generate(tiny.sdxl(), asked(FOX))
    with pytest.raises(RequestError, match="2 sets of boxes for 3 pictures"):
        generate(base, asked(count=3), conditions=[Boxes([[FOX], [HOUSE]])])
    with pytest.raises(RequestError, match="boxes twice"):
        generate(base, asked(FOX), conditions=[Boxes([[HOUSE]])])


def test_boxes_and_a_mask_compose():
    """A kept part of the picture stays to the bit; in the repainted part the boxes act."""
    base = tiny.gated()
    picture = Image.new("RGB", (16, 16), (200, 40, 40))
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    drawn = [
        generate(base, asked(*boxes), conditions=[Inpainting(picture, mask)]).pictures[0].convert("RGB")
        for boxes in ((), (HOUSE,))
    ]
    left, right = (0, 0, 8, 16), (8, 0, 16, 16)
    assert all(one.crop(left).tobytes() == picture.crop(left).tobytes() for one in drawn)
    assert drawn[0].crop(right).tobytes() != drawn[1].crop(right).tobytes()


def test_how_long_boxes_act_is_the_base_s_own_unless_asked():
    assert asked(FOX, beta=None).resolved(tiny.sd().defaults).grounding.beta == 0.3, "the official models'"
    assert asked(FOX, beta=None).resolved(load("pocket").defaults).grounding.beta == 1
    assert asked(FOX, beta=0.5).resolved(load("pocket").defaults).grounding.beta == 0.5
