"""Accuracy of boxes: positions of things with boxes and, from the same prompts and seeds, without them.

Layouts are those of composed pictures: one to three things apart from each other, each with the box of what would be
seen of it. Things are found by the exact detector and named by the judge among all names, as everywhere.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw

from evaluation.concepts import PAIR_STRENGTH
from pipelines.concepts.concept import Concept
from pipelines.conditions.boxes import Boxes
from pipelines.generation import generate
from pipelines.measures.judge import Judge
from pipelines.measures.stickers import crop, detect, name
from pipelines.models.components import Components
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import Box, ConceptUse, Grounding, Request
from trainers.stickers.drawn import drawn_scene
from trainers.stickers.free_scenes import listed, thrown
from trainers.stickers.world import ALL_NAMES, NAMES, Placed, Scene, Stickers

Corners = tuple[float, float, float, float]
"""x0 y0 x1 y1 in fractions."""

LAYOUTS = 200
GROUP = 4
"""Layouts of the same things that are drawn in one batch."""
SEED = 23_000
IN_PLACE = 0.5
"""Overlap from which a thing stands in its box."""
BETAS = (0.3, 0.5, 1.0)
SIDES = {1: (24, 28, 32, 36, 40, 44), 2: (18, 20, 22, 24, 26, 28), 3: (16, 18, 20, 22)}
"""Sides of the things of a layout by how many there are, in 64ths."""
APART = 4
"""Space around things in 64ths: nearer, the autoencoder runs them together and no detector tells them apart."""


@dataclass(frozen=True)
class Layout:
    """Things and their boxes."""

    things: tuple[str, ...]
    boxes: tuple[Corners, ...]


@dataclass(frozen=True)
class Sighting:
    """A thing found in a picture: the judge's name for it, its box, and the judge's certainty in [0, 1]."""

    name: str
    box: Corners
    sure: float


@dataclass(frozen=True)
class PictureCheck:
    """The things seen in one picture.

    Attributes:
        found: the things found.
        inside: the judge's name for the content of each requested box.
        alike: drawn likeness of each thing asked for.
    """

    found: tuple[Sighting, ...]
    inside: tuple[str, ...]
    alike: tuple[float, ...] = ()


def layouts(count: int, seed: int = SEED, things: Sequence[tuple[str, ...]] = ()) -> list[Layout]:
    """Return seeded layouts, each `GROUP` in a row of the same things: one, two, three, or those given, in turn."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        turn = len(scenes) // GROUP
        used = things[turn % len(things)] if things else tuple(rng.sample(NAMES, 1 + turn % 3))
        for _ in range(min(GROUP, count - len(scenes))):
            scenes.append(Scene("", _placed(rng, used), "gray"))
    shown = tuple(dict.fromkeys(one.name for item in scenes for one in item.stickers))
    boxes = Stickers(64, names=shown).render(scenes).boxes.tolist()
    return [
        Layout(tuple(one.name for one in item.stickers), tuple(tuple(b) for b in row[: len(item.stickers)]))
        for item, row in zip(scenes, boxes, strict=True)
    ]


def _placed(rng: random.Random, used: tuple[str, ...]) -> tuple[Placed, ...]:
    """Return the things at random places, with space between them."""
    grown = tuple(side + APART for side in SIDES[len(used)])
    while True:
        squares = thrown(rng, len(used), grown, overlap=0.0)
        if len(squares) == len(used):
            half = APART // 2
            return tuple(
                Placed(one, left + half, top + half, side - APART)
                for one, (left, top, side) in zip(used, squares, strict=True)
            )


def overlap(one: Corners, other: Corners) -> float:
    """Return the intersection over union of two boxes."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, across) * max(0.0, down)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both) if both else 0.0


# -- looking ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def look(judge: Judge, picture: Image.Image, layout: Layout, names: Sequence[str] = ALL_NAMES) -> PictureCheck:
    """Find and name the things of a picture, and name what is in the boxes of its layout."""
    image = to_tensor(picture)
    things = detect(image)
    inside = tuple(name(judge, [crop(image, box) for box in layout.boxes], names))
    alike = tuple(one.likeness for one in drawn_scene(picture, layout.things))
    if not things:
        return PictureCheck((), inside, alike)
    texts = judge.embed_texts([f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in names])
    likeness = judge.embed_pictures(torch.stack([one.crop for one in things])) @ texts.T
    sure, which = (likeness * judge.log_scale.exp()).softmax(1).max(1)
    found = [
        Sighting(names[int(index)], thing.box, float(share))
        for thing, index, share in zip(things, which, sure, strict=True)
    ]
    return PictureCheck(tuple(found), inside, alike)


def average_precision(hits: Sequence[tuple[float, bool]], wanted: int) -> float:
    """Return the area under the precision-recall curve of detections, with interpolated precision.

    Args:
        hits: for each detection how sure it was, and whether it was right.
        wanted: number of things to find.
    """
    ranked = [right for _, right in sorted(hits, key=lambda hit: -hit[0])]
    precisions = [sum(ranked[: index + 1]) / (index + 1) for index in range(len(ranked))]
    best = [max(precisions[index:]) for index in range(len(ranked))]
    return sum(value for value, right in zip(best, ranked, strict=True) if right) / wanted


def _hits(layout: Layout, seen: PictureCheck) -> list[tuple[float, bool]]:
    """Return, for each thing found, its certainty, and whether it is the surest one in a box of its name."""
    taken: set[int] = set()
    hits: list[tuple[float, bool]] = []
    for one in sorted(seen.found, key=lambda thing: -thing.sure):
        fits = [
            (overlap(one.box, box), index)
            for index, (thing, box) in enumerate(zip(layout.things, layout.boxes, strict=True))
            if thing == one.name and index not in taken
        ]
        share, index = max(fits, default=(0.0, -1))
        if share >= IN_PLACE:
            taken.add(index)
        hits.append((one.sure, share >= IN_PLACE))
    return hits


def overlaps(layout: Layout, seen: PictureCheck) -> list[float]:
    """Return, for each box, the largest overlap with a thing of its name; 0 if there is none."""
    return [
        max((overlap(one.box, box) for one in seen.found if one.name == thing), default=0.0)
        for thing, box in zip(layout.things, layout.boxes, strict=True)
    ]


def leaks(layout: Layout, seen: PictureCheck) -> bool:
    """Return whether a thing is where another should be, or in a second place."""
    for thing in layout.things:
        others = [inside for place, inside in zip(layout.things, seen.inside, strict=True) if place != thing]
        if thing in others or sum(one.name == thing for one in seen.found) > layout.things.count(thing):
            return True
    return False


def figures(asked: Sequence[Layout], seen: Sequence[PictureCheck]) -> dict[str, float]:
    """Return figures over pictures, one for each layout.

    Returns:
        `iou`, mean over boxes of the overlap with the thing of its name; `in_place`, share of boxes where it is at
        least `IN_PLACE`; `ap50`; `drawn`, mean drawn likeness, where it was measured; `named`, share of boxes whose
        content the judge names right; `leakage`, share of pictures; and of layouts of two things, where there are some,
        `both`, the share that show both things anywhere, and `both_in_place`.
    """
    each = [overlaps(layout, one) for layout, one in zip(asked, seen, strict=True)]
    shares = [value for row in each for value in row]
    right = [a == b for layout, one in zip(asked, seen, strict=True) for a, b in zip(layout.things, one.inside)]  # noqa: B905
    hits = [hit for layout, one in zip(asked, seen, strict=True) for hit in _hits(layout, one)]
    row = {
        "iou": sum(shares) / len(shares),
        "in_place": sum(share >= IN_PLACE for share in shares) / len(shares),
        "ap50": average_precision(hits, len(shares)),
        "named": sum(right) / len(right),
        "leakage": sum(leaks(layout, one) for layout, one in zip(asked, seen, strict=True)) / len(asked),
    }
    if alike := [value for one in seen for value in one.alike]:
        row["drawn"] = sum(alike) / len(alike)
    pairs = [index for index, layout in enumerate(asked) if len(layout.things) == 2]
    if pairs:
        there = [set(asked[i].things) <= {one.name for one in seen[i].found} for i in pairs]
        row["both"] = sum(there) / len(pairs)
        row["both_in_place"] = sum(min(each[i]) >= IN_PLACE for i in pairs) / len(pairs)
    return row


# -- drawing ----------------------------------------------------------------------------------------------------


def drawn(
    components: Components,
    asked: Sequence[Layout],
    beta: float | None,
    concepts: Mapping[str, Concept] | None = None,
    *,
    region: bool = False,
    seed: int = SEED,
) -> list[Image.Image]:
    """Draw one picture for each layout from its own seed; layouts of the same things go in one batch.

    Args:
        components: the base.
        asked: the layouts.
        beta: share of the steps in which the boxes act; None for the prompt alone.
        concepts: thing -> the concept that stands for it in prompt and box.
        region: whether cross-attention to each phrase is restricted to its box.
        seed: of the first picture.
    """
    learned = concepts or {}
    words = {thing: concept.token for thing, concept in learned.items()}
    mixed = sum(bool(one.changes) for one in learned.values()) > 1 and not region  # in regions nothing adds up
    strength = PAIR_STRENGTH if mixed else 1.0
    uses = tuple(ConceptUse(source=thing, strength=strength) for thing in learned)
    pictures: list[Image.Image] = []
    while len(pictures) < len(asked):
        start = len(pictures)
        things = asked[start].things
        # Regions are those of one layout.
        group = asked[start : start + (1 if region else GROUP)]
        batch = list(itertools.takewhile(lambda layout: layout.things == things, group))  # noqa: B023, used at once
        sets = [
            tuple(Box(phrase=words.get(one, one), box=box) for one, box in zip(things, layout.boxes, strict=True))
            for layout in batch
        ]
        request = Request(
            prompt=said(things, words),
            concepts=uses,
            count=len(batch),
            seed=seed + start,
            boxes=sets[0] if region else (),
            grounding=Grounding(beta=beta, region=region),
        )
        conditions = (
            []
            if beta is None or region
            else [Boxes(sets, beta, {one.token: one.card.init for one in learned.values()})]
        )
        pictures += generate(components, request, concepts=learned, conditions=conditions).pictures
    return pictures


def said(things: Sequence[str], words: Mapping[str, str]) -> str:
    """Return the prompt that names the things without their places."""
    text = listed(list(things))
    for thing, word in words.items():
        text = text.replace(thing, word)
    return text


@dataclass(frozen=True)
class DrawnLayouts:
    """A way of drawing layouts with its figures and its pictures."""

    figures: Mapping[str, float]
    pictures: Sequence[Image.Image]


def score_boxes(
    components: Components, judge: Judge, count: int = LAYOUTS, *, say: Callable[[str], None] | None = None
) -> tuple[list[Layout], dict[str, DrawnLayouts]]:
    """Draw seeded layouts from the text alone and with boxes, and score both.

    Args:
        components: `pocket`.
        judge: names the things.
        count: layouts.
        say: receives each way when it is done.
    """
    asked = layouts(count)
    ways: dict[str, DrawnLayouts] = {}
    for way, beta in {"text alone": None, **{f"boxes, beta {beta}": beta for beta in BETAS}}.items():
        pictures = drawn(components, asked, beta)
        seen = [look(judge, picture, layout) for picture, layout in zip(pictures, asked, strict=True)]
        ways[way] = DrawnLayouts(figures(asked, seen), pictures)
        if say:
            say(box_row(way, ways[way].figures))
    return asked, ways


# -- telling ----------------------------------------------------------------------------------------------------

FIGURES = ("iou", "ap50", "in_place", "drawn", "named", "both", "both_in_place", "leakage")


def box_row(way: str, row: Mapping[str, float]) -> str:
    """Return the figures of a way as a line."""
    return f"{way:<36}" + "  ".join(f"{figure} {row[figure]:.3f}" for figure in FIGURES if figure in row)


COLOURS = ("#d62728", "#1f4fd6", "#111111")


def outlined(picture: Image.Image, layout: Layout, scale: int = 2) -> Image.Image:
    """Return the picture, enlarged, with the boxes of its layout drawn over it."""
    large = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for box, colour in zip(layout.boxes, COLOURS, strict=False):
        pen.rectangle([round(edge * large.width) - (index > 1) for index, edge in enumerate(box)], outline=colour)
    return large


def box_sheet(asked: Sequence[Layout], ways: Mapping[str, DrawnLayouts], shown: int = 12) -> Sheet:
    """Return a sheet: layouts as rows, ways as columns, the boxes drawn over every picture."""
    sheet = Sheet(cell=128, label=170)
    sheet.head([way for way in ways])
    for index in range(0, min(len(asked), shown * GROUP), GROUP):
        caption = said(asked[index].things, {})
        sheet.row(caption, [outlined(one.pictures[index], asked[index]) for one in ways.values()])
    return sheet
