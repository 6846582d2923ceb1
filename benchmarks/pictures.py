"""Every picture of the docs that is no figure of a measurement: drawn anew by the commands that people type.

    python -m benchmarks.pictures                  # all, some minutes on two cores
    python -m benchmarks.pictures inpainting demo  # some

The sheets of measurements (boxes, relations, questions) are drawn by `python -m benchmarks.results`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.concepts import teach_sticker
from pipelines.generation import generate
from pipelines.models.loading import load
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_pictures
from pipelines.request.boxes import Box
from pipelines.request.regions import Region
from pipelines.request.request import ConceptUse, Grounding, Request
from trainers.stickers.world import Placed, Scene, Stickers

ROOT = Path(__file__).parents[1]
DOCS, WOLF = ROOT / "docs", ROOT / "studio" / "examples" / "wolf"
LIMIT = 3600.0
"""Seconds a command may take."""


def studio(*words: object) -> None:
    """Run a command of the studio."""
    print("studio", *words, flush=True)
    subprocess.run([sys.executable, "-m", "studio.cli", *map(str, words)], cwd=ROOT, check=True, timeout=LIMIT)


def module(name: str, *words: object) -> None:
    """Run a module of the repository."""
    print(f"python -m {name}", *words, flush=True)
    subprocess.run([sys.executable, "-m", name, *map(str, words)], cwd=ROOT, check=True, timeout=LIMIT)


def small(source: Path, target: Path) -> None:
    """Write a picture in 256 colours."""
    with Image.open(source) as picture:
        picture.convert("RGB").quantize(256).save(target, optimize=True)


def demo(folder: Path) -> None:
    """Draw the sheet of the demo."""
    module("studio.commands.demo")
    shutil.copy(ROOT / "outputs" / "demo.png", folder / "demo.png")


def comparison(folder: Path) -> None:
    """Guidance scale across, steps down."""
    with tempfile.TemporaryDirectory() as place:
        words = ("--compare", "guidance.scale=1,2,4", "--compare", "steps=5,10,25", "--output", place)
        studio("generate", "a fox left of a house on a blue background", *words)
        (sheet,) = Path(place).rglob("comparison.png")
        small(sheet, folder / "comparison.png")


def guidance(folder: Path) -> None:
    """Formulas of guidance across, scales down."""
    with tempfile.TemporaryDirectory() as place:
        words = ("--compare", "guidance.preset=cfg,apg,cfg-zero,tcfg,pag,seg", "--compare", "guidance.scale=1,2,4,8")
        studio("generate", "a penguin to the left of a house on a blue background", *words, "--output", place)
        (sheet,) = Path(place).rglob("comparison.png")
        small(sheet, folder / "guidance.png")


def attention(folder: Path) -> None:
    """Maps of the words of a prompt over its picture."""
    with tempfile.TemporaryDirectory() as place:
        studio("generate", "a penguin and a house on a blue background", "--output", place)
        studio("attention", Path(place) / "0.png", "--output", Path(place) / "sheet.png")
        small(Path(place) / "sheet.png", folder / "attention.png")


def regions(folder: Path) -> None:
    """Two learned animals in one picture: added up, in boxes, and each in a region of its own."""
    base = load("pocket")
    learned = {name: teach_sticker(base, name, "pivotal") for name in ("wolf", "tiger")}
    wolf, tiger = (one.token for one in learned.values())
    left, right = (0.04, 0.3, 0.46, 0.8), (0.54, 0.3, 0.96, 0.8)
    boxes = (Box(phrase=wolf, box=left), Box(phrase=tiger, box=right))
    parts = (Region(prompt=f"a {wolf}", box=left), Region(prompt=f"a {tiger}", box=right))
    both = f"a {wolf} and a {tiger} on a blue background"
    ways: dict[str, dict[str, Any]] = {
        "the prompt alone": {"prompt": both},
        "boxes, weights added up": {"prompt": both, "boxes": boxes, "grounding": Grounding(region=False)},
        "boxes, weights in their boxes": {"prompt": both, "boxes": boxes},
        "regions with prompts": {"prompt": "a blue background", "regions": parts},
    }
    sheet = Sheet(cell=128, label=220)
    for way, fields in ways.items():
        request = Request(**fields, concepts=tuple(ConceptUse(source=name) for name in learned), count=4)
        sheet.row(way, generate(base, request, concepts=learned).pictures)
    path = folder / "regions.png"
    small(sheet.save(path), path)


def sliders(folder: Path) -> None:
    """Things that were not taught with, at each strength of three sliders."""
    studio("score", "--sliders", "--pictures", 1, "--sheet", folder / "sliders.png")


def choosing(folder: Path) -> None:
    """The same prompts and seeds for every step of a training."""
    with tempfile.TemporaryDirectory() as place:
        library = ("--library", place)
        subject = ("--token", "<wolf3>", "--class-word", "fox", "--pivotal", "--candidates", 5)
        studio("train", "dreambooth", "--images", WOLF, *subject, "--output", Path(place) / "wolf3.safetensors")
        studio("choose", "wolf3", "--images", WOLF, "--sheet", Path(place) / "sheet.png", *library)
        small(Path(place) / "sheet.png", folder / "choosing.png")


def _scene(colour: str, *things: tuple[str, int, int, int]) -> Image.Image:
    stickers = tuple(Placed(name, left, top, side) for name, side, left, top in things)
    return to_pictures(Stickers(64).render([Scene("", stickers, colour)]).images)[0]


def inpainting(folder: Path) -> None:
    """Things replaced by a cat, with the mask that was found."""
    sheet = Sheet(cell=128, label=220)
    sheet.head(["picture", "mask", "result"])
    pair = _scene("blue", ("fox", 26, 5, 20), ("house", 28, 34, 18))
    for picture, thing in ((pair, "fox"), (pair, "house"), (_scene("green", ("apple", 44, 10, 10)), "apple")):
        colour = "green" if thing == "apple" else "blue"
        with tempfile.TemporaryDirectory() as place:
            source, mask, drawn = Path(place) / "picture.png", Path(place) / "mask.png", Path(place) / "drawn"
            picture.save(source)
            middle = "0.28,0.5" if thing == "fox" else "0.75,0.5" if thing == "house" else "0.5,0.5"
            studio("mask", source, "--click", middle, "--output", mask)
            studio("replace", source, thing, f"a cat on a {colour} background", "--output", drawn)
            (result,) = drawn.rglob("*.png")
            shown = [Image.open(one).convert("RGB") for one in (mask, result)]
            sheet.row(f"the {thing} replaced", [picture, *shown])
    path = folder / "inpainting.png"
    small(sheet.save(path), path)


def pages(folder: Path) -> None:
    """The pages of the studio, in the browser."""
    module("tests.browser.shots", "--folder", folder)


PICTURES: dict[str, Callable[[Path], None]] = {
    "demo": demo,
    "comparison": comparison,
    "guidance": guidance,
    "attention": attention,
    "regions": regions,
    "sliders": sliders,
    "choosing": choosing,
    "inpainting": inpainting,
    "pages": pages,
}


def main() -> None:
    """Draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the docs anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all by default")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where they are written")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in PICTURES]:
        parser.error(f"{unknown[0]!r} is none of them; there are {', '.join(PICTURES)}.")
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name in asked.names or PICTURES:
        PICTURES[name](asked.folder.resolve())


if __name__ == "__main__":
    main()
