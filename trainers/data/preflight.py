"""Checks of training pictures before training: counts, problems, memory and time."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pipelines.concepts.token_embeddings import check_token
from pipelines.errors import ConceptError
from pipelines.models.components import Components
from trainers.data.batches import usable
from trainers.data.folders import Example, Reading
from trainers.data.latents import Shape, nearest, shapes
from trainers.data.stored import look_of
from trainers.settings import DataConfig, TrainConfig

ALIKE = 4
"""Bits of 64 in which the hashes of two pictures may differ that count as the same."""

SAME_COLOUR = 12.0
"""Mean difference of colour, of 255, up to which two pictures may be the same."""

PASSES = (20, 5000)
"""Fewest and most usual passes over a picture."""

NAMED = 3
"""Names listed where many would do."""


@dataclass(frozen=True)
class Report:
    """The findings; `lines` puts them into words.

    Attributes:
        count: pictures.
        convention: name of the folder convention.
        smallest: width and height of the picture of least area.
        largest: of that of most.
        passes: times that the least and the most repeated picture are seen.
        captioned: pictures that have captions of their own.
        masked: pictures that have a mask.
        boxes: boxes of things in all pictures.
        resolution: of training; None if not known.
        batch: pictures of one batch.
        buckets: shape -> pictures an epoch; empty without buckets.
        duplicates: groups of names of pictures that look the same.
        small: names of pictures that are scaled up.
        unused: names of pictures, one for each caption without a place for the token.
        long: names of pictures, one for each caption that is cut at the end of the text window.
        sided: names of pictures that are mirrored although a caption says left or right.
        collisions: sentences on where the token is taken for something else.
        ignored: path -> why it was left out.
        doubtful: path of a picture -> why it cannot be learned from as it is.
        transparent: names of pictures that are laid on white.
        words: words that captions should use for the things.
        notes: sentences on what was changed while reading.
        memory: sentences on the memory of the training.
        seconds: of training; None if not known.
    """

    count: int
    convention: str
    smallest: Shape
    largest: Shape
    passes: tuple[float, float]
    captioned: int = 0
    masked: int = 0
    boxes: int = 0
    resolution: int | None = None
    batch: int = 1
    buckets: Mapping[Shape, int] = field(default_factory=dict)
    duplicates: tuple[tuple[str, ...], ...] = ()
    small: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    long: tuple[str, ...] = ()
    sided: tuple[str, ...] = ()
    collisions: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    doubtful: Mapping[str, str] = field(default_factory=dict)
    transparent: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    seconds: float | None = None

    @property
    def problems(self) -> list[str]:
        """Return sentences that deserve a warning."""
        found = [
            f"{_listed(group)} look the same; a picture that comes twice counts twice." for group in self.duplicates
        ]
        found += [f"{name} is left out: {why}" for name, why in self.doubtful.items()]
        if self.transparent:
            found.append(
                f"{_number(self.transparent, 'picture')} transparent in places, laid on white: "
                f"{_listed(self.transparent)}."
            )
        if self.small:
            found.append(
                f"{_number(self.small, 'picture')} to be scaled up to {self.resolution} pixels: {_listed(self.small)}."
            )
        if self.unused:
            said = " or ".join(repr(word) for word in self.words)
            found.append(f"{_number(self.unused, 'caption')} without {said} or {{}}, not used: {_listed(self.unused)}.")
        if self.long:
            found.append(f"{_number(self.long, 'caption')} too long, the end is cut off: {_listed(self.long)}.")
        if self.sided:
            found.append(
                f"{_number(self.sided, 'caption')} saying left or right, but pictures are mirrored "
                f"(--flip 0 leaves them as they are): {_listed(self.sided)}."
            )
        found += self.collisions
        found += [
            f"Only {_times(count, 'picture')} an epoch of the shape {width} x {height}, where a batch has {self.batch}."
            for (width, height), count in self.buckets.items()
            if count < self.batch
        ]
        least, most = self.passes
        if least < PASSES[0]:
            found.append(f"A picture is seen only {_rounded(least)} times; {PASSES[0]} are few. Train for more steps.")
        if most > PASSES[1]:
            found.append(f"A picture is seen {_rounded(most)} times; over {PASSES[1]} it may be learned by heart.")
        return found

    def lines(self) -> list[str]:
        """Return all of it in plain English, one fact a line; problems last."""
        (w, h), (wide, high), (least, most) = self.smallest, self.largest, self.passes
        said = [f"{_times(self.count, 'picture')} ({self.convention})."]
        same = self.smallest == self.largest
        said.append(f"Size {w} x {h}." if same else f"Sizes from {w} x {h} to {wide} x {high}.")
        if self.captioned:
            said.append(f"{self.captioned} of {self.count} pictures have captions of their own.")
        if self.masked:
            said.append(f"{self.masked} of {self.count} pictures have a mask.")
        if self.boxes:
            said.append(f"{self.boxes} box{'es' * (self.boxes > 1)} in all.")
        said += [f"{_times(n, 'picture')} an epoch as {w} x {h}." for (w, h), n in self.buckets.items()]
        often = _rounded(least) if _rounded(least) == _rounded(most) else f"{_rounded(least)} to {_rounded(most)}"
        said.append(f"Each picture is seen {often} times.")
        said += self.memory
        if self.seconds is not None:
            said.append(f"About {duration(self.seconds)} of training.")
        said += self.notes
        said += [f"Ignored: {path} ({why})." for path, why in self.ignored.items()]
        return said + [f"Warning: {problem}" for problem in self.problems]


def _sided(spoken: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """Return the pictures whose captions say left or right."""
    return tuple(name for name, caption, _ in spoken if re.search(r"\b(left|right)\b", caption, re.IGNORECASE))


def _passes(examples: Sequence[Example], config: TrainConfig, apart: bool) -> list[float]:
    """Return how often each picture is seen; `apart` as in `examine`."""
    shown = Counter[str | None]()
    for e in examples:
        shown[e.word if apart else None] += e.repeats
    taken = config.steps * config.batch * config.accumulate
    return [taken * e.repeats / shown[e.word if apart else None] for e in examples]


def examine(
    reading: Reading | Sequence[Example],
    *,
    token: str,
    config: TrainConfig,
    data: DataConfig,
    components: Components | None = None,
    memory: Sequence[str] = (),
    seconds_per_step: float | None = None,
    new_word: bool = True,
    apart: bool = False,
) -> Report:
    """Check training pictures.

    Args:
        reading: contents of a folder, or examples from elsewhere; at least one.
        token: word for the concept in captions; empty if no concept is learned.
        config: pace.
        data: use of the pictures; its folder is ignored.
        components: the base, for what depends on it: text window, words it knows, shapes.
        memory: sentences on it (`trainers.loop.memory`).
        seconds_per_step: as measured before.
        new_word: whether the token must not be a word of the base yet.
        apart: whether each of several words has batches of its own.
    """
    reading = reading if isinstance(reading, Reading) else Reading(tuple(reading), {}, "given pictures")
    examples = reading.examples
    sizes = sorted((e.size for e in examples), key=lambda size: (size[0] * size[1], size))
    resolution = data.resolution or (components and components.defaults.size)
    passes = _passes(examples, config, apart)
    buckets = _buckets(examples, resolution, components) if data.buckets and components and resolution else {}
    captions = [(e.name, caption, e.word or token) for e in examples for caption in e.captions]
    spoken = [(name, caption, word) for name, caption, word in captions if usable(caption, word)]
    words = dict.fromkeys(filter(None, (token, *(e.word for e in examples))))
    return Report(
        count=len(examples),
        convention=reading.convention,
        smallest=sizes[0],
        largest=sizes[-1],
        passes=(min(passes), max(passes)),
        captioned=sum(bool(e.captions) for e in examples),
        masked=sum(e.mask_source is not None for e in examples),
        boxes=sum(len(e.boxes) for e in examples),
        resolution=resolution,
        batch=config.batch,
        buckets=buckets,
        duplicates=duplicates(examples),
        small=tuple(e.name for e in examples if resolution and _is_small(e.size, resolution, data.buckets)),
        unused=tuple(name for name, caption, word in captions if not usable(caption, word)),
        long=tuple(name for name, caption, word in spoken if components and _is_long(caption, word, components)),
        sided=_sided(spoken) if data.flip > 0 else (),
        collisions=tuple(_all_collisions(captions, words, components if new_word else None)),
        ignored=reading.ignored,
        doubtful=reading.doubtful,
        transparent=reading.transparent,
        words=tuple(words),
        notes=reading.notes,
        memory=tuple(memory),
        seconds=None if seconds_per_step is None else seconds_per_step * config.steps,
    )


# -- pictures ---------------------------------------------------------------------------------------------------


def duplicates(examples: Sequence[Example]) -> tuple[tuple[str, ...], ...]:
    """Return groups of names of similar pictures: their hashes differ in at most `ALIKE` bits, and colours agree.

    The colours because a flat picture has no edges to hash, and because the same thing on another background is
    another picture.
    """
    looks = [look_of(e.source) if isinstance(e.source, Image.Image) else e.source.look for e in examples]
    hashes = np.array([look.bits for look in looks], dtype=np.uint64)
    colours = np.array([np.frombuffer(look.colours, np.uint8) for look in looks], dtype=np.float32)
    groups: dict[int, list[str]] = {}
    first: dict[int, int] = {}
    seen = _Similar()
    for index, example in enumerate(examples):
        near = seen.candidates(hashes[index], colours[index])
        alike = np.bitwise_count(hashes[near] ^ hashes[index]) <= ALIKE
        alike &= np.abs(colours[near] - colours[index]).mean(axis=1) <= SAME_COLOUR
        first[index] = first[int(near[alike.argmax()])] if alike.any() else index
        groups.setdefault(first[index], []).append(example.name)
        seen.add(index, hashes[index], colours[index])
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


class _Similar:
    """Pictures by parts of their hashes and by brightness, so that not every pair is compared.

    Two hashes that differ in at most `ALIKE` bits agree in one of `ALIKE` + 1 parts; colours that differ by at most
    `SAME_COLOUR` on average have means that do.
    """

    def __init__(self) -> None:
        self._places: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
        self._same: set[tuple[int, bytes]] = set()

    def add(self, index: int, bits: np.uint64, colours: np.ndarray[Any, Any]) -> None:
        """Add a picture; one that equals an earlier one is found by that."""
        whole = (int(bits), colours.tobytes())
        if whole not in self._same:
            self._same.add(whole)
            for part, value in enumerate(self._parts(int(bits))):
                self._places[part, value, self._brightness(colours)].append(index)

    def candidates(self, bits: np.uint64, colours: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Return the indices of earlier pictures that may be alike, in their order."""
        own = self._brightness(colours)
        near = {
            index
            for part, value in enumerate(self._parts(int(bits)))
            for bright in (own - 1, own, own + 1)
            for index in self._places.get((part, value, bright), ())
        }
        return np.array(sorted(near), dtype=np.intp)

    def _parts(self, bits: int) -> list[int]:
        width = -(-64 // (ALIKE + 1))
        return [bits >> start & (1 << width) - 1 for start in range(0, 64, width)]

    def _brightness(self, colours: np.ndarray[Any, Any]) -> int:
        return int(colours.mean() // (SAME_COLOUR + 0.5))


def _is_small(size: Shape, resolution: int, buckets: bool) -> bool:
    return size[0] * size[1] < resolution**2 if buckets else min(size) < resolution


def _buckets(examples: Sequence[Example], resolution: int, components: Components) -> dict[Shape, int]:
    among = shapes(resolution, components.multiple)
    found: dict[Shape, int] = {}
    for example in examples:
        shape = nearest(example.size, among)
        found[shape] = found.get(shape, 0) + example.repeats
    return dict(sorted(found.items()))


# -- captions ---------------------------------------------------------------------------------------------------


def _is_long(caption: str, token: str, components: Components) -> bool:
    """Return whether a caption, the token counted as one word of it, exceeds the window of a text encoder."""
    text = caption.replace("{}", "x")
    text = text.replace(token, "x") if token else text
    return any(len(t(text, verbose=False).input_ids) > t.model_max_length for t in components.tokenizers)


def _all_collisions(
    captions: Sequence[tuple[str, str, str]], words: Iterable[str], components: Components | None
) -> list[str]:
    """Return collisions of each word among the captions, as (name, caption, word), of its own pictures."""
    return [
        said
        for word in words
        for said in _collisions([(name, text) for name, text, own in captions if own == word], word, components)
    ]


def _collisions(captions: Sequence[tuple[str, str]], token: str, components: Components | None) -> list[str]:
    """Return sentences on where the token is, or could be taken for, something else."""
    before, after = (r"(?<!\w)" if re.match(r"\w", token) else ""), (r"(?!\w)" if re.search(r"\w$", token) else "")
    alone = re.compile(before + re.escape(token) + after)
    inside = [name for name, caption in captions if len(alone.findall(caption)) < caption.count(token)]
    other = [name for name, caption in captions if token.lower() in caption.lower() and not usable(caption, token)]
    found: list[str] = []
    if inside:
        found.append(f"{_number(inside, 'caption')} with {token} inside another word: {_listed(inside)}.")
    if other:
        found.append(f"{_number(other, 'caption')} with {token} in other capitals, not used: {_listed(other)}.")
    try:
        if components is not None:
            check_token(components, token)
    except ConceptError as error:
        found.append(str(error))
    return found


# -- figures ----------------------------------------------------------------------------------------------------


def _listed(names: Sequence[str]) -> str:
    """Return names, the first few of them if they are many."""
    several = list(dict.fromkeys(names))
    if len(several) > NAMED + 1:
        return f"{', '.join(several[:NAMED])} and {len(several) - NAMED} more"
    return " and ".join([", ".join(several[:-1]), several[-1]] if len(several) > 1 else several)


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _number(names: Sequence[str], noun: str) -> str:
    times = _times(len(names), noun)
    return f"There is {times}" if len(names) == 1 else f"There are {times}"


def _rounded(figure: float) -> str:
    return f"{figure:.0f}" if figure >= 10 else f"{figure:.2g}"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
