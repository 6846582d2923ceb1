"""Training pictures: reading a folder, captions, latents encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipelines.components import Components, Posterior, encode
from pipelines.errors import DataError
from pipelines.images import PICTURE_SUFFIXES, fit, open_picture, to_tensor

WORDS = Path(__file__).parent / "words"


@dataclass(frozen=True)
class Example:
    """One training picture.

    Attributes:
        name: file name.
        picture: upright RGB.
        caption: its own caption, or None for templates.
    """

    name: str
    picture: Image.Image
    caption: str | None = None


def read_examples(folder: Path) -> list[Example]:
    """Read the pictures of a folder, in the order of their names; hidden files and other kinds of file are left out.

    Raises:
        DataError: if there is no such folder, no picture in it, or a picture cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the folder that holds your pictures.")
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise DataError(
            f"There is no picture in {folder}.", f"Put in some of these kinds: {', '.join(PICTURE_SUFFIXES)}."
        )
    return [Example(path.name, open_picture(path), _caption(path)) for path in paths]


def _caption(picture: Path) -> str | None:
    for suffix in (".txt", ".caption"):
        path = picture.with_suffix(suffix)
        if path.exists():
            try:
                text = path.read_text(encoding="utf-8-sig").strip()
            except UnicodeDecodeError:
                raise DataError(f"The caption {path.name} is not UTF-8 text.", "Save it as UTF-8.") from None
            return " ".join(text.split()) or None
    return None


def digest(examples: Sequence[Example]) -> str:
    """16 hex digits of what is learned from: pixels and captions, not file names."""
    hashed = hashlib.sha256()
    for example in examples:
        hashed.update(f"{example.picture.size}{example.caption}".encode())
        hashed.update(example.picture.tobytes())
    return hashed.hexdigest()[:16]


def templates(name: str) -> tuple[str, ...]:
    """Prompt templates with one `{}`: "object" and "style" of the official script, or "pocket"."""
    return tuple((WORDS / f"{name}_templates.txt").read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True)
class Batch:
    """What a method's losses are computed on.

    Attributes:
        latents: (B, C, h, w) scaled, float32, on the base's device.
        captions: one for each picture, the token in them.
        indices: which example each is.
        sizes: (B, 2) original height and width in pixels, which SDXL is told.
    """

    latents: Tensor
    captions: list[str]
    indices: list[int]
    sizes: Tensor


class LatentSet:
    """Examples whose posteriors (mean and spread, also mirrored) were encoded once; only noise is drawn each step.

    Args:
        components: whose autoencoder encodes.
        examples: the pictures.
        resolution: side in pixels.
        center_crop: crop to a square rather than squeeze.
        flip: chance of the mirrored version.
        seed: decides the order, with the epoch.
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
    ) -> None:
        self.examples, self.flip, self.seed, self.device = list(examples), flip, seed, components.device
        self.sizes = torch.tensor([[e.picture.height, e.picture.width] for e in examples])
        side = (resolution, resolution)
        squares = [
            to_tensor(fit(e.picture, *side) if center_crop else e.picture.resize(side, Image.Resampling.BICUBIC))
            for e in examples
        ]
        ways = [torch.stack(squares)]
        if flip > 0:
            ways.append(ways[0].flip(-1))
        posteriors = [[encode(components, part) for part in way.split(4)] for way in ways]
        self.means = torch.stack([torch.cat([p.mean for p in way]).float() for way in posteriors])
        self.stds = torch.stack([torch.cat([p.std for p in way]).float() for way in posteriors])

    def unused_captions(self, token: str) -> list[str]:
        """Names of pictures whose own caption has no place for the token, so that a template is used instead."""
        return [e.name for e in self.examples if e.caption and token not in e.caption and "{}" not in e.caption]

    def draw(self, index: int, batch: int, token: str, wordings: Sequence[str], generator: torch.Generator) -> Batch:
        """The batch of an index: each example once an epoch in an order given by (seed, epoch).

        Captions that hold the token or a `{}` are used as they are; others, like missing ones, give way to a template.
        """
        count = len(self.examples)
        indices: list[int] = []
        for place in range(index * batch, (index + 1) * batch):
            order = torch.Generator().manual_seed((self.seed * 9_176_263 + place // count) % (1 << 63))
            indices.append(int(torch.randperm(count, generator=order)[place % count]))
        mirrored = (torch.rand(batch, generator=generator) < self.flip).long()
        chosen = torch.randint(len(wordings), (batch,), generator=generator).tolist()
        which = torch.tensor(indices)
        latents = Posterior(self.means[mirrored, which], self.stds[mirrored, which]).sample(generator)
        captions = [
            self._caption(self.examples[i], token, wordings[int(k)]) for i, k in zip(indices, chosen, strict=True)
        ]
        return Batch(latents.to(self.device), captions, indices, self.sizes[which])

    @staticmethod
    def _caption(example: Example, token: str, template: str) -> str:
        own = example.caption
        wording = own if own and (token in own or "{}" in own) else template
        return wording.replace("{}", token)
