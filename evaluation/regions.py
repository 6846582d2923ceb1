"""Several learned things in one picture, each in its own box, in three ways.

Boxes alone lay the weights over the whole picture. Kept to boxes, weights and words act in their boxes, which is what
happens by itself where several weights are used. Regions have a prompt of their own, so that a word is nowhere else
either: a strong word colours the whole of a prompt that it stands in.

Each thing is taught once as a word (Textual Inversion) and once by weights (DreamBooth, low-rank, with a word of its
own). Layouts, seeds and figures are those of `evaluation.boxes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from evaluation.boxes import SEED, Layout, PictureCheck, box_row, drawn, figures, layouts, look, said
from evaluation.concepts import teach_sticker
from pipelines.concepts.concept import Concept
from pipelines.events import OnEvent, ignore
from pipelines.generation import generate
from pipelines.measures.judge import Judge
from pipelines.models.components import Components
from pipelines.request.regions import Region
from pipelines.request.request import ConceptUse, Request
from trainers.stickers.world import HELD_OUT

LAYOUTS = 12
"""Layouts of each group of things."""
ALONE, KEPT, REGIONS = "boxes alone", "kept to boxes", "regions"
WAYS = (ALONE, KEPT, REGIONS)
WORD, WEIGHTS = "textual-inversion", "pivotal"
KINDS: Mapping[str, tuple[str, ...]] = {
    "one word": (WORD,),
    "one LoRA": (WEIGHTS,),
    "two words": (WORD, WORD),
    "two LoRA": (WEIGHTS, WEIGHTS),
    "a LoRA and a word": (WEIGHTS, WORD),
    "three LoRA": (WEIGHTS, WEIGHTS, WEIGHTS),
}
"""Kinds of groups: how each of their things is learned."""


def groups(things: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return each thing with those that follow it in a ring; none if there are too few.

    >>> groups(("a", "b", "c"), 2), groups(("a", "b"), 2), groups(("a", "b"), 3)
    ([('a', 'b'), ('b', 'c'), ('c', 'a')], [('a', 'b')], [])
    """
    if size > len(things):
        return []
    ring = [tuple(things[(start + step) % len(things)] for step in range(size)) for start in range(len(things))]
    return ring[:1] if size == len(things) > 1 else ring


def score_regions(
    components: Components,
    judge: Judge,
    things: Sequence[str] = tuple(HELD_OUT),
    *,
    count: int = LAYOUTS,
    on_event: OnEvent = ignore,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> dict[str, dict[str, float]]:
    """Teach held-out stickers and draw them in boxes, with regions and without.

    Args:
        components: `pocket`.
        judge: names the things.
        things: held-out stickers; each is drawn beside those that follow it.
        count: layouts of each group.
        on_event: receives the trainings' events.
        say: receives each row when it is done.
        settings: of the methods or of training, instead of the recipes'.
    """
    taught = {
        way: {thing: teach_sticker(components, thing, way, on_event=on_event, **settings) for thing in things}
        for way in (WORD, WEIGHTS)
    }
    rows: dict[str, dict[str, float]] = {}
    for kind, ways in KINDS.items():
        for way in WAYS:
            asked: list[Layout] = []
            seen: list[PictureCheck] = []
            for index, group in enumerate(groups(things, len(ways))):
                learned = {thing: taught[way][thing] for thing, way in zip(group, ways, strict=True)}
                own, looks = _drawn(components, judge, learned, count, index, way)
                asked, seen = asked + own, seen + looks
            if asked:
                name = f"{kind}, {way}"
                rows[name] = figures(asked, seen)
                if say:
                    say(box_row(name, rows[name]))
    return rows


def _drawn(
    components: Components, judge: Judge, learned: Mapping[str, Concept], count: int, index: int, way: str
) -> tuple[list[Layout], list[PictureCheck]]:
    """Return layouts of a group of things, and what is seen in the pictures of them."""
    asked, seed = layouts(count, SEED + 100 + index, [tuple(learned)]), SEED + 1_000 * (index + 1)
    if way == REGIONS:
        pictures = [_in_regions(components, one, learned, seed + place) for place, one in enumerate(asked)]
    else:
        pictures = drawn(components, asked, 1.0, learned, region=way == KEPT, seed=seed)
    return asked, [look(judge, picture, layout) for picture, layout in zip(pictures, asked, strict=True)]


def _in_regions(components: Components, layout: Layout, learned: Mapping[str, Concept], seed: int) -> Image.Image:
    """Draw a layout whose boxes are regions with prompts of their own; the prompt of the rest has the class words."""
    kinds = {thing: concept.card.init or thing for thing, concept in learned.items()}
    request = Request(
        prompt=said(layout.things, kinds),
        seed=seed,
        concepts=tuple(ConceptUse(source=thing) for thing in learned),
        regions=tuple(
            Region(prompt=f"a {learned[thing].token}", box=box)
            for thing, box in zip(layout.things, layout.boxes, strict=True)
        ),
    )
    (picture,) = generate(components, request, concepts=learned).pictures
    return picture
