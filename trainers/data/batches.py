"""Training pictures as batches: latents encoded once, captions, masks, and the order of drawing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipelines.errors import DataError
from pipelines.models.components import Components, Posterior
from trainers.data.folders import Example, read_examples
from trainers.data.latents import AT_ONCE, Encoder, Shape, cut_off, fitted, fitted_mask, nearest, shapes
from trainers.data.stored import Source, digest_of
from trainers.distributed import WHOLE, BatchShare
from trainers.settings import DataConfig

__all__ = ["Batch", "Example", "LatentSet", "digest", "read_examples", "prompt_templates", "usable"]

EPOCHS = 4
"""Orders of epochs that are kept."""
WORDS = Path(__file__).parents[1] / "words"


def digest(examples: Sequence[Example]) -> str:
    """Return 16 hex digits that identify training data: pixels, words, masks, boxes and repeats, not file names."""
    hashed = hashlib.sha256()
    for example in examples:
        hashed.update(f"{example.size}{chr(0).join(example.captions) or None}".encode())
        hashed.update(_pixels(example.source))
        if example.repeats != 1:
            hashed.update(f"repeats {example.repeats}".encode())
        if example.word is not None:
            hashed.update(f"word {example.word}".encode())
        if example.mask_source is not None:
            hashed.update(b"mask" + _pixels(example.mask_source))
        if example.after_source is not None:
            hashed.update(b"after" + _pixels(example.after_source))
        for box in example.boxes:
            hashed.update(b"box" + box.model_dump_json().encode())
    return hashed.hexdigest()[:16]


def _pixels(source: Source) -> bytes:
    """Return a hash of pixels, also for those in memory: a picture counts as the same wherever it lies."""
    return digest_of(source) if isinstance(source, Image.Image) else source.digest


def prompt_templates(name: str) -> tuple[str, ...]:
    """Return prompt templates with one `{}`: "object" and "style" of the official script, or "pocket"."""
    return tuple((WORDS / f"{name}_templates.txt").read_text(encoding="utf-8").splitlines())


def subject_templates(world: str, choice: str) -> tuple[str, ...]:
    """Return templates for a subject: those chosen, or with "auto" the official one, or the few of `pocket`."""
    own = "pocket" if world == "pocket" else "dreambooth"
    return prompt_templates(own if choice == "auto" else choice)


@cache
def ordinary(world: str) -> tuple[str, ...]:
    """Return captions of ordinary things, alone and beside each other, that a base of this world knows well."""
    return tuple((WORDS / f"{world}_captions.txt").read_text(encoding="utf-8").splitlines())


def usable(caption: str, token: str) -> bool:
    """Return whether a caption has a place for the token; one without is replaced by a template."""
    return token in caption or "{}" in caption


@dataclass(frozen=True)
class Batch:
    """The inputs of a method's losses.

    Attributes:
        latents: (B, C, h, w) scaled, float32, on the base's device.
        captions: one for each picture, the token in them.
        indices: which example each is.
        frames: (B, 4) original height and width in pixels, then rows and columns cut off at the top and left after
            scaling; inputs of SDXL.
        index: which draw this is.
        masks: (B, 1, h, w) float32 in [0, 1], 1 where the thing is, on the base's device; None if no example has one.
        prior: pictures of the class, for methods that must not forget it.
        part: which part of the batch of all processes this is; chance is drawn with `part.of`.
        together: the captions of the batch of all processes, for terms that are no mean over pictures.
    """

    latents: Tensor
    captions: list[str]
    indices: list[int]
    frames: Tensor
    index: int
    masks: Tensor | None = None
    prior: Batch | None = None
    part: BatchShare = WHOLE
    together: Sequence[str] = ()


@dataclass(frozen=True)
class _Bucket:
    """Examples of one shape.

    Attributes:
        members: which examples.
        places: example -> its place among the members.
        posterior: (ways, members, C, h, w); the second way, if there is one, is mirrored.
        masks: (ways, members, 1, h, w), or None.
    """

    members: tuple[int, ...]
    places: Mapping[int, int]
    posterior: Posterior
    masks: Tensor | None


@dataclass(frozen=True)
class _Captions:
    """The captions of each example that have a place for a token, and whether any example has several."""

    own: list[list[str]]
    several: bool


@dataclass(frozen=True)
class _Epoch:
    """The order of an epoch.

    Attributes:
        orders: for each bucket a permutation of the occurrences of its examples.
        batches: the order of the batches of all buckets; empty without buckets.
    """

    orders: tuple[list[int], ...]
    batches: list[int]


class LatentSet:
    """Examples whose posteriors (mean and spread, also mirrored) were encoded once; only noise is drawn each step.

    Args:
        components: whose autoencoder encodes.
        examples: the pictures.
        resolution: side in pixels, or with buckets the square root of the area.
        center_crop: crop to a square rather than squeeze.
        flip: chance of the mirrored version.
        seed: decides the order, with the epoch.
        buckets: keep shapes: scale each picture to cover the nearest of several shapes, crop the rest; a batch has one.
        cache: folder that keeps what was encoded between runs.

    Raises:
        DataError: if there is no example.
        ConfigError: if the cache cannot be written.
    """

    def __init__(
        self,
        components: Components,
        examples: Sequence[Example],
        *,
        resolution: int,
        center_crop: bool = False,
        flip: float = 0.0,
        seed: int = 0,
        buckets: bool = False,
        cache: Path | None = None,
    ) -> None:
        if not examples:
            raise DataError("There is no picture to learn from.", "Give at least one.")
        self.examples, self.flip, self.seed, self.device = list(examples), flip, seed, components.device
        self.bucketed = buckets
        self._own: dict[str, _Captions] = {}
        self._epochs: dict[tuple[int, int], _Epoch] = {}
        among = shapes(resolution, components.multiple) if buckets else [(resolution, resolution)]
        members: dict[Shape, list[int]] = {}
        for index, example in enumerate(self.examples):
            members.setdefault(nearest(example.size, among), []).append(index)
        encoder, crop = Encoder(components, cache), buckets or center_crop
        self.frames = torch.zeros(len(examples), 4, dtype=torch.long)
        for shape, index in ((shape, index) for shape, own in members.items() for index in own):
            size = self.examples[index].size
            self.frames[index] = torch.tensor([size[1], size[0], *cut_off(size, shape, crop)])
        self.buckets = [self._bucket(encoder, members[shape], shape, crop) for shape in sorted(members)]
        self._occurrences = [
            [i for i in bucket.members for _ in range(self.examples[i].repeats)] for bucket in self.buckets
        ]

    @classmethod
    def of(
        cls,
        components: Components,
        examples: Sequence[Example],
        data: DataConfig,
        seed: int,
        flip: float | None = None,
    ) -> LatentSet:
        """Return examples encoded as settings of reading say; mirrored by chance as those say, or by `flip`."""
        return cls(
            components,
            examples,
            resolution=data.resolution or components.defaults.size,
            center_crop=data.center_crop,
            flip=data.flip if flip is None else flip,
            seed=seed,
            buckets=data.buckets,
            cache=data.cache,
        )

    def _bucket(self, encoder: Encoder, members: list[int], shape: Shape, crop: bool) -> _Bucket:
        ways = self._encoded(encoder, members, shape, crop)
        posterior = Posterior(torch.stack([way.mean for way in ways]), torch.stack([way.std for way in ways]))
        places = {member: place for place, member in enumerate(members)}
        if all(example.mask_source is None for example in self.examples):
            return _Bucket(tuple(members), places, posterior, None)
        height, width = posterior.mean.shape[-2:]
        masks = torch.stack([fitted_mask(self.examples[i].mask, (width, height), crop) for i in members])
        both = torch.stack([masks, masks.flip(-1)][: len(ways)]).to(posterior.mean.device)
        return _Bucket(tuple(members), places, posterior, both)

    def _encoded(self, encoder: Encoder, members: list[int], shape: Shape, crop: bool) -> list[Posterior]:
        """Return the posteriors as they are, and mirrored if some will be; few pictures are in memory at a time."""
        ways = (False, True) if self.flip > 0 else (False,)
        parts: list[list[Posterior]] = [[] for _ in ways]
        for start in range(0, len(members), AT_ONCE):
            pictures = [fitted(self.examples[i].picture, shape, crop) for i in members[start : start + AT_ONCE]]
            for part, mirrored in zip(parts, ways, strict=True):
                part.append(encoder(pictures, mirrored))
        return [
            Posterior(torch.cat([one.mean for one in part]), torch.cat([one.std for one in part])) for part in parts
        ]

    def unused_captions(self, token: str) -> list[str]:
        """Return, for each caption without a place for the token, which is not used, the name of its picture."""
        return [e.name for e in self.examples for caption in e.captions if not usable(caption, e.word or token)]

    def draw(
        self,
        index: int,
        batch: int,
        token: str,
        templates: Sequence[str],
        generator: torch.Generator,
        part: BatchShare = WHOLE,
    ) -> Batch:
        """Return the batch of an index: each example `repeats` times an epoch in an order given by (seed, epoch).

        Captions that hold the token or a `{}` are used as they are; others, like missing ones, give way to a template.
        The token is that of the example, where it has one. With several parts, `batch` is the size of one, and only
        that one is given.
        """
        whole = self._whole(index, batch * part.count, token, templates, generator)
        if part.count == 1:
            return whole
        mine = slice(part.index * batch, (part.index + 1) * batch)
        return Batch(
            whole.latents[mine],
            whole.captions[mine],
            whole.indices[mine],
            whole.frames[mine],
            index,
            None if whole.masks is None else whole.masks[mine],
            part=part,
            together=whole.captions,
        )

    def _whole(self, index: int, batch: int, token: str, templates: Sequence[str], generator: torch.Generator) -> Batch:
        bucket, indices = self._bucketed(index, batch) if self.bucketed else self._stream(index, batch)
        mirrored = (torch.rand(batch, generator=generator) < self.flip).long()
        chosen = torch.randint(max(1, len(templates)), (batch,), generator=generator).tolist()
        captions = self._own_captions(token)
        own = captions.own
        if captions.several:
            picks = torch.rand(batch, generator=generator, dtype=torch.float64).tolist()
        else:
            picks = [0.0] * batch
        which = torch.tensor([bucket.places[i] for i in indices])
        posterior = Posterior(bucket.posterior.mean[mirrored, which], bucket.posterior.std[mirrored, which])
        texts = [
            (own[i][int(pick * len(own[i]))] if own[i] else templates[int(k)]).replace(
                "{}", self.examples[i].word or token
            )
            for i, k, pick in zip(indices, chosen, picks, strict=True)
        ]
        return Batch(
            posterior.sample(generator).to(self.device),
            texts,
            indices,
            self.frames[torch.tensor(indices)],
            index,
            None if bucket.masks is None else bucket.masks[mirrored, which].to(self.device),
        )

    def _own_captions(self, token: str) -> _Captions:
        """Return the captions of each example that have a place for the token; cached, as every step asks for them."""
        if token not in self._own:
            own = [[c for c in e.captions if usable(c, e.word or token)] for e in self.examples]
            self._own = {token: _Captions(own, any(len(several) > 1 for several in own))}
        return self._own[token]

    def _stream(self, index: int, batch: int) -> tuple[_Bucket, list[int]]:
        """Return epochs end to end; a batch may reach from one into the next."""
        (own,) = self._occurrences
        indices: list[int] = []
        for place in range(index * batch, (index + 1) * batch):
            epoch, at = divmod(place, len(own))
            indices.append(own[self._epoch(epoch, 0).orders[0][at]])
        return self.buckets[0], indices

    def _bucketed(self, index: int, batch: int) -> tuple[_Bucket, list[int]]:
        """Return whole batches of one bucket in mixed order; a bucket's last batch is filled from its beginning."""
        counts = [-(-len(own) // batch) for own in self._occurrences]
        epoch, at = divmod(index, sum(counts))
        order = self._epoch(epoch, batch)
        number, which = order.batches[at], 0
        while number >= counts[which]:
            number, which = number - counts[which], which + 1
        own, within = self._occurrences[which], order.orders[which]
        return self.buckets[which], [own[within[k % len(own)]] for k in range(number * batch, (number + 1) * batch)]

    def _epoch(self, epoch: int, batch: int) -> _Epoch:
        """Return the order of an epoch; the last few are kept, as every step asks for one of them."""
        if (epoch, batch) not in self._epochs:
            generator = self._generator(epoch)
            orders = tuple(torch.randperm(len(own), generator=generator).tolist() for own in self._occurrences)
            count = sum(-(-len(own) // batch) for own in self._occurrences) if batch else 0
            batches = torch.randperm(count, generator=generator).tolist() if batch else []
            while len(self._epochs) >= EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch, batch] = _Epoch(orders, batches)
        return self._epochs[epoch, batch]

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 9_176_263 + epoch) % (1 << 63))
