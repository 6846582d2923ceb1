"""Formulas of guidance that need no concept, on `pocket`: drawn likeness, calls of the denoiser, and time.

    python -m benchmarks.guidance                 # a table
    python -m benchmarks.guidance --format json   # for `benchmarks.results`

The same prompts and seeds for all; one thing and two things in a relation, half of the prompts each.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from pipelines.condition import Step
from pipelines.generation import generate
from pipelines.measures.drawn import Likeness
from pipelines.models.loading import load
from pipelines.predictions.guided import predictions
from pipelines.request.guidance import Guidance
from pipelines.request.request import Request
from trainers.stickers.drawn import drawn_scene, summed
from trainers.stickers.world import RELATIONS, scene

SEED = 8100
WAYS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "the default (cfg 2)": {},
        "none": {"scale": 1.0},
        "cfg 2, middle 60 % of the steps": {"start": 0.2, "stop": 0.8},
        "cfg 2, first 60 % of the steps": {"stop": 0.6},
        "cfg 2, linear": {"schedule": "linear"},
        "cfg 2, cosine": {"schedule": "cosine"},
        "cfg 3": {"scale": 3.0},
        "cfg 4": {"scale": 4.0},
        "cfg 8": {"scale": 8.0},
        "apg 4": {"scale": 4.0, "preset": "apg"},
        "apg 8": {"scale": 8.0, "preset": "apg"},
        "cfg-zero 2": {"preset": "cfg-zero"},
        "tcfg 2": {"preset": "tcfg"},
        "pag 3 alone": {"scale": 1.0, "preset": "pag"},
        "cfg 2 and pag 3": {"preset": "pag"},
        "cfg 2 and seg 3": {"preset": "seg"},
    }
)
"""Name -> settings of guidance that are compared."""


def calls(request: Request) -> int:
    """Return how many predictions one picture takes."""
    count = int(request.steps or 1)
    return sum(len(predictions(request, Step(index, count, torch.tensor(0), None))) for index in range(count))


def measure(pictures: int) -> dict[str, dict[str, float]]:
    """Return the figures of every way.

    Args:
        pictures: drawn for each.
    """
    base, rng = load("pocket"), random.Random(SEED)
    asked = [
        scene(rng, kind="one", say_colour=True)
        if index % 2
        else scene(rng, relation=rng.choice(tuple(RELATIONS)), say_colour=True)
        for index in range(pictures)
    ]
    figures: dict[str, dict[str, float]] = {}
    for way, fields in WAYS.items():
        began, alike = time.process_time(), list[Likeness]()
        for index, item in enumerate(asked):
            request = Request(prompt=item.caption, seed=SEED + index, guidance=Guidance(**fields))
            (picture,) = generate(base, request).pictures
            alike += drawn_scene(picture, [thing.name for thing in item.stickers])
        spent, total = (time.process_time() - began) / pictures, summed(alike)
        figures[way] = {
            "drawn": round(total.likeness, 4),
            "drawn_half": round(total.half, 4),
            "calls": calls(request.resolved(base.defaults)),
            "seconds": round(spent, 3),
        }
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Measure every formula of guidance on pocket.")
    parser.add_argument("--pictures", type=int, default=60, help="drawn for each way")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    asked = parser.parse_args()
    figures = measure(asked.pictures)
    if asked.format == "json":
        print(json.dumps(figures, indent=1))
        return
    for way, row in figures.items():
        print(f"{way:34} {row['drawn']:.3f} ± {row['drawn_half']:.3f}  {row['calls']} calls  {row['seconds']:.2f} s")


if __name__ == "__main__":
    main()
