"""The gain of captions over templates: a thing learned from pictures in which something else stands beside it.

Each of the four pictures shows the thing in a relation to another sticker, a different one each time, on a background
of its own. It is learned twice by the recipe for the base, from the same noise: under the templates of the method, and
under captions (`evaluation.captions.stickers`) in which what all pictures show is left out and the new word stands
there. Measured on prompts of the thing alone: how like the true drawing it is, and in how many pictures it stands by
itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from PIL import Image

from evaluation.captions.stickers import StickerCaptioner
from evaluation.concepts import PROMPTS, WAYS
from evaluation.truth import composed, crops_of, truth_of
from pipelines.captions.wording import Wording
from pipelines.concepts.concept import Concept
from pipelines.errors import DataError
from pipelines.events import OnEvent, ignore
from pipelines.generation import generate
from pipelines.measures.judge import Judge
from pipelines.measures.stickers import detect, picture_similarity
from pipelines.models.components import Components
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import ConceptUse, Request
from trainers.data.batches import Example
from trainers.data.caption_files import caption_line
from trainers.loop.train import train
from trainers.methods import methods
from trainers.run import run_of
from trainers.stickers.drawn import drawn
from trainers.stickers.world import CLASS_WORDS, COLOURS, NAMES, Scene, scene

SEED = 307
SEEDS = 6
"""Pictures of each prompt."""
WAYS_OF_TELLING = ("templates", "captions")


def busy_scenes(thing: str, count: int = 4, seed: int = SEED) -> list[Scene]:
    """Return pictures of a held-out sticker in a relation to another thing; things and backgrounds all differ."""
    rng = random.Random(seed + list(CLASS_WORDS).index(thing))
    others, colours = rng.sample(NAMES, count), rng.sample(tuple(COLOURS), count)
    pairs = zip(others, colours, strict=True)
    return [scene(rng, names=(thing, other), kind="relation", colour=colour) for other, colour in pairs]


def captioned(judge: Judge, pictures: Sequence[Image.Image], token: str) -> list[str]:
    """Return the captions of pictures, what all show left out; an empty one where nothing could be said."""
    captioner = StickerCaptioner(judge)
    answers = [captioner.told(to_tensor(one)) for one in pictures]
    wording = Wording(token=token, shared=True).among(tuple(filter(None, answers)))
    return [caption_line(one, wording) if one else "" for one in answers]


def taught(
    components: Components,
    thing: str,
    captions: Sequence[str],
    way: str = "textual-inversion",
    *,
    seed: int = 0,
    steps: int | None = None,
    on_event: OnEvent = ignore,
) -> Concept:
    """Teach a held-out sticker from its busy pictures, by the recipe for the base.

    Args:
        components: the base.
        thing: a key of `CLASS_WORDS`.
        captions: one for each picture; an empty one leaves it to the templates.
        way: a key of `evaluation.concepts.WAYS`.
        seed: of the training.
        steps: instead of the recipe's.
        on_event: receives the training's events.
    """
    name, own = WAYS[way]
    start = "init" if name == "textual-inversion" else "class_word"
    chosen = {"token": f"<my-{thing}>", start: CLASS_WORDS[thing], "images": "composed", "seed": seed, **own}
    run = run_of(methods()[name], chosen | ({} if steps is None else {"steps": steps}))
    run = run.with_recipe(components.family.name)
    examples = [
        Example(f"{thing} {index}.png", picture, (text,) if text else ())
        for index, (picture, text) in enumerate(zip(composed(busy_scenes(thing)), captions, strict=True))
    ]
    return cast(Concept, train(components, run, examples, on_event=on_event))


@dataclass(frozen=True)
class Learned:
    """The figures of a thing, or their means over several.

    Attributes:
        drawn: drawn likeness of the thing to its true drawing, at most 1.
        likeness: the judge's likeness to real pictures, at most 1.
        alone: share of pictures that show one thing.
    """

    drawn: float
    likeness: float
    alone: float


def measured(components: Components, judge: Judge, concept: Concept, thing: str, count: int = SEEDS) -> Learned:
    """Return the figures of a concept on prompts of the thing alone, so many pictures of each."""
    truth, pictures = truth_of(thing), list[Image.Image]()
    for index, prompt in enumerate(PROMPTS):
        use = (ConceptUse(source="taught"),)
        asked = Request(prompt=prompt.format(concept.token), concepts=use, count=count, seed=1000 * (index + 1))
        pictures += generate(components, asked, concepts={"taught": concept}).pictures
    alone = sum(len(detect(to_tensor(one))) == 1 for one in pictures) / len(pictures)
    likeness = picture_similarity(judge, crops_of(pictures), truth.crops)
    return Learned(drawn(pictures, truth.drawings).likeness, float(likeness), alone)


def gain(
    components: Components,
    judge: Judge,
    things: Sequence[str],
    *,
    count: int = SEEDS,
    steps: int | None = None,
    on_event: OnEvent = ignore,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Learned]]:
    """Teach things under templates and under captions; return the figures of each, and their means as "mean".

    Args:
        components: the base.
        judge: measures, and reads the pictures.
        things: held-out stickers.
        count: pictures of each of the four prompts.
        steps: instead of the recipe's.
        on_event: receives the trainings' events.
        say: is told the captions.

    Raises:
        DataError: if no caption can be written of the pictures of a thing.
    """
    rows: dict[str, dict[str, Learned]] = {}
    for thing in things:
        told = captioned(judge, composed(busy_scenes(thing)), f"<my-{thing}>")
        if not any(told):
            raise DataError(f"No caption can be written of the pictures of {thing}.", "Choose another with --only.")
        say("\n".join(f"{thing}: {line or 'nothing'}" for line in told))
        given = {"templates": [""] * len(told), "captions": told}
        rows[thing] = {
            way: measured(
                components, judge, taught(components, thing, given[way], steps=steps, on_event=on_event), thing, count
            )
            for way in WAYS_OF_TELLING
        }
    return rows | {"mean": {way: mean([row[way] for row in rows.values()]) for way in WAYS_OF_TELLING}}


def mean(found: Sequence[Learned]) -> Learned:
    """Return the mean of each figure."""
    sums = {name: sum(getattr(one, name) for one in found) / len(found) for name in ("drawn", "likeness", "alone")}
    return replace(found[0], **sums)


def table(rows: Mapping[str, Mapping[str, Learned]]) -> str:
    """Return a line for each thing and way of telling."""
    lines = [f"{'thing':<10}{'told by':<12}{'drawn':>8}{'likeness':>10}{'alone':>8}"]
    for thing, ways in rows.items():
        for way, one in ways.items():
            lines.append(f"{thing:<10}{way:<12}{one.drawn:>8.3f}{one.likeness:>10.3f}{one.alone:>8.2f}")
    return "\n".join(lines)
