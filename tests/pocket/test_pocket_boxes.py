"""The trained gated layers of pocket: things stand in their boxes, and without boxes nothing is different."""

from __future__ import annotations

import torch

from evaluation import boxes as scoring
from evaluation.boxes import drawn, figures, layouts, look
from pipelines.generation import generate
from pipelines.gligen.tokens import gated_parameters
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.loading import load
from pipelines.request.request import Request


def test_two_things_stand_in_their_boxes():
    components, judge = load("pocket"), Judge.load(POCKET / "judge")
    asked = layouts(4, things=[("fox", "house")])
    pictures = drawn(components, asked, components.defaults.beta)
    row = figures(asked, [look(judge, picture, layout) for picture, layout in zip(pictures, asked, strict=True)])
    assert row["iou"] > 0.55 and row["both_in_place"] >= 0.75
    assert scoring.said(("fox", "house"), {}) in ("a fox and a house", "a house and a fox")


def test_without_boxes_the_layers_do_nothing():
    components, request = load("pocket"), Request(prompt="a fox", steps=3)
    before = generate(components, request).pictures[0]
    with torch.no_grad():
        for _, parameter in gated_parameters(components.unet):
            parameter.fill_(0.5)
    assert generate(components, request).pictures[0].tobytes() == before.tobytes()
