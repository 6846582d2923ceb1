"""Accuracy of a learned relation between things it was not trained on, beside three baselines.

Every picture is of another pair, from another seed, the same for all ways. Relation accuracy is the share of pictures
that show both things named, standing as the relation says, by the exact finder; entity accuracy the share that show
both things; leakage the share that show a thing of the exemplar pictures that nobody asked for.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image
from torch import Tensor

from evaluation.sticker_finder import Finder
from pipelines.concepts.concept import Concept
from pipelines.events import OnEvent, ignore
from pipelines.generation import generate
from pipelines.models.components import Components
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_pictures, to_tensor
from pipelines.request.request import ConceptUse, Request
from trainers.data.folders import Example
from trainers.loop.train import train
from trainers.methods import methods
from trainers.run import run_of
from trainers.stickers.drawn import drawn_scene, summed
from trainers.stickers.relations import RELATIONS_TO_TEACH, PlacedThing, exemplars, unseen_pairs
from trainers.stickers.world import COLOURS, RELATIONS, Scene, Stickers, article

TOKEN = "<r>"
PICTURES = 40
TRIAL_PICTURES = 24
"""Pictures with which the best phrase is chosen, of other pairs and seeds than it is then scored on."""
SEED, TRIAL_SEED = 9_000, 19_000

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "textual-inversion": ("textual-inversion", {"steps": 600}),
    "reversion-word": ("reversion", {"lora": False}),
    "reversion": ("reversion", {}),
}
"""Ways of learning a relation that are compared by default: method and settings.

Textual Inversion gets three times its steps, so that it takes as long as ReVersion, which on `pocket` changes weights
too; "reversion-word" is ReVersion as published, the word alone.
"""

EXTENSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "steer-0": ("reversion", {"steer": 0.0}),
    "focal-0": ("reversion", {"focal": 0.0}),
    "vectors-3": ("reversion", {"vectors": 3}),
    "norm-pull": ("reversion", {"norm_pull": 0.1}),
    "masks": ("reversion", {"masks": True}),
    "keep-0": ("reversion", {"keep": 0.0}),
}
"""Single switches of ReVersion, to be measured beside it."""


def pictures_of(relation: str, masks: bool = False) -> list[Example]:
    """Return the exemplar pictures of a relation with their captions, and with masks of the two things if wanted."""
    listed = exemplars(relation)
    rendered = Stickers(64).render([one.scene for one in listed])
    shown = [Image.fromarray((mask.any(0).numpy() * 255).astype("uint8")) for mask in rendered.masks]
    return [
        Example(
            f"{index}.png",
            picture,
            (one.scene.caption, one.scene.caption.partition(" on ")[0]),
            shown[index] if masks else None,
        )
        for index, (one, picture) in enumerate(zip(listed, to_pictures(rendered.images), strict=True))
    ]


def teach_relation(
    components: Components, relation: str, way: str = "reversion", *, on_event: OnEvent = ignore, **settings: Any
) -> Concept:
    """Learn a relation from its ten exemplar pictures.

    Args:
        components: the base.
        relation: a key of `RELATIONS_TO_TEACH`.
        way: a key of `WAYS` or `EXTENSIONS`.
        on_event: receives the training's events.
        settings: of the method or of training, instead of the recipe's.
    """
    name, own = (WAYS | EXTENSIONS)[way]
    chosen = {"token": TOKEN, "init": INIT, **own, **settings}
    run = run_of(methods()[name], {**chosen, "images": "composed"}).with_recipe(components.family.name)
    examples = pictures_of(relation, masks=bool(chosen.get("masks")))
    return cast(Concept, train(components, run, examples, on_event=on_event))


INIT = "above"
"""The word that learning starts from, for every way; the untrained token is this word."""


@dataclass(frozen=True)
class Tally:
    """Counts over pictures of one relation.

    Attributes:
        held: for each picture, whether both things are there and stand as told.
        entities: whether both are there.
        leaked: whether an exemplar's thing is there uninvited.
        seconds: of learning.
        alike: drawn likeness of each picture, the mean of its two things; empty where it was not measured.
    """

    held: tuple[bool, ...]
    entities: tuple[bool, ...]
    leaked: tuple[bool, ...]
    seconds: float = 0.0
    alike: tuple[float, ...] = ()

    def figures(self) -> dict[str, float]:
        """Return shares, with 95 % intervals of the relation's."""
        low, high = wilson(sum(self.held), len(self.held))
        return {
            "relation": sum(self.held) / len(self.held),
            "low": low,
            "high": high,
            "entities": sum(self.entities) / len(self.entities),
            "leakage": sum(self.leaked) / len(self.leaked),
            "seconds": self.seconds,
        } | ({"drawn": sum(self.alike) / len(self.alike)} if self.alike else {})


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a share; z 1.96 for 95 %, 1.645 for 90 %."""
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / trials / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def holds_in(relation: str, first: str, second: str, things: Sequence[PlacedThing]) -> bool:
    """Return whether a relation holds between any two things of these names."""
    check = RELATIONS_TO_TEACH[relation].holds
    return any(check(a, b, things) for a in things if a.name == first for b in things if b.name == second)


def drawn_pairs(
    components: Components, pairs: Sequence[tuple[str, str]], said: str, concept: Concept | None, seed: int
) -> list[Image.Image]:
    """Draw one picture of each pair, the relation in these words, each from its own seed."""
    concepts = {"relation": concept} if concept else {}
    uses = tuple(ConceptUse(source=name) for name in concepts)
    return [
        generate(
            components,
            Request(prompt=f"{article(a)} {said} {article(b)}", concepts=uses, seed=seed + index),
            concepts=concepts,
        ).pictures[0]
        for index, (a, b) in enumerate(pairs)
    ]


def true_pictures(relation: str, pairs: Sequence[tuple[str, str]]) -> list[Tensor]:
    """Return composed pictures of pairs in a relation, to measure the accuracy of the finder itself."""
    rng = random.Random(SEED)
    check = RELATIONS_TO_TEACH[relation]
    listed = [Scene("", check.layout(rng, a, b), rng.choice(tuple(COLOURS))) for a, b in pairs]
    return list(Stickers(64).render(listed).images)


def tally(
    relation: str,
    pairs: Sequence[tuple[str, str]],
    seen: Sequence[Sequence[PlacedThing]],
    seconds: float = 0.0,
    alike: tuple[float, ...] = (),
) -> Tally:
    """Count the things and relations found in one picture of each pair."""
    shown = {name for one in exemplars(relation) for name in (one.first, one.second)}
    names = [{thing.name for thing in things} for things in seen]
    return Tally(
        tuple(holds_in(relation, a, b, things) for (a, b), things in zip(pairs, seen, strict=True)),
        tuple({a, b} <= found for (a, b), found in zip(pairs, names, strict=True)),
        tuple(bool(found & shown) for found in names),
        seconds,
        alike,
    )


def phrases() -> tuple[str, ...]:
    """Return all phrases for a relation, trained phrases first."""
    known = [phrase for said in RELATIONS.values() for phrase in said]
    own = [phrase for relation in RELATIONS_TO_TEACH.values() for phrase in relation.phrases]
    return tuple(dict.fromkeys((*known, "and", *own)))


class BestPhrase:
    """A choice of the best phrase for a relation, on pairs and seeds apart from the scored ones.

    Args:
        components: the base.
        finder: detects stickers.
        count: pictures of each phrase.
    """

    def __init__(self, components: Components, finder: Finder, count: int = TRIAL_PICTURES) -> None:
        self.pairs = unseen_pairs(next(iter(RELATIONS_TO_TEACH)), count + PICTURES)[PICTURES:]
        self.seen = {
            said: [finder(to_tensor(p)) for p in drawn_pairs(components, self.pairs, said, None, TRIAL_SEED)]
            for said in phrases()
        }

    def __call__(self, relation: str) -> str:
        """Return the phrase; among equals the one with more of the things named there."""
        counted = {said: tally(relation, self.pairs, seen) for said, seen in self.seen.items()}
        return max(counted, key=lambda said: (sum(counted[said].held), sum(counted[said].entities)))


@dataclass(frozen=True)
class Compared:
    """A relation in several ways.

    Attributes:
        tallies: way -> what was found.
        pictures: way -> its pictures, of the same pairs and seeds.
        phrase: the best phrase in words.
    """

    tallies: Mapping[str, Tally]
    pictures: Mapping[str, list[Image.Image]]
    phrase: str


def compare_relation(
    components: Components,
    finder: Finder,
    relation: str,
    phrase: str,
    ways: Sequence[str] = tuple(WAYS),
    *,
    count: int = PICTURES,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> Compared:
    """Score a relation in words, by the untrained token, and learned in several ways.

    Args:
        components: the base.
        finder: detects stickers.
        relation: a key of `RELATIONS_TO_TEACH`.
        phrase: its best phrase.
        ways: keys of `WAYS` or `EXTENSIONS`.
        count: pictures of each.
        on_event: receives the trainings' events.
        settings: of the methods or of training, instead of the recipes'.
    """
    pairs = unseen_pairs(relation, count)
    tallies: dict[str, Tally] = {}
    pictures: dict[str, list[Image.Image]] = {}
    said: dict[str, tuple[str, Concept | None, float]] = {"phrase": (phrase, None, 0.0), "untrained": (INIT, None, 0.0)}
    for way in ways:
        began = time.monotonic()
        concept = teach_relation(components, relation, way, on_event=on_event, **settings)
        said[way] = (TOKEN, concept, time.monotonic() - began)
    tallies["true pictures"] = tally(relation, pairs, [finder(picture) for picture in true_pictures(relation, pairs)])
    for way, (words, concept, seconds) in said.items():
        pictures[way] = drawn_pairs(components, pairs, words, concept, SEED)
        found = [finder(to_tensor(picture)) for picture in pictures[way]]
        alike = tuple(summed(drawn_scene(one, pair)).likeness for one, pair in zip(pictures[way], pairs, strict=True))
        tallies[way] = tally(relation, pairs, found, seconds, alike)
    return Compared(tallies, pictures, phrase)


def summary(compared: Mapping[str, Compared], ours: str = "reversion", plain: str = "textual-inversion") -> list[str]:
    """Return sentences that compare `ours` with the untrained token and with `plain`, over all relations."""
    lines: list[str] = []
    apart: list[str] = []
    for relation, one in compared.items():
        if not {ours, plain} <= set(one.tallies):
            continue
        mine, other = one.tallies[ours].held, one.tallies[plain].held
        if wilson(sum(mine), len(mine), 1.645)[0] > wilson(sum(other), len(other), 1.645)[1]:
            apart.append(relation)
    means = {way: _means([one.tallies[way].figures() for one in compared.values()]) for way in _ways(compared)}
    for way, row in means.items():
        shown = ", ".join(f"{figure} {value:.3f}" for figure, value in row.items())
        lines.append(f"mean of {way}: {shown}")
    lines.append(f"{ours} above {plain}, 90 % intervals apart: {', '.join(apart) or 'none'}")
    return lines


def _ways(compared: Mapping[str, Compared]) -> list[str]:
    return list(next(iter(compared.values())).tallies)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return means over relations of the figures that all of them have."""
    told = ("relation", "entities", "drawn", "leakage")
    return {figure: sum(row[figure] for row in rows) / len(rows) for figure in told if all(figure in r for r in rows)}


def relation_table(relation: str, one: Compared) -> str:
    """Return the figures of a relation as text."""
    lines = [f"{relation} (best phrase: {one.phrase!r})"]
    for way, tallied in one.tallies.items():
        row = tallied.figures()
        lines.append(
            f"  {way:<20}relation {row['relation']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            f"   entities {row['entities']:.2f}"
            + (f"   drawn {row['drawn']:.2f}" if "drawn" in row else "")
            + f"   leakage {row['leakage']:.2f}   {row['seconds']:.0f} s"
        )
    return "\n".join(lines)


def relation_sheet(compared: Mapping[str, Compared], shown: int = 3) -> Sheet:
    """Return a sheet: a row for the relation, exemplars first, then the same pairs and seeds in each way."""
    sheet = Sheet(cell=96, label=150)
    ways = list(next(iter(compared.values())).pictures)
    sheet.head(["exemplars"] * shown + [way for way in ways for _ in range(shown)])
    for relation, one in compared.items():
        examples = [example.picture for example in pictures_of(relation)[:shown]]
        columns = [picture for way in ways for picture in one.pictures[way][:shown]]
        pairs = "; ".join(f"{a}, {b}" for a, b in unseen_pairs(relation, PICTURES)[:shown])
        sheet.row(f"{relation}\n{pairs}", examples + columns)
    return sheet
