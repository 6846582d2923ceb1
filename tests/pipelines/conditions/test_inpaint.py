"""Repainting a part of a picture: the rest stays to the bit, and it goes with everything else a request asks for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pipelines import Concept, ConceptCard
from pipelines.concepts.token_embeddings import single_rows
from pipelines.concepts.weight_deltas import Difference, LowRank, applied, check_fits
from pipelines.conditions.inpaint import Inpainting
from pipelines.errors import DataError, ModelError, RequestError
from pipelines.events import Note
from pipelines.generation import generate
from pipelines.models.components import encode
from pipelines.models.loading import load
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import ConceptUse, Guidance, Inpaint, Request
from tests import tiny

BASES = {4: tiny.sd_inpaint(4), 9: tiny.sd_inpaint(9)}


@pytest.fixture(params=[4, 9], ids=["blending", "inpainting-unet"])
def base(request):
    return BASES[request.param]


def picture(width=16, height=16, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def holed(size=(16, 16), box=(4, 4, 12, 10), value=255):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=value)
    return mask


def small(**fields):
    return Request(**({"prompt": "a fox", "steps": 3, "scheduler": "ddim", "width": 16, "height": 16} | fields))


def painted(base, image, mask=None, asked=None, **settings):
    return generate(base, asked or small(), conditions=[Inpainting(image, mask, **settings)]).pictures[0]


def differ(one, other):
    """Return the pixels in which two pictures differ, (H, W)."""
    return (np.asarray(one) != np.asarray(other)).any(axis=-1)


# -- what is kept and what is not -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"strength": 0.7}, {"only_masked": True, "padding": 3}, {"grow": 2}])
def test_untouched_pixels_stay_to_the_bit_and_the_others_change(base, settings):
    image, mask = picture(), holed()
    changed = differ(painted(base, image, mask, **settings), image)
    allowed = np.asarray(Inpainting(image, mask, grow=settings.get("grow", 0)).mask) > 0
    assert not changed[~allowed].any() and changed[allowed].mean() > 0.8


def test_the_result_has_the_picture_s_size_whatever_is_generated(base):
    image, mask = picture(50, 37), holed((50, 37), (11, 9, 30, 21))
    result = generate(base, small(), conditions=[Inpainting(image, mask)])
    assert result.latents.shape[-2:] == (8, 8) and result.pictures[0].size == (50, 37)
    assert not differ(result.pictures[0], image)[np.asarray(mask) == 0].any()


def test_every_picture_of_several_is_pasted(base):
    image, mask = picture(), holed()
    both = generate(base, small(count=2), conditions=[Inpainting(image, mask)]).pictures
    assert differ(*both).any() and not any(differ(one, image)[np.asarray(mask) == 0].any() for one in both)


def test_a_strong_feather_ends_where_it_says(base):
    image, mask = picture(), holed(box=(6, 6, 10, 10))
    changed = differ(painted(base, image, mask, feather=3), image)
    rows, columns = np.indices((16, 16))
    away = np.maximum(np.maximum(6 - rows, rows - 9), np.maximum(6 - columns, columns - 9))
    assert not changed[away > 3].any() and changed[(away > 0) & (away <= 2)].any()


def test_grey_of_a_mask_is_a_share_of_the_new_picture(base):
    image, half = picture(), Image.new("L", (16, 16), 128)
    new, mixed = (np.asarray(painted(base, image, mask), dtype=float) for mask in (Image.new("L", (16, 16), 255), half))
    np.testing.assert_allclose(mixed, (new * 128 + np.asarray(image, dtype=float) * 127) / 255, atol=1)


def test_a_stroke_thinner_than_a_latent_is_painted(base):
    image, mask = picture(), holed(box=(3, 3, 4, 12))
    assert differ(painted(base, image, mask), image)[3:12, 3].mean() > 0.8


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "unipc", "euler", "euler-a", "lcm"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_latents_outside_the_mask_are_the_picture_s_under_a_plain_unet(name, strength):
    base, image, mask = BASES[4], picture(), holed(box=(4, 4, 12, 12))
    asked = small(scheduler=name, steps=4)
    latents = generate(base, asked, conditions=[Inpainting(image, mask, strength=strength)]).latents
    clean = encode(base, to_tensor(image)[None]).mean
    kept = torch.ones(8, 8, dtype=torch.bool)
    kept[2:6, 2:6] = False
    torch.testing.assert_close(latents[..., kept], clean[..., kept])
    assert torch.isfinite(latents).all() and not torch.allclose(latents[..., ~kept], clean[..., ~kept], atol=0.1)


def test_less_strength_stays_nearer_to_the_picture(base):
    image = Image.new("RGB", (16, 16), (200, 30, 60))
    clean = encode(base, to_tensor(image)[None]).mean
    strengths = [generate(base, small(steps=10), conditions=[Inpainting(image, strength=s)]) for s in (0.1, 0.4, 1.0)]
    far = [float((result.latents - clean).abs().mean()) for result in strengths]
    assert far == sorted(far) and far[0] < 0.5 * far[-1]


def test_strength_is_that_share_of_the_steps(base):
    for strength, steps, done in ((1.0, 4, 4), (0.5, 4, 2), (0.29, 100, 29)):
        events = []
        generate(
            base, small(steps=steps), conditions=[Inpainting(picture(), strength=strength)], on_event=events.append
        )
        assert len(events) == done


def test_the_mask_hides_the_picture_from_an_inpainting_unet():
    one, two = picture(seed=1), picture(seed=1)
    two.paste((255, 0, 0), (4, 4, 12, 10))
    hidden = [generate(BASES[9], small(), conditions=[Inpainting(image, holed())]).latents for image in (one, two)]
    assert torch.equal(*hidden)


# -- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "fields", "expected"),
    [
        ((16, 16), {}, (16, 16)),
        ((24, 16), {}, (24, 16)),
        ((160, 160), {}, (16, 16)),
        ((320, 160), {}, (24, 12)),
        ((5, 5), {}, (16, 16)),
        ((320, 160), {"width": 64}, (64, 32)),
        ((320, 160), {"height": 64}, (128, 64)),
        ((320, 160), {"width": 32, "height": 32}, (32, 32)),
        ((20, 1), {}, (72, 4)),
    ],
)
def test_a_size_left_open_is_the_picture_s_or_its_proportions(size, fields, expected):
    sized = Inpainting(picture(*size)).sized(Request(prompt="x", **fields), BASES[4])
    assert (sized.width, sized.height) == expected


def test_the_surroundings_of_a_mask_are_generated_at_the_base_s_size():
    image, mask = picture(90, 60), holed((90, 60), (30, 20, 40, 30))
    result = generate(BASES[9], Request(prompt="x", steps=2), conditions=[Inpainting(image, mask, only_masked=True)])
    assert (result.request.width, result.request.height) == (16, 16) and result.pictures[0].size == (90, 60)


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (85, 55, 90, 60), (0, 20, 90, 24), (40, 0, 44, 60), (0, 0, 90, 60)])
def test_surroundings_at_the_rim_stay_inside_the_picture(base, box):
    image, mask = picture(90, 60), holed((90, 60), box)
    changed = differ(painted(base, image, mask, only_masked=True, padding=8), image)
    inside = np.asarray(mask) > 0
    assert changed[inside].mean() > 0.8 and not changed[~inside].any()


def test_an_inpainting_base_generates_whole_pictures_too():
    events = []
    result = generate(BASES[9], small(count=2), on_event=events.append)
    assert result.latents.shape == (2, 4, 8, 8) and result.latents.std() > 0.1 and len(events) == 3


# -- with everything else -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guidance", [{"scale": 1}, {"scale": 4, "rescale": 0.7}, {"scale": 4, "start": 0.3, "stop": 0.7}, {"scale": 0}]
)
def test_it_goes_with_concepts_and_any_guidance(base, guidance):
    concept = Concept(ConceptCard(token="<x>", family="sd1"), single_rows(base, "fox"))
    asked = small(
        prompt="a <x>", negative_prompt="a dog", concepts=(ConceptUse(source="x"),), guidance=Guidance(**guidance)
    )
    before = tiny.snapshot(base)
    image, mask = picture(), holed()
    result = generate(base, asked, concepts={"x": concept}, conditions=[Inpainting(image, mask, strength=0.7)])
    assert not differ(result.pictures[0], image)[np.asarray(mask) == 0].any()
    assert torch.isfinite(result.latents).all() and tiny.same(before, base)


def test_other_words_paint_otherwise(base):
    image = picture()
    one, other = (painted(base, image, holed(), small(prompt=words)) for words in ("a fox", "a green house"))
    assert differ(one, other).any()


@pytest.mark.parametrize("leaf", [".diff", ".lora"])
def test_changes_of_the_first_layer_fit_the_latents_of_an_inpainting_unet(leaf):
    """Changes learned on 4 channels change those of the 9, as much as they change the 4."""
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(16, 4, 3, 3, generator=generator)
    low = LowRank(torch.randn(2, 4, 3, 3, generator=generator), torch.randn(16, 2, 1, 1, generator=generator), 0.5)
    change = Difference(difference) if leaf == ".diff" else low
    key, plain, wide = "unet.conv_in.weight", BASES[4], BASES[9]
    check_fits(wide, {key: change}, "it")
    before = [base.unet.conv_in.weight.clone() for base in (plain, wide)]
    with applied(plain, {key: change}, 0.5), applied(wide, {key: change}, 0.5):
        moved = [base.unet.conv_in.weight - was for base, was in zip((plain, wide), before, strict=True)]
    torch.testing.assert_close(moved[1][:, :4], moved[0], atol=1e-5, rtol=0)
    assert not moved[1][:, 4:].any() and moved[0].abs().max() > 0.1


# -- files and requests ---------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    picture().save(tmp_path / "picture.png")
    holed().save(tmp_path / "mask.png")
    return Inpaint(image=str(tmp_path / "picture.png"), mask=str(tmp_path / "mask.png"))


def test_a_request_with_files_paints_as_the_condition_does(base, files):
    of_request = generate(base, small(inpaint=files)).pictures[0]
    assert of_request.tobytes() == painted(base, picture(), holed()).tobytes()


def test_two_pictures_to_paint_on_are_refused(base, files):
    with pytest.raises(RequestError, match="2 pictures"):
        generate(base, small(inpaint=files), conditions=[Inpainting(picture())])


def test_transparency_is_laid_on_white_and_told(base, tmp_path, files):
    layered = picture().convert("RGBA")
    layered.putpixel((0, 0), (9, 9, 9, 0))
    layered.save(tmp_path / "picture.png")
    notes = []
    result = generate(base, small(inpaint=files), on_event=notes.append)
    assert told(notes, "transparent") == ["picture.png is transparent in places; it is laid on white."]
    assert result.pictures[0].getpixel((0, 0)) == (255, 255, 255)
    picture().convert("RGBA").save(tmp_path / "picture.png")
    generate(base, small(inpaint=files), on_event=notes.append)
    assert len(told(notes, "transparent")) == 1


def told(events, word):
    return [event.text for event in events if isinstance(event, Note) and word in event.text]


def test_white_strokes_on_nothing_are_a_mask(base, tmp_path, files):
    strokes = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    strokes.paste((255, 255, 255, 255), (4, 4, 12, 10))
    strokes.save(tmp_path / "mask.png")
    assert generate(base, small(inpaint=files)).pictures[0].tobytes() == painted(base, picture(), holed()).tobytes()


def test_a_mask_of_another_size_is_refused(base, tmp_path, files):
    holed((20, 16)).save(tmp_path / "mask.png")
    with pytest.raises(RequestError, match=r"mask has 20 x 16 pixels, the picture 16 x 16.*as large as"):
        generate(base, small(inpaint=files))


@pytest.mark.parametrize("value", [0, 1, 127])
def test_a_mask_that_repaints_nothing_is_refused(value):
    with pytest.raises(RequestError, match=rf"brightest pixel is {value} of 255\. Paint white"):
        Inpainting(picture(), holed(value=value))


def test_a_mask_that_vanishes_at_the_size_of_the_run_says_what_to_do(base):
    image, mask = picture(1600, 1600), holed((1600, 1600), (700, 700, 703, 703))
    with pytest.raises(RequestError, match=r"Nothing is left of the mask at 16 x 16.*only-masked"):
        painted(base, image, mask)
    assert differ(painted(base, image, mask, only_masked=True, padding=2), image).any()


@pytest.mark.parametrize("what", ["image", "mask"])
def test_files_that_are_missing_or_no_pictures_are_named(base, tmp_path, files, what):
    with pytest.raises(RequestError, match=r"There is no (picture|mask) nowhere\.png.*Check"):
        generate(base, small(inpaint=files.model_copy(update={what: "nowhere.png"})))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"broken\.png"):
        generate(base, small(inpaint=files.model_copy(update={what: str(tmp_path / "broken.png")})))


def test_less_than_one_step_is_refused(base):
    with pytest.raises(RequestError, match=r"Strength 0\.2 of 4 steps is less than one step\. Use .*0\.25"):
        painted(base, picture(), asked=small(steps=4), strength=0.2)


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, "much"])
def test_strength_is_between_nothing_and_all(strength):
    with pytest.raises(RequestError, match=r"inpaint\.strength"):
        Request.read({"prompt": "x", "inpaint": {"image": "a.png", "strength": strength}})


def test_a_click_and_a_box_are_masks(base, tmp_path):
    image = Image.new("RGB", (32, 32), "white")
    image.paste("red", (8, 8, 20, 20))
    image.save(tmp_path / "picture.png")
    asked = small(width=32, height=32)
    for pointed in ({"click": (0.4, 0.4)}, {"box": (0.2, 0.2, 0.7, 0.7)}):
        request = asked.model_copy(update={"inpaint": Inpaint(image=str(tmp_path / "picture.png"), **pointed)})
        changed = differ(generate(base, request).pictures[0], image)
        assert changed[8:20, 8:20].mean() > 0.9 and changed.sum() == changed[8:20, 8:20].sum()


def test_a_mask_and_a_click_are_one_too_many():
    with pytest.raises(RequestError, match=r"inpaint: there is a mask and a click.*give one"):
        Request.read({"prompt": "x", "inpaint": {"image": "a.png", "mask": "m.png", "click": "0.5,0.5"}})


def test_files_that_changed_since_are_noticed(base, tmp_path, files):
    painted_then = generate(base, small(inpaint=files)).request
    assert len(painted_then.inpaint.digests) == 2
    generate(base, painted_then)
    holed(box=(0, 0, 9, 9)).save(tmp_path / "mask.png")
    with pytest.raises(RequestError, match=r"picture\.png or its mask has changed.*--inpaint-image"):
        generate(base, painted_then)


# -- which UNet ---------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path):
    """A base with an inpainting UNet in its folder."""
    plain, wide = tiny.inpaint_pipeline(4), tiny.inpaint_pipeline(9)
    plain.save_pretrained(tmp_path / "base")
    wide.unet.save_pretrained(tmp_path / "base" / "unet_inpainting")
    return load(tmp_path / "base")


def test_the_inpainting_unet_beside_a_base_is_used_if_there_is_a_mask(beside, tmp_path, files):
    expected = {unet: generate(BASES[unet], small(inpaint=files)).latents for unet in (4, 9)}
    torch.testing.assert_close(generate(beside, small(inpaint=files)).latents, expected[9], atol=1e-4, rtol=0)
    blended = generate(beside, small(inpaint=files.model_copy(update={"unet": "blend"}))).latents
    torch.testing.assert_close(blended, expected[4], atol=1e-4, rtol=0)
    whole = Inpaint(image=files.image, strength=0.7)
    by_own = generate(BASES[4], small(inpaint=whole)).latents
    torch.testing.assert_close(generate(beside, small(inpaint=whole)).latents, by_own, atol=1e-4, rtol=0)
    named = files.model_copy(update={"unet": str(tmp_path / "base" / "unet_inpainting")})
    torch.testing.assert_close(generate(BASES[4], small(inpaint=named)).latents, expected[9], atol=1e-4, rtol=0)


def test_a_base_without_one_blends_and_says_how_to_get_one(files):
    notes = []
    generate(BASES[4], small(inpaint=files), on_event=notes.append)
    (said,) = [note.text for note in notes if isinstance(note, Note)]
    assert "latents are blended" in said and "studio train inpainting" in said


def test_one_that_is_named_and_not_there_is_an_error(files):
    with pytest.raises(ModelError, match=r"no inpainting UNet in nowhere.*--inpaint-unet blend"):
        generate(BASES[4], small(inpaint=files.model_copy(update={"unet": "nowhere"})))


def test_a_unet_of_other_channels_is_refused():
    with pytest.raises((RequestError, ModelError), match=r"reads 5 channels; inpainting needs 4 or 9"):
        painted(tiny.sd_inpaint(5), picture(), holed())
