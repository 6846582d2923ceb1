"""Sliders on `pocket`: whether size, colour and count move with the strength, and the rest stays.

A slider is taught by the recipe for the base and tried on things it was not taught with, each with the same prompt and
seed at every strength. What it is for is measured by the sticker finder or from the background; what must stay are the
thing (drawn likeness), and of the three properties those that it is not for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from evaluation.sticker_finder import Finder
from pipelines.concepts.concept import Concept
from pipelines.events import OnEvent, ignore
from pipelines.generation import generate
from pipelines.measures.stickers import background, nearest_colour
from pipelines.models.components import Components
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_pictures, to_tensor
from pipelines.request.request import ConceptUse, Request
from trainers.data.folders import read_examples
from trainers.loop.train import train
from trainers.methods import methods
from trainers.run import run_of
from trainers.stickers.drawn import drawing, drawn
from trainers.stickers.world import COLOURS, NAMES, UNIT, Placed, Scene, Stickers, article

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
THINGS = ("penguin", "tree", "robot", "pumpkin", "bus", "cat")
"""Things that sliders are tried on; none is among those they are taught with."""
TAUGHT = ("fox", "house", "apple", "owl", "mushroom", "car")
SMALL, LARGE = range(18, 25, 2), range(48, 55, 2)
"""Sides of the stickers of the two ends of "size", in 64ths of the picture."""
OF_AN_END = 24
"""Pictures of each end of "size"."""
SEED = 5
SEEDS, FIRST = 2, 70
"""Pictures of each thing at each strength, and the seed of the first."""
SHOWN = 3
"""Things on the sheet."""


@dataclass(frozen=True)
class Kind:
    """A slider to teach and try.

    Attributes:
        settings: of the method; none for the one that is taught by pictures.
        prompt: of the things it is tried on, with a `{}`.
        says: of its figure, with the unit.
        take: the figure of a picture of a thing.
    """

    settings: Mapping[str, Any]
    prompt: str
    says: str
    take: Callable[[Tensor, str], float]


def side(picture: Tensor, name: str) -> float:
    """Return the longer side of the largest thing of a name in a picture (3, H, W), of 1; 0 if there is none."""
    sides = [max(one.box[2] - one.box[0], one.box[3] - one.box[1]) for one in _finder(name)(picture)]
    return max(sides, default=0.0)


def count(picture: Tensor, name: str) -> float:
    """Return the number of things of a name in a picture (3, H, W)."""
    return float(len(_finder(name)(picture)))


def blueness(picture: Tensor, name: str = "") -> float:
    """Return where the background lies on the line from orange (0) to blue (1)."""
    orange, blue = (torch.tensor(COLOURS[one], dtype=torch.float32) / 127.5 - 1 for one in ("orange", "blue"))
    way = blue - orange
    return float(((background(picture).cpu() - orange) * way).sum() / way.square().sum())


_FINDERS: dict[str, Finder] = {}


def _finder(name: str) -> Finder:
    return _FINDERS.setdefault(name, Finder((name,)))


KINDS: dict[str, Kind] = {
    "colour": Kind(
        {
            "between": "a {} on an orange background -> a {} on a blue background",
            "about": ("a {}",),
            "keep": TAUGHT,
        },
        "{}",
        "background, orange 0 to blue 1",
        blueness,
    ),
    "count": Kind(
        {"between": "a {} on a blue background -> two of a {} on a blue background", "keep": TAUGHT},
        "{} on a blue background",
        "things",
        count,
    ),
    "size": Kind({}, "{} on a blue background", "side of the thing, of 1", side),
}


def end_scenes(sides: Sequence[int], seed: int = SEED) -> list[Scene]:
    """Return scenes of single things of some sides anywhere, their captions without a word on the size."""
    rng = random.Random(seed)
    names = rng.sample([name for name in NAMES if name not in THINGS], OF_AN_END)
    scenes: list[Scene] = []
    for name in names:
        long, colour = rng.choice(sides), rng.choice(tuple(COLOURS))
        place = (rng.randint(1, UNIT - 1 - long), rng.randint(1, UNIT - 1 - long), long)
        caption = f"{article(name)} on {article(colour)} background"
        scenes.append(Scene(caption, (Placed(name, *place),), colour))
    return scenes


def _written(folder: Path, sides: Sequence[int]) -> Path:
    """Write the pictures of an end with their captions."""
    folder.mkdir(parents=True)
    scenes = end_scenes(sides)
    names = tuple({thing.name for one in scenes for thing in one.stickers})
    for index, picture in enumerate(to_pictures(Stickers(names=names).render(scenes).images)):
        picture.save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(scenes[index].caption, encoding="utf-8")
    return folder


def teach(components: Components, name: str, *, on_event: OnEvent = ignore, **settings: Any) -> Concept:
    """Teach a slider of `KINDS` by the recipe for the base; `settings` are instead of its own."""
    with TemporaryDirectory() as place:
        chosen: dict[str, Any] = {"token": name, **KINDS[name].settings}
        if not KINDS[name].settings:
            small, large = (_written(Path(place, end), sides) for end, sides in (("small", SMALL), ("large", LARGE)))
            chosen |= {"less_images": small, "images": large}
        run = run_of(methods()["slider"], {**chosen, **settings}).with_recipe(components.family.name)
        examples = () if run.data.images is None else read_examples(run.data.images)
        return cast(Concept, train(components, run, examples, class_folder=Path(place, "drawn"), on_event=on_event))


@dataclass(frozen=True)
class Tried:
    """A slider over its strengths.

    Attributes:
        name: of `KINDS`.
        strengths: those it was tried at.
        pictures: for each strength those of each thing and seed.
        figures: for each strength what it is for, in the mean.
        drawn: for each strength the drawn likeness of the things, in the mean.
        stayed: for each strength the shares of pictures in which what it is not for is as at strength 0.
        rank: rank correlation of strength and figure over all pictures (Spearman).
        rising: share of thing and seed whose figures never fall from one strength to the next.
        seconds: of teaching.
    """

    name: str
    strengths: tuple[float, ...]
    pictures: list[list[Image.Image]] = field(repr=False)
    figures: list[float]
    drawn: list[float]
    stayed: list[dict[str, float]]
    rank: float
    rising: float
    seconds: float

    def told(self) -> dict[str, Any]:
        """Return the figures as they are written."""
        return {
            "strengths": list(self.strengths),
            KINDS[self.name].says: self.figures,
            "drawn likeness": self.drawn,
            "stayed": self.stayed,
            "rank correlation": self.rank,
            "never falling": self.rising,
            "seconds": self.seconds,
        }


NOISE = {"size": 0.03, "colour": 0.03, "count": 0.0}
"""Amount by which a figure may fall from one strength to the next and still not be said to: the finder's step."""


def tried(
    components: Components,
    concept: Concept,
    name: str,
    seeds: int = SEEDS,
    strengths: Sequence[float] = STRENGTHS,
    seconds: float = 0.0,
) -> Tried:
    """Draw things that a slider was not taught with at every strength, and measure them."""
    kind = KINDS[name]
    pictures: list[list[Image.Image]] = []
    for strength in strengths:
        uses = (ConceptUse(source=name, strength=strength),)
        drawn_now: list[Image.Image] = []
        for thing in THINGS:
            prompt = kind.prompt.format(article(thing))
            request = Request(prompt=prompt, concepts=uses, count=seeds, seed=FIRST)
            drawn_now += generate(components, request, concepts={name: concept}).pictures
        pictures.append(drawn_now)
    names = [thing for thing in THINGS for _ in range(seeds)]
    shown = [[to_tensor(one) for one in row] for row in pictures]
    table = torch.tensor([[kind.take(one, of) for one, of in zip(row, names, strict=True)] for row in shown])
    flat = [strength for strength in strengths for _ in names]
    steps = table[1:] - table[:-1]
    zero = list(strengths).index(0.0)
    ranked: Any = spearmanr(flat, table.flatten().numpy())
    return Tried(
        name,
        tuple(strengths),
        pictures,
        [float(value) for value in table.mean(1)],
        [_drawn_of(row, names) for row in pictures],
        [_stayed(name, row, shown[zero], names) for row in shown],
        float(ranked.statistic),
        float((steps >= -NOISE[name]).all(0).float().mean()),
        seconds,
    )


def _drawn_of(pictures: Sequence[Image.Image], names: Sequence[str]) -> float:
    figures = [drawn([one], [drawing(name)]).likeness for one, name in zip(pictures, names, strict=True)]
    return sum(figures) / len(figures)


def _stayed(name: str, row: Sequence[Tensor], before: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
    """Return the shares of pictures whose thing is found, and whose other properties are as before."""
    shares = {"found": [count(one, of) > 0 for one, of in zip(row, names, strict=True)]}
    if name != "colour":
        shares["colour"] = [
            nearest_colour(one, COLOURS) == nearest_colour(old, COLOURS) for one, old in zip(row, before, strict=True)
        ]
    if name == "colour":
        sides = [(side(one, of), side(old, of)) for one, old, of in zip(row, before, names, strict=True)]
        shares["size"] = [abs(now - old) <= 0.15 * max(old, 1e-6) for now, old in sides]
    if name != "count":
        shares["count"] = [count(one, of) == count(old, of) for one, old, of in zip(row, before, names, strict=True)]
    return {key: sum(values) / len(values) for key, values in shares.items()}


def measure(
    components: Components, names: Sequence[str], seeds: int = SEEDS, *, on_event: OnEvent = ignore
) -> dict[str, Tried]:
    """Teach and try sliders of `KINDS`."""
    found: dict[str, Tried] = {}
    for name in names:
        began = time.monotonic()
        concept = teach(components, name, on_event=on_event)
        found[name] = tried(components, concept, name, seeds, seconds=time.monotonic() - began)
    return found


def table(found: Mapping[str, Tried]) -> str:
    """Return figures as a table: a row for each property, a column for each strength."""
    lines: list[str] = []
    for name, one in found.items():
        lines.append(f"{name:<34}" + "".join(f"{strength:>8g}" for strength in one.strengths))
        rows = [(KINDS[name].says, one.figures), ("drawn likeness", one.drawn)]
        rows += [(f"{key} stays", [stayed[key] for stayed in one.stayed]) for key in one.stayed[0]]
        lines += [f"  {says:<32}" + "".join(f"{value:>8.2f}" for value in values) for says, values in rows]
        lines.append(
            f"  rank correlation {one.rank:.2f}; never falling for {one.rising:.0%} of things and seeds; "
            f"taught in {one.seconds:.0f} s"
        )
    return "\n".join(lines)


def sheet(found: Mapping[str, Tried]) -> Sheet:
    """Return a sheet of the first picture of some things at every strength of each slider."""
    drawn_on = Sheet(cell=96, label=200)
    for name, one in found.items():
        drawn_on.head([f"{strength:g}" for strength in one.strengths])
        each = len(one.pictures[0]) // len(THINGS)
        for place, thing in enumerate(THINGS[:SHOWN]):
            prompt = KINDS[name].prompt.format(article(thing))
            drawn_on.row(f"{name}: {prompt}", [row[place * each] for row in one.pictures])
    return drawn_on
