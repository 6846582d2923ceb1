"""Attend-and-Excite on `pocket`: pictures with both of the two things that a prompt names, with and without.

    python -m benchmarks.excite                   # a table
    python -m benchmarks.excite --format json
    python -m benchmarks.excite --sheet both.png  # the first pictures of each way, to look at

The same prompts and seeds for all: two different things anywhere, and two in a relation, half of the prompts each. A
thing is there if the finder, which knows all stickers by their drawings, names it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from evaluation.sticker_finder import Finder
from pipelines.generation import generate
from pipelines.measures.drawn import Likeness
from pipelines.models.loading import load
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_tensor
from pipelines.request.excite import Excite
from pipelines.request.request import Request
from trainers.stickers.drawn import drawn_scene, summed
from trainers.stickers.world import ALL_NAMES, RELATIONS, Scene, scene

SEED = 9300
SHOWN = 6
"""Prompts on the sheet."""
WAYS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "off": {"strength": 0.0},
        "the paper's (20)": {},
    }
)
"""Name -> settings that are compared."""


def asked(pictures: int) -> list[Scene]:
    """Return the scenes whose captions are drawn."""
    rng = random.Random(SEED)
    return [
        scene(rng, kind="scatter", say_colour=True)
        if index % 2
        else scene(rng, relation=rng.choice(tuple(RELATIONS)), say_colour=True)
        for index in range(pictures)
    ]


def measure(pictures: int) -> tuple[dict[str, dict[str, float]], dict[str, list[Image.Image]]]:
    """Return the figures of every way, and its pictures.

    Args:
        pictures: drawn for each.
    """
    base, scenes, finder = load("pocket"), asked(pictures), Finder(ALL_NAMES)
    figures: dict[str, dict[str, float]] = {}
    shown: dict[str, list[Image.Image]] = {}
    for way, fields in WAYS.items():
        began, alike, both, one = time.process_time(), list[Likeness](), 0, 0
        shown[way] = []
        for index, item in enumerate(scenes):
            names = {thing.name for thing in item.stickers}
            excite = Excite(words=", ".join(sorted(names)), **fields)
            request = Request(prompt=item.caption, seed=SEED + index, excite=excite)
            (picture,) = generate(base, request).pictures
            shown[way].append(picture)
            alike += drawn_scene(picture, sorted(names))
            there = names & {seen.name for seen in finder(to_tensor(picture))}
            both, one = both + (there == names), one + bool(there)
        total = summed(alike)
        figures[way] = {
            "both": round(both / pictures, 4),
            "one": round(one / pictures, 4),
            "drawn": round(total.likeness, 4),
            "drawn_half": round(total.half, 4),
            "seconds": round((time.process_time() - began) / pictures, 3),
        }
    return figures, shown


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Measure Attend-and-Excite on pocket.")
    parser.add_argument("--pictures", type=int, default=40, help="drawn for each way")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--sheet", type=Path, help="write the first pictures of each way here")
    given = parser.parse_args()
    figures, shown = measure(given.pictures)
    if given.sheet:
        sheet = Sheet(cell=128, label=200)
        sheet.head([item.caption for item in asked(given.pictures)[:SHOWN]])
        for way, pictures in shown.items():
            sheet.row(way, pictures[:SHOWN])
        sheet.save(given.sheet)
    if given.format == "json":
        print(json.dumps(figures, indent=1))
        return
    for way, row in figures.items():
        there = f"both {row['both']:.0%}, at least one {row['one']:.0%}"
        print(f"{way:26} {there}, drawn {row['drawn']:.3f} ± {row['drawn_half']:.3f}, {row['seconds']:.1f} s a picture")


if __name__ == "__main__":
    main()
