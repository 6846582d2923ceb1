"""The arithmetic of the scores of visual prompts, on pictures made by hand, and the baselines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluation import incontext as scoring
from evaluation import picture_measures as measuring
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.loading import load
from pipelines.request.request import Guidance, Request
from trainers.base_models.inpainting_unet import widened
from trainers.stickers.tasks import TASKS, TRAINED_TASKS, Drawings
from trainers.stickers.world import Stickers, scenes

NAMES = ("wolf", "taxi", "kiwi")


def picture(*boxes, size=8, colour=(1.0, 1.0, 1.0)):
    """Black with boxes x0 y0 x1 y1 of a colour in [-1, 1]."""
    image = torch.full((1, 3, size, size), -1.0)
    for x0, y0, x1, y1 in boxes:
        image[0, :, y0:y1, x0:x1] = torch.tensor(colour)[:, None, None]
    return image


def test_masks_are_rounded_to_the_nearer_colour():
    truth = picture((0, 0, 4, 4))
    assert measuring.mask_iou(truth, truth).tolist() == [1]
    assert measuring.mask_iou(truth * 0.1, truth).tolist() == [1]  # faint, but on the right side of the middle
    assert measuring.mask_iou(picture((0, 0, 4, 8)), truth).tolist() == [0.5]
    assert measuring.mask_iou(picture((4, 4, 8, 8)), truth).tolist() == [0]
    assert measuring.mask_iou(picture(), picture()).tolist() == [1]
    both = torch.cat((picture((2, 0, 6, 4)), truth))
    assert measuring.mask_iou(both, truth.expand(2, -1, -1, -1)).tolist() == pytest.approx([1 / 3, 1])


def test_boxes_are_of_the_largest_part():
    truth = picture((0, 0, 4, 4))
    assert measuring.largest_box(measuring.white(picture((1, 2, 4, 7), (6, 6, 7, 7)))[0]) == (1, 2, 4, 7)
    assert measuring.box_iou(picture((0, 0, 4, 4), (6, 6, 8, 8)), truth).tolist() == [1]
    assert measuring.box_iou(picture((2, 0, 6, 4)), truth).tolist() == pytest.approx([1 / 3])
    assert measuring.box_iou(picture((4, 4, 8, 8)), truth).tolist() == [0]
    assert measuring.box_iou(picture(), truth).tolist() == [0]
    hollow = picture((0, 0, 4, 4))
    hollow[..., 1:3, 1:3] = -1  # the box around it counts, not its pixels
    assert measuring.box_iou(hollow, truth).tolist() == [1]


def test_colours_are_compared_in_lab():
    white, black = picture((0, 0, 8, 8)), picture()
    assert measuring.lab_error(white, white).tolist() == [0]
    assert measuring.lab_error(white, black).tolist() == pytest.approx([100**2 / 3], rel=1e-3)  # L* alone, 0 to 100
    red = picture((0, 0, 8, 8), colour=(1, -1, -1))
    L, a, b = 53.24, 80.09, 67.20  # sRGB red in CIE L*a*b* (D65)
    assert measuring.lab_error(red, black).tolist() == pytest.approx([(L**2 + a**2 + b**2) / 3], rel=1e-2)


def test_pixel_errors_are_shares_of_the_range():
    assert measuring.pixel_error(picture((0, 0, 8, 8)), picture()).tolist() == [1]
    assert measuring.pixel_error(picture((0, 0, 2, 8)), picture()).tolist() == [0.5]  # a quarter of the pixels


def test_the_direction_is_that_from_query_to_truth():
    query, truth = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    assert measuring.direction(truth, truth, query).tolist() == pytest.approx([1])
    assert measuring.direction(query, truth, query).tolist() == [0]
    assert measuring.direction(query + 1, truth, query).tolist() == pytest.approx([0.5**0.5])
    assert measuring.direction(2 * query - truth, truth, query).tolist() == pytest.approx([-1])


@pytest.fixture(scope="module")
def base():
    """pocket with nine channels, untrained: it sees its surroundings, and makes nothing of them."""
    pocket = load("pocket")
    unet = widened(pocket.unet).eval().requires_grad_(False)
    unet.conv_in.weight[:, 4:].normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return replace(pocket, denoiser=unet)


@pytest.fixture(scope="module")
def drawings():
    return Drawings.of(NAMES)


@pytest.mark.parametrize("name", list(TASKS))
def test_questions_of_every_task(drawings, name):
    asked = scoring.questions(name, 3, drawings, NAMES, 1)
    assert asked.cells.shape == (3, 2, 2, 3, 64, 64) and asked.wrong.shape == (3, 2, 3, 64, 64)
    assert torch.equal(asked.truths, asked.cells[:, 1, 1])
    for way in scoring.WAYS:
        shown = asked.asked(way)
        assert not shown[:, 1, 1].any()  # the truth is hidden
        assert torch.equal(shown[:, 1, 0], asked.cells[:, 1, 0])
    assert not asked.asked("no example")[:, 0].any()
    assert torch.equal(asked.asked("wrong example")[:, 0], asked.wrong)
    assert torch.equal(asked.asked("answer")[:, 0], asked.cells[:, 0])
    assert bool(((asked.wrong - asked.cells[:, 0]).abs().flatten(1).amax(1) > 0.1).all())
    again = scoring.questions(name, 3, drawings, NAMES, 1)
    assert torch.equal(again.cells, asked.cells) and torch.equal(again.wrong, asked.wrong)


def test_a_wrong_example_of_a_task_with_a_parameter_has_another(drawings):
    asked = scoring.questions("recolour", 4, drawings, NAMES, 1)
    right, wrong = asked.cells[:, 0, 1, :, 0, 0], asked.wrong[:, 1, :, 0, 0]  # the new background, in the corner
    assert bool(((right - wrong).abs().amax(1) > 0.1).all())


def test_masks_are_no_wrong_examples_for_boxes(drawings):
    asked = scoring.questions("box", 8, drawings, NAMES, 1)
    after = asked.wrong[:, 1]
    assert not bool((after.abs() == 1).flatten(1).all(1).any())  # none is black and white


def score(name, right, wrong, copy=None, blank=None, truth=None):
    """A score of hand-made answers."""
    truth = picture((0, 0, 4, 4)) if truth is None else truth
    cells = torch.zeros(1, 2, 2, *truth.shape[1:])
    cells[:, 1, 1] = truth
    answers = dict(zip(scoring.WAYS, (right, copy if copy is not None else wrong,
                                      blank if blank is not None else wrong, wrong), strict=True))  # fmt: skip
    known = measuring.measures(Judge.load(POCKET / "judge"))
    figures = {
        way: {key: one.take(made, truth, cells[:, 1, 0]) for key, one in known.items()} for way, made in answers.items()
    }
    main = measuring.MAIN.get(name, "pixel")
    return scoring.TaskScore(name, figures, scoring.Questions(cells, cells[:, 0]), answers, known[main], main)


def test_a_task_is_won_if_its_own_measure_is_better_than_all_baselines():
    truth, half, none = picture((0, 0, 4, 4)), picture((0, 0, 4, 8)), picture()
    assert score("mask", truth, half).beats_all
    assert not score("mask", half, none, blank=truth).beats_all
    assert not score("mask", half, half).beats_all  # as good is not better
    assert score("mask", truth, half).margin[0] == pytest.approx(0.5)
    pixels = score("denoise", truth, half)  # an error: less is better
    assert pixels.beats_all and pixels.margin[0] == pytest.approx(0.5) and pixels.main == "pixel"


def test_what_is_said_of_all(drawings):
    good = score("mask", picture((0, 0, 4, 4)), picture())
    poor = score("move", picture(), picture((0, 0, 4, 4)))
    said = "\n".join(scoring.summary({"mask": good, "move": poor}))
    assert "above all three baselines: 1 of 2" in said and "not above: move" in said and "MAE-VQGAN" in said
    assert "mIoU" in scoring.row(good) and "answer 1.000" in scoring.row(good)
    kept = scoring.as_json({"mask": good})
    assert kept["mask"]["ways"]["answer"]["mask"] == 1 and kept["mask"]["beats_all_baselines"]


def test_a_whole_score_runs_and_draws_its_sheet(base):
    seen = []
    scores = scoring.score_tasks(
        base, ("mask", "move"), 2, stickers=NAMES, request=Request(prompt="", steps=1, guidance=Guidance(scale=1)),
        judge=Judge.load(POCKET / "judge"), on_score=seen.append,
    )  # fmt: skip
    assert list(scores) == ["mask", "move"] and seen == list(scores.values())
    for one in scores.values():
        assert torch.equal(one.answers["copy"], one.questions.cells[:, 1, 0])
        assert all(made.shape == (2, 3, 64, 64) for made in one.answers.values())
        assert not torch.equal(one.answers["answer"], one.answers["wrong example"])
    drawn = scoring.sheet(scores).draw()
    assert drawn.height > 2 * 96
    assert set(TRAINED_TASKS) < set(TASKS)


def test_batches_give_what_single_questions_give(base, drawings):
    judge = Judge.load(POCKET / "judge")
    asked = scoring.questions("mask", 2, drawings, NAMES, 1)
    request = Request(prompt="", steps=1, guidance=Guidance(scale=1)).resolved(base.defaults)
    one, all_ = (scoring.score_task(base, "mask", asked, judge, request=request, batch=n) for n in (1, 2))
    assert torch.allclose(one.answers["answer"], all_.answers["answer"], atol=0.02)


def test_an_answer_is_as_alike_as_its_things_are():
    truths = Stickers(names=NAMES).render(scenes(3, 5, names=NAMES, kind="one")).images
    torch.testing.assert_close(measuring.drawn_likeness(truths, truths), torch.ones(3))
    small = torch.nn.functional.avg_pool2d(truths, 4)
    blurred = torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear")
    assert (measuring.drawn_likeness(blurred, truths) < 0.8).all()
    assert float(measuring.drawn_likeness(truths, torch.zeros(3, 3, 64, 64)).mean()) == 1, "nothing to be like"
