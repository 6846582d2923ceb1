"""Closed forms of guidance, and the guiders of diffusers where they are right."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    TangentialClassifierFreeGuidance,
)

from pipelines.condition import Step
from pipelines.errors import RequestError
from pipelines.generation import generate
from pipelines.guidance import (
    active,
    acts,
    classifier_free,
    clipped,
    fitted,
    projected,
    pushed,
    rescaled,
    scheduled,
    tangential,
)
from pipelines.predictions.guided import NEGATIVE, PERTURBED, POSITIVE, UNPLACED, WEAKER, Guided, predictions
from pipelines.predictions.perturbation import blurred
from pipelines.request.guidance import Prompt, prompt_use
from pipelines.request.request import Box, ConceptUse, Grounding, Guidance, Request
from tests import tiny, tiny_flows
from tests.pipelines.test_regional import learned, words_alone

C, U = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.randn(2, 4, 8, 8)


def at(index, count=10):
    return Step(index, count, torch.tensor(1), None)


def test_scale_one_gives_the_conditional_and_zero_the_unconditional():
    torch.testing.assert_close(classifier_free(C, U, 1.0), C)
    torch.testing.assert_close(classifier_free(C, U, 0.0), U)


def test_equal_branches_are_left_alone():
    torch.testing.assert_close(classifier_free(C, C, 9.0), C)


def test_full_rescale_gives_the_spread_of_the_conditional():
    out = rescaled(3 * C + 1, C, 1.0)
    torch.testing.assert_close(out.std(dim=[1, 2, 3]), C.std(dim=[1, 2, 3]))
    assert rescaled(3 * C, C, 0.0).equal(3 * C)


def test_the_spread_is_that_of_a_whole_picture_and_of_each_its_own():
    """Channels and pictures of other spreads, by hand: of (0, 2) twice it is 2 / sqrt(3), of (0, 6) and (0, 2) more."""
    c = torch.tensor([[[[0.0, 2.0]], [[0.0, 2.0]]], [[[0.0, 1.0]], [[0.0, 1.0]]]])
    guided = torch.tensor([[[[0.0, 6.0]], [[0.0, 2.0]]], [[[0.0, 1.0]], [[0.0, 1.0]]]])
    # Of 0, 6, 0, 2 the mean is 2 and the squares sum to 4 + 16 + 4 + 0 = 24; of 0, 2, 0, 2 they sum to 4.
    factors = torch.tensor([(4 / 24) ** 0.5, 1.0])
    torch.testing.assert_close(rescaled(guided, c, 1.0), guided * factors[:, None, None, None])


@pytest.mark.parametrize(("start", "stop", "on"), [(0, 1, range(10)), (0.2, 0.5, range(2, 5)), (1, 1, ()), (0, 0, ())])
def test_the_interval_is_half_open_in_steps(start, stop, on):
    guidance = Guidance(scale=5.0, start=start, stop=stop)
    assert [i for i in range(10) if active(guidance, at(i))] == list(on)
    assert [i for i in range(10) if acts(guidance, at(i))] == list(on)


# -- formulas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_keep_the_mean_and_rise(schedule):
    scales = [scheduled(7.0, schedule, i, 10) for i in range(10)]
    assert sum(scales) / 10 == pytest.approx(7.0)
    assert scales == sorted(scales) and (schedule == "constant") == (scales[0] == scales[-1])
    assert scheduled(1.0, schedule, 3, 10) == 1.0
    assert scheduled(3.0, "linear", 0, 2) == pytest.approx(2.0) and scheduled(3.0, "linear", 1, 2) == pytest.approx(4.0)


def test_what_is_fitted_is_the_nearest_multiple_as_in_diffusers():
    torch.testing.assert_close(fitted(3 * U, U), 3 * U)
    across = torch.zeros_like(C)
    across[:, 0], one = 1.0, torch.zeros_like(C)
    one[:, 1] = 1.0
    assert float(fitted(one, across).abs().max()) == 0
    theirs = ClassifierFreeZeroStarGuidance(guidance_scale=5.0, zero_init_steps=0)
    theirs.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(1))
    torch.testing.assert_close(classifier_free(C, fitted(C, U), 5.0), theirs.forward(C, U).pred)


def test_the_tangential_part_is_that_of_diffusers_and_leaves_equal_branches():
    theirs = TangentialClassifierFreeGuidance(guidance_scale=5.0)
    theirs.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(1))
    torch.testing.assert_close(
        classifier_free(C, tangential(C, U), 5.0), theirs.forward(C, U).pred, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(tangential(C, C), C, atol=1e-5, rtol=1e-5)


def test_a_difference_is_shortened_to_a_length_and_projected_as_in_diffusers():
    length = torch.linalg.vector_norm(clipped(C - U, 2.0), dim=(1, 2, 3))
    torch.testing.assert_close(length, torch.full((2,), 2.0))
    assert clipped(C - U, 1e6).equal(C - U)
    torch.testing.assert_close(projected(C - U, C, 1.0), C - U)
    across = projected(C - U, C, 0.0)
    torch.testing.assert_close((across * C).sum((1, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    theirs = AdaptiveProjectedGuidance(
        guidance_scale=5.0, adaptive_projected_guidance_rescale=9.0, eta=0.3, use_original_formulation=True
    )  # in the original's form its scale is one less
    theirs.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(1))
    ours = C + 5 * projected(clipped(C - U, 9.0), C, 0.3)
    torch.testing.assert_close(ours, theirs.forward(C, U).pred, atol=1e-5, rtol=1e-5)


def test_a_push_is_the_difference_times_the_strength():
    torch.testing.assert_close(pushed(C, C, U, 3.0), C + 3 * (C - U))
    assert pushed(C, C, C, 9.0).equal(C)


def test_a_blur_keeps_the_mean_and_without_end_is_the_mean():
    query = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(blurred(query, None, 1.5), query.mean(dim=1, keepdim=True).expand_as(query))
    torch.testing.assert_close(blurred(query, 1e-3, 1.5), query)
    even = torch.ones(1, 24, 8)
    torch.testing.assert_close(blurred(even, 2.0, 1.5), even)
    assert float(blurred(query, 2.0, 1.5).var()) < float(query.var())
    with pytest.raises(ValueError, match="no grid"):
        blurred(torch.ones(1, 23, 8), 2.0, 1.5)


# -- which predictions a request needs --------------------------------------------------------------------------


def asked(guidance=None, **fields):
    given = {"scale": 3.0, "rescale": 0.0} | (guidance or {})
    return Request(
        **({"prompt": "a fox", "steps": 3, "scheduler": "ddim", "width": 32, "height": 32} | fields),
        guidance=Guidance(**given),
    )


FOX = Box(phrase="fox", box=(0, 0, 0.5, 0.5))


@pytest.mark.parametrize(
    ("request_", "needed"),
    [
        (asked({"scale": 1.0}), (POSITIVE,)),
        (asked(), (NEGATIVE, POSITIVE)),
        (asked({"stop": 0.0}), (POSITIVE,)),
        (asked({"preset": "pag"}), (NEGATIVE, POSITIVE, PERTURBED)),
        (asked({"preset": "pag", "scale": 1.0}), (POSITIVE, PERTURBED)),
        (asked({"preset": "seg", "perturbed": 0.0}), (NEGATIVE, POSITIVE)),
        (asked({"preset": "autoguidance"}), (POSITIVE, WEAKER)),
        (asked(boxes=(FOX,), grounding=Grounding(beta=1.0, scale=2.0)), (NEGATIVE, UNPLACED, POSITIVE)),
        (asked(boxes=(FOX,), grounding=Grounding(beta=1.0)), (NEGATIVE, POSITIVE)),
        (asked({"scale": 1.0}, also=(Prompt(prompt="a dog"),)), (NEGATIVE, POSITIVE)),
    ],
)  # fmt: skip
def test_no_prediction_is_made_that_is_not_needed(request_, needed):
    assert predictions(request_, at(0)) == needed
    assert predictions(request_, at(0), distilled=True) == (POSITIVE,)


def test_an_interval_saves_calls():
    steps = [predictions(asked({"start": 0.2, "stop": 0.8}), at(i)) for i in range(10)]
    assert sum(map(len, steps)) == 16 and sum(map(len, [predictions(asked(), at(i)) for i in range(10)])) == 20


# -- whole pictures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return tiny.open_gates(tiny.gated())


def drawn(base, guidance=None, **fields):
    return generate(base, asked(guidance, **fields)).latents


@pytest.mark.parametrize("preset", ["apg", "cfg-zero", "tcfg", "pag", "seg"])
def test_a_preset_changes_the_picture_and_leaves_the_base_alone(base, preset):
    before, processors = tiny.snapshot(base), {name: id(one) for name, one in base.unet.attn_processors.items()}
    plain, other = drawn(base), drawn(base, {"preset": preset})
    assert not torch.allclose(plain, other, atol=1e-4) and bool(other.isfinite().all())
    assert drawn(base).equal(plain) and tiny.same(before, base)
    assert {name: id(one) for name, one in base.unet.attn_processors.items()} == processors


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("apg", {"parallel": 1.0, "norm": 1000.0, "momentum": 0.0}),
        ("pag", {"perturbed": 0.0}),
        ("seg", {"perturbed": 0.0}),
    ],
)
def test_at_its_neutral_settings_a_preset_is_classifier_free(base, preset, fields):
    torch.testing.assert_close(drawn(base, {"preset": preset, **fields}), drawn(base), atol=1e-4, rtol=1e-4)


def test_pag_draws_what_the_pipeline_of_diffusers_draws(base):
    from diffusers import StableDiffusionPAGPipeline

    plain = tiny.sd_pipeline()
    theirs = StableDiffusionPAGPipeline(**plain.components, requires_safety_checker=False, pag_applied_layers="mid")
    theirs.set_progress_bar_config(disable=True)
    told = theirs(
        "a fox", num_inference_steps=3, guidance_scale=3.0, pag_scale=2.0, width=32, height=32, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    ours = drawn(tiny.sd(), {"preset": "pag", "perturbed": 2.0})
    torch.testing.assert_close(ours, told.images.float(), atol=1e-4, rtol=1e-4)


def test_a_further_prompt_like_the_first_is_a_larger_scale(base):
    torch.testing.assert_close(
        drawn(base, also=(Prompt(prompt="a fox", weight=1.0),)),
        drawn(base, {"scale": 6.0}), atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    torch.testing.assert_close(drawn(base, also=(Prompt(prompt="a dog", weight=0.0),)), drawn(base))
    own = drawn(base, also=(Prompt(prompt="a dog", negative_prompt="a dog"),))
    torch.testing.assert_close(own, drawn(base), atol=1e-5, rtol=1e-5)


def test_boxes_by_the_scale_of_the_prompt_act_as_without_one(base):
    boxed = {"boxes": (FOX,), "grounding": Grounding(beta=1.0)}
    alike = {"boxes": (FOX,), "grounding": Grounding(beta=1.0, scale=3.0)}
    torch.testing.assert_close(drawn(base, **alike), drawn(base, **boxed), atol=1e-4, rtol=1e-4)
    elsewhere = Box(phrase="dog", box=(0.5, 0.5, 1, 1))
    none = [drawn(base, boxes=(one,), grounding=Grounding(beta=1.0, scale=0.0)) for one in (FOX, elsewhere)]
    torch.testing.assert_close(none[0], none[1], atol=1e-5, rtol=1e-5)
    more = drawn(base, boxes=(FOX,), grounding=Grounding(beta=1.0, scale=9.0))
    assert not torch.allclose(more, drawn(base, **boxed), atol=1e-3)


def test_autoguidance_leads_away_from_the_base_without_the_weights(base):
    concept = learned(base, "<a>", 1)
    request = asked(prompt="a <a>", concepts=(ConceptUse(source="a"),)).model_copy(
        update={"guidance": Guidance(preset="autoguidance", scale=3.0, rescale=0.0), "steps": 1}
    )
    before = tiny.snapshot(base)
    guided, with_it, without = (
        generate(base, request.model_copy(update=fields), concepts={"a": one}).latents
        for fields, one in (
            ({}, concept),
            ({"guidance": Guidance(scale=1.0)}, concept),
            ({"guidance": Guidance(scale=1.0)}, words_alone(concept)),
        )
    )
    # One step of DDIM is linear in the prediction.
    torch.testing.assert_close(guided, without + 3 * (with_it - without), atol=1e-4, rtol=1e-3)
    assert tiny.same(before, base) and (with_it - without).abs().max() > 1e-3


def test_autoguidance_has_no_place_for_negative_prompts(base):
    concept = learned(base, "<a>", 1)
    for fields, said in (
        ({"negative_prompt": "a dog"}, "'a dog'"),
        ({"also": (Prompt(prompt="x", negative_prompt="a cat"),)}, "'a cat'"),
    ):
        request = asked({"preset": "autoguidance", "scale": 3.0}, prompt="a <a>", **fields)
        with pytest.raises(RequestError, match=f"no place for the negative prompt {said}.*further prompt"):
            generate(base, request.model_copy(update={"concepts": (ConceptUse(source="a"),)}), concepts={"a": concept})


def test_a_step_that_is_not_taken_is_none_with_rescale_and_further_prompts_too():
    flow = tiny_flows.base("sd3")
    told = {"preset": "cfg-zero", "zero_steps": 3, "rescale": 0.5}
    still = drawn(flow, told, scheduler="euler", also=(Prompt(prompt="a dog"),))
    torch.testing.assert_close(still, torch.randn(still.shape, generator=torch.Generator().manual_seed(0)))


def test_where_a_picture_is_drawn_on_no_step_is_left_out(base):
    first, later = (Step(0, 2, torch.tensor(1), None, before=before) for before in (0, 2))
    guided = Guided(base, asked({"preset": "cfg-zero", "zero_steps": 1}), [])
    given = {POSITIVE: C, NEGATIVE: U}
    assert float(guided._combined(given, [], C, torch.tensor([1]), first).abs().max()) == 0
    assert float(guided._combined(given, [], C, torch.tensor([1]), later).abs().max()) > 0


def test_each_tile_of_a_picture_has_a_momentum_of_its_own(base):
    guided = Guided(base, asked({"preset": "apg"}), [])
    assert [guided._place(at(step)) for step in (0, 0, 0, 1, 1, 2)] == [0, 1, 2, 0, 1, 0]


@pytest.mark.parametrize("preset", ["pag", "seg"])
def test_with_words_kept_to_boxes_nothing_is_dropped_on_the_way(base, preset, caplog):
    drawn(base, {"preset": preset}, boxes=(FOX,), grounding=Grounding(beta=1.0, region=True))
    assert "are not expected" not in caplog.text


# -- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: generate(tiny.sd(), asked({"preset": "autoguidance"})), "no concept of this request changes weights"),
        (lambda: Guidance(momentum=-0.2), "choose the preset apg"),
        (lambda: Guidance(preset="apg", blur=2.0), "choose the preset seg"),
        (lambda: Guidance(preset="perp"), "cfg"),
        (lambda: prompt_use(":0.5"), "says nothing"),
        (lambda: asked(also=tuple(Prompt(prompt="x") for _ in range(9))), "at most 8"),
    ],
)
def test_guidance_that_cannot_be_is_one_sentence(make, said):
    with pytest.raises((RequestError, ValueError), match=said):
        make()


@pytest.mark.parametrize("preset", ["pag", "seg"])
def test_a_base_without_a_unet_says_what_it_can_do(preset):
    with pytest.raises(RequestError, match="which tiny-z-image lacks"):
        drawn(tiny_flows.base("z-image"), {"preset": preset}, scheduler="euler")


@pytest.mark.parametrize("preset", ["apg", "cfg-zero", "tcfg"])
def test_the_presets_of_two_predictions_work_on_a_flow(preset):
    base = tiny_flows.base("sd3")
    plain, other = (drawn(base, {"preset": one}, scheduler="euler") for one in ("cfg", preset))
    assert not torch.allclose(plain, other, atol=1e-4) and bool(other.isfinite().all())


def test_by_default_cfg_zero_leaves_out_the_first_step_of_a_flow_and_none_of_a_diffusion(base):
    flow = tiny_flows.base("sd3")
    zero = {"preset": "cfg-zero"}
    kept = drawn(flow, zero | {"zero_steps": 0}, scheduler="euler")
    assert not torch.allclose(drawn(flow, zero, scheduler="euler"), kept, atol=1e-4)
    torch.testing.assert_close(drawn(base, zero), drawn(base, zero | {"zero_steps": 0}))
    still = drawn(flow, zero | {"zero_steps": 3}, scheduler="euler")
    noise = torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, noise)
