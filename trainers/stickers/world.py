"""The sticker world: exact captions, boxes and masks for one to three stickers on a coloured background.

`pocket` is trained on pictures that this module composes, and everything that scores it asks this module for the
truth. A `Scene` is the plain description (what, where, how large, on which colour); `Stickers.render` turns many
scenes into pictures at once on any device. Sprites are drawn once from the vector art in `trainers/stickers/art` and
kept at every size a scene may ask for, so that composing is one gather, without resampling.

The words of this world are all here: `NAMES` and `RELATIONS` are what the generator is trained on, `HELD_OUT` and
`HELD_OUT_RELATIONS` are what it never sees, so that demos and tests can teach it something new.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from trainers.stickers.art import Style, sprite

NAMES = tuple(
    # the first names of all
    "fox dog cat lion rabbit bear panda koala pig frog monkey penguin owl octopus crab turtle whale "
    "apple pear banana lemon strawberry pineapple grapes peach avocado eggplant carrot "
    "mushroom cactus sunflower tree pizza burger donut cookie cheese "
    "house rocket car bus crown diamond basketball robot heart star gift "
    # neighbours of whatever is to be learned: a new word can only be built from what there are words for
    "mouse raccoon hedgehog horse cow camel elephant giraffe zebra kangaroo sloth otter skunk beaver bat deer gorilla "
    "leopard hippo rhino chicken chick duck swan parrot peacock dove snake lizard crocodile dragon dolphin shark fish "
    "seal jellyfish lobster shrimp snail butterfly bee ladybug spider scorpion dinosaur goat sheep llama boar "
    "watermelon melon mango cherry blueberry coconut tomato olive potato corn pepper cucumber broccoli garlic onion "
    "peanut chestnut bread croissant pretzel waffle hotdog sandwich taco egg popcorn cupcake cake pie candy "
    "lollipop custard sushi fries chocolate tulip rose hibiscus blossom lotus shamrock palm maple pine "
    "truck ambulance tractor locomotive tram bicycle motorcycle airplane sailboat ship speedboat satellite saucer "
    "baseball volleyball kite balloon bell drum trumpet violin camera television radio telephone laptop clock watch "
    "bulb candle book pencil hammer wrench axe key magnet umbrella hat shoe boot backpack briefcase trophy castle "
    "church tent chair ghost alien skull snowman pumpkin moon cloud shield dice globe fire anchor teddy ring shell "
    "planet medal lantern shirt yoyo mug cap".split()
)
"""Names the generator is trained on."""

HELD_OUT = {
    "wolf": "fox",
    "tiger": "cat",
    "hamster": "mouse",
    "taxi": "car",
    "tangerine": "apple",
    "squid": "octopus",
    "kiwi": "avocado",
    "football": "volleyball",
}
"""Names the generator never sees, each with the trained word that comes nearest (its class word)."""

ALL_NAMES = NAMES + tuple(HELD_OUT)

OTHER_HANDS = {"unicorn": "horse", "flamingo": "swan", "guitar": "violin", "teapot": "mug", "helicopter": "airplane"}
"""Things of none of these lists, drawn by other hands, each with its class word: what people bring is like them."""

CLASS_WORDS = HELD_OUT | OTHER_HANDS
"""All that is taught to be measured, each with its class word."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "pink": (248, 180, 200),
    "yellow": (250, 225, 130),
    "orange": (245, 160, 80),
    "green": (140, 205, 130),
    "teal": (60, 150, 150),
    "blue": (115, 165, 240),
    "purple": (180, 145, 225),
    "gray": (165, 165, 170),
    "brown": (120, 90, 70),
    "black": (35, 35, 40),
}
"""Background colours, sRGB 0..255."""

RELATIONS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Relations the generator is trained on, each with the ways it is said."""

HELD_OUT_RELATIONS = {"inside": ("inside",), "on top of": ("on top of",)}
"""Relations the generator never sees: the first thing drawn over the second; the first resting on the second."""

TOGETHER = ("and", "and", "with")
"""Phrases for two things at free positions."""

Kind = Literal["one", "relation", "two", "three", "scatter", "group"]
PLURALS = {
    "wolf": "wolves", "mouse": "mice", "grapes": "grapes", "fries": "fries", "dice": "dice", "sheep": "sheep",
    "deer": "deer", "fish": "fish", "cherry": "cherries", "blueberry": "blueberries", "strawberry": "strawberries",
    "butterfly": "butterflies", "candy": "candies", "teddy": "teddies", "cheese": "cheeses",
    "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip


def article(name: str) -> str:
    """Return the name with its indefinite article: "an owl"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """Return the English plural of a sticker name."""
    first, space, last = name.rpartition(" ")  # "flat strawberry"
    return first + space + (PLURALS.get(last) or last + ("es" if last.endswith(("s", "x", "sh", "ch")) else "s"))


@dataclass(frozen=True)
class Placed:
    """One sticker: its name and its square, `left`, `top` and `side` in 64ths of the picture."""

    name: str
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """A picture in words and numbers; later stickers are drawn over earlier ones."""

    caption: str
    stickers: tuple[Placed, ...]
    colour: str
    kind: Kind = "one"
    relation: str | None = None
    style: Style = "fluent"


@dataclass(frozen=True)
class Rendered:
    """A batch of composed pictures with their truth.

    Attributes:
        images: (B, 3, size, size) float32 in [-1, 1].
        masks: (B, 3, size, size) bool, the visible pixels of each of up to three stickers.
        boxes: (B, 3, 4) float32, visible extent of each sticker as x0 y0 x1 y1 in fractions; zeros where absent.
    """

    images: torch.Tensor
    masks: torch.Tensor
    boxes: torch.Tensor


UNIT = 64  # scene coordinates are 64ths of the picture, whatever its size in pixels
SIDES = tuple(range(16, 55, 2))  # sticker sides a scene may use, in the same unit
BOX_THRESHOLD = 0.5  # a pixel belongs to a sticker from this opacity on


# -- scenes -----------------------------------------------------------------------------------------------------


def _one(rng: random.Random, any_size: bool) -> list[tuple[int, int, int]]:
    """Return the square of a single thing: large, or sometimes of any size."""
    side = rng.choice(SIDES) if any_size and rng.random() > 0.8 else rng.choice(range(38, 51, 2))
    free = UNIT - side
    # Nearer the middle than the rim: the sum of two draws.
    place = [min(free - 1, max(1, (rng.randint(0, free) + rng.randint(0, free)) // 2)) for _ in range(2)]
    return [(place[0], place[1], side)]


def _pair(rng: random.Random, relation: str) -> list[tuple[int, int, int]]:
    """Return squares of the first and the second thing under a relation."""
    if relation == "inside":
        outer, inner = rng.choice((46, 48, 50, 52)), rng.choice((18, 20, 22))
        x, y = rng.randint(2, UNIT - 2 - outer), rng.randint(2, UNIT - 2 - outer)
        shift = (outer - inner) // 2
        return [(x + shift + rng.randint(-3, 3), y + shift + rng.randint(-3, 3), inner), (x, y, outer)]
    a, b = rng.choice((24, 26, 28)), rng.choice((24, 26, 28))
    if relation == "on top of":
        x = rng.randint(8, UNIT - 8 - b)
        top = rng.randint(2, UNIT - a - b - 2)
        return [(x + (b - a) // 2 + rng.randint(-3, 3), top, a), (x, top + a, b)]
    first = rng.randint(1, 1 + (UNIT - a - b - 4) // 2)
    second = rng.randint(first + a + 4, UNIT - 1 - b)  # nearer, the autoencoder runs them together
    across = rng.randint(4, UNIT - 4 - max(a, b))
    near = (first, across, a)
    far = (second, min(UNIT - 1 - b, max(1, across + rng.randint(-5, 5))), b)
    if relation in ("above", "below"):
        near, far = (near[1], near[0], near[2]), (far[1], far[0], far[2])
    # "right of" and "below" are the same layouts, told from the other side.
    return [far, near] if relation in ("right of", "below") else [near, far]


def _row(rng: random.Random, count: int) -> list[tuple[int, int, int]]:
    """Return squares of `count` things side by side, or (for two) one above the other."""
    if count == 2:
        layout = _pair(rng, rng.choice(("left of", "above")))
        return layout
    side = 16
    gap = (UNIT - count * side) // (count + 1)
    top = rng.randint(8, UNIT - 8 - side)
    shift = rng.randint(-1, 1)  # all together: nearer, the autoencoder runs them into one
    return [
        (gap + i * (side + gap) + shift, min(UNIT - side - 1, max(1, top + rng.randint(-4, 4))), side)
        for i in range(count)
    ]


def _scatter(rng: random.Random) -> list[tuple[int, int, int]]:
    """Return squares of two things of any sizes, in any relation: apart, diagonal, touching, overlapping."""
    while True:
        a, b = rng.choice(SIDES), rng.choice(SIDES)
        angle, reach = rng.uniform(0, math.tau), rng.uniform(0, 0.7) * (a + b)
        across, down = round(reach * math.cos(angle) + (a - b) / 2), round(reach * math.sin(angle) + (a - b) / 2)
        left, top = min(0, across), min(0, down)
        wide, high = max(a, across + b) - left, max(a, down + b) - top
        over = max(0, min(a, across + b) - max(0, across)) * max(0, min(a, down + b) - max(0, down))
        if max(wide, high) <= UNIT - 2 and over <= 0.7 * a * a:  # the first is drawn first, and must be seen
            x, y = rng.randint(1, UNIT - 1 - wide) - left, rng.randint(1, UNIT - 1 - high) - top
            return [(x, y, a), (x + across, y + down, b)]


def _group(rng: random.Random) -> list[tuple[int, int, int]]:
    """Return squares of three things anywhere, apart from each other."""
    while True:
        sides = [rng.choice((16, 18, 20, 22)) for _ in range(3)]
        squares = [(rng.randint(1, UNIT - 1 - s), rng.randint(1, UNIT - 1 - s), s) for s in sides]
        gaps = [max(abs(p[k] + p[2] / 2 - q[k] - q[2] / 2) for k in (0, 1)) - (p[2] + q[2]) / 2
                for p, q in itertools.combinations(squares, 2)]  # fmt: skip
        if min(gaps) >= 2:
            return squares


KINDS: tuple[Kind, ...] = ("one", "relation", "two", "three", "scatter", "group")
KIND_WEIGHTS = (26, 34, 6, 6, 23, 5)
PREFIXES = ("", "", "", "", "a picture of ", "a photo of ", "a sticker of ", "a rendering of ")


def scene(
    rng: random.Random,
    *,
    names: tuple[str, ...] = NAMES,
    kind: Kind | None = None,
    relation: str | None = None,
    colour: str | None = None,
    say_colour: bool | None = None,
    style: Style = "fluent",
) -> Scene:
    """Draw one scene; whatever is not given is drawn from `rng`.

    Args:
        rng: the only source of chance.
        names: stickers to choose from; the things of one relation or row always differ.
        kind: one thing (large where this is given; one in five of any size in a stream of all kinds), two things in a
            relation, two of one thing, three different things in a row, two different things anywhere ("scatter"),
            or two of one and one other anywhere ("group").
        relation: a key of `RELATIONS` or `HELD_OUT_RELATIONS`; implies kind "relation".
        colour: background, a key of `COLOURS`.
        say_colour: whether the caption names the background (7 in 10 by default).
        style: which drawing of the stickers; "flat" is said in the caption.
    """
    given = kind is not None
    if kind is None:
        kind = "relation" if relation else rng.choices(KINDS, KIND_WEIGHTS)[0]
    colour = colour or rng.choice(tuple(COLOURS))
    things = [f"flat {name}" if style == "flat" else name for name in rng.sample(names, min(3, len(names)))]
    if kind == "one":
        layout, used, said = _one(rng, any_size=not given), things[:1], article(things[0])
    elif kind == "relation":
        relation = relation or rng.choice(tuple(RELATIONS))
        phrase = rng.choice((RELATIONS | HELD_OUT_RELATIONS)[relation])
        layout, used = _pair(rng, relation), things[:2]
        said = f"{article(things[0])} {phrase} {article(things[1])}"
    elif kind == "two":
        layout, used = _row(rng, 2), [things[0]] * 2
        said = rng.choice((f"two {plural(things[0])}", f"two of {article(things[0])}"))
    elif kind == "scatter":
        layout, used = _scatter(rng), things[:2]
        told = things[:2] if rng.random() < 0.5 else things[1::-1]
        said = f"{article(told[0])} {rng.choice(TOGETHER)} {article(told[1])}"
    elif kind == "group":
        layout, used = _group(rng), [things[0], things[0], things[1]]
        said = f"two {plural(things[0])} and {article(things[1])}"
    else:
        layout, used = _row(rng, 3), things[:3]
        said = f"{article(things[0])}, {article(things[1])} and {article(things[2])}"
    if say_colour is None:
        say_colour = rng.random() < 0.7
    caption = rng.choice(PREFIXES) + said + (f" on {article(colour)} background" if say_colour else "")
    placed = [Placed(name.removeprefix("flat "), *place) for name, place in zip(used, layout, strict=True)]
    if relation == "inside":  # the inner thing is drawn last
        placed.reverse()
    return Scene(caption, tuple(placed), colour, kind, relation, style)


def scenes(count: int, seed: int, **choices: object) -> list[Scene]:
    """Return `count` scenes from one seed; `choices` as in `scene`."""
    rng = random.Random(seed)
    return [scene(rng, **choices) for _ in range(count)]  # pyright: ignore[reportArgumentType]


# -- pictures ---------------------------------------------------------------------------------------------------


class Stickers:
    """Renders scenes of one picture size on one device.

    Args:
        size: side of the pictures in pixels, a multiple of 64.
        device: device of the sprites and the pictures.
        style: "fluent" (shaded) or "flat".
        names: stickers to prepare; fewer are quicker to load.

    Raises:
        ValueError: if `size` is no multiple of 64.
    """

    def __init__(
        self,
        size: int = 64,
        device: torch.device | str = "cpu",
        style: Style = "fluent",
        names: tuple[str, ...] = ALL_NAMES,
    ) -> None:
        if size < UNIT or size % UNIT:
            raise ValueError(f"picture size {size} is not a multiple of {UNIT}")
        self.size, self.style = size, style
        self.scale = size // UNIT
        self.names = {name: index for index, name in enumerate(names)}
        largest = SIDES[-1] * self.scale
        atlas = np.zeros((len(names), len(SIDES), largest, largest, 4), np.uint8)
        for i, name in enumerate(names):
            drawn = sprite(name, style)
            for j, side in enumerate(SIDES):
                pixels = side * self.scale
                atlas[i, j, :pixels, :pixels] = np.asarray(drawn.resize((pixels, pixels), Image.Resampling.BOX))
        self.atlas = torch.from_numpy(atlas).to(device)
        self.colours = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device)

    def render(self, batch: list[Scene]) -> Rendered:
        """Compose the scenes.

        Raises:
            KeyError: if a scene names a sticker this renderer did not prepare.
        """
        device, size = self.atlas.device, self.size
        slots = 3
        table = np.zeros((len(batch), slots, 5), np.int64)  # name, side index, left, top, present
        for row, item in enumerate(batch):
            for slot, thing in enumerate(item.stickers):
                table[row, slot] = (self.names[thing.name], SIDES.index(thing.side), thing.left, thing.top, 1)
        which = torch.from_numpy(table).to(device)
        colours = list(COLOURS)
        ground = torch.tensor([colours.index(item.colour) for item in batch], device=device)
        images = self.colours[ground][:, None, None, :].expand(-1, size, size, -1)
        axis = torch.arange(size, device=device)
        sides = torch.tensor(SIDES, device=device) * self.scale
        opacities: list[torch.Tensor] = []
        for slot in range(slots):
            name, side, left, top, present = which[:, slot].unbind(1)
            across, down = axis[None] - left[:, None] * self.scale, axis[None] - top[:, None] * self.scale
            extent = sides[side][:, None]
            inside_x, inside_y = (across >= 0) & (across < extent), (down >= 0) & (down < extent)
            limit = self.atlas.shape[2] - 1
            pixels = self.atlas[
                name[:, None, None],
                side[:, None, None],
                down.clamp(0, limit)[:, :, None],
                across.clamp(0, limit)[:, None, :],
            ]
            seen = (inside_y[:, :, None] & inside_x[:, None, :] & present[:, None, None].bool())[..., None]
            opacity = pixels[..., 3:].float() / 255 * seen
            images = images * (1 - opacity) + pixels[..., :3].float() * opacity
            opacities = [earlier * (1 - opacity[..., 0]) for earlier in opacities] + [opacity[..., 0]]
        masks = torch.stack(opacities, 1) > BOX_THRESHOLD
        return Rendered((images / 127.5 - 1).permute(0, 3, 1, 2).contiguous(), masks, _extents(masks))


def _extents(masks: torch.Tensor) -> torch.Tensor:
    """Return tight boxes (x0 y0 x1 y1 in fractions) of boolean masks (B, N, H, W); zeros for an empty mask."""
    corners: list[torch.Tensor] = []
    for flat in (masks.any(2), masks.any(3)):  # over rows -> columns used; over columns -> rows used
        length = flat.shape[-1]
        first = flat.int().argmax(-1)
        last = length - flat.flip(-1).int().argmax(-1)
        used = flat.any(-1)
        corners += [torch.where(used, first, 0) / length, torch.where(used, last, 0) / length]
    x0, x1, y0, y1 = corners
    return torch.stack((x0, y0, x1, y1), -1)
