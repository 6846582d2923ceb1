"""Attend-and-Excite: latents corrected for things that the prompt names and the picture would lack.

Chefer et al., arXiv:2301.13826: before a step the latents move down the gradient of 1 - the largest share of attention
of the word that is looked up least (eq. 1 to 3, algorithm 1). As in the authors' code the attention is that of the
layers on one grid of the UNet, the share is a softmax over the words, sharpened a hundred times and smoothed, and at
three steps the correction goes on until each word reaches a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.condition import Branch, Step
from pipelines.errors import RequestError
from pipelines.models.attention import cross_attention_shown
from pipelines.models.components import Components, Conditioning
from pipelines.request.excite import Excite

SHARPENED = 100.0
"""Factor of the attention before the softmax over the words."""
THRESHOLDS = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}
"""Share of the steps -> share of attention that each word is to reach there; of 50 steps the paper's 0, 10 and 20."""
SIDE, QUARTER = 16, 4
"""The grid that is read has at most so many rows, or as many as the latents divided by four: 16 for 512 pixels."""


class Excitation:
    """A condition that corrects latents before they are predicted from.

    Args:
        settings: with words, and a strength above 0.
        prompt: of the request.
    """

    def __init__(self, settings: Excite, prompt: str) -> None:
        self.settings, self.prompt = settings, prompt
        self._places: list[list[int]] = []
        self._seen: list[Tensor] | None = None

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Find the words in the prompt, and read every cross-attention of the UNet while latents are corrected.

        Raises:
            RequestError: if the base has no UNet, or the prompt does not say a word.
        """
        if not components.has_unet:
            raise RequestError(
                f"Words to excite are read from the cross-attention of a UNet, which {components.name} "
                f"({components.family.title}) lacks.",
                "Use a base of Stable Diffusion 1.x, 2.x or XL, or leave the words out.",
            )
        self._places = [self._said(components, word) for word in self.settings.named]
        with cross_attention_shown(components, self):
            yield

    def _said(self, components: Components, word: str) -> list[int]:
        """Return the places of a word, or of words in a row, in the encoded prompt; the first if it comes again."""
        spoken = components.family.words(components, self.prompt)
        looked_for = [one for one, _ in components.family.words(components, word)]
        plain = [one.partition(" (")[0] for one, _ in spoken]
        for start in range(len(plain) - len(looked_for) + 1):
            if looked_for and plain[start : start + len(looked_for)] == looked_for:
                return [place for _, places in spoken[start : start + len(looked_for)] for place in places]
        raise RequestError(
            f"The prompt does not say {word!r:.60}, which is among the words to excite.",
            f"Write it in the prompt, or choose among its words: {', '.join(plain)[:200]}.",
        )

    def rows(self, batch: int) -> list[int]:
        """Return all places of a batch while latents are corrected, else none."""
        return [] if self._seen is None else list(range(batch))

    def add(self, attention: Tensor) -> None:
        """Remember the attention (B, N, L) of one layer."""
        if self._seen is not None:
            self._seen.append(attention)

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return nothing."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def corrected(self, latents: Tensor, step: Step, predict: Callable[[Tensor], object]) -> Tensor:
        """Return the latents (B, C, h, w) before a step, moved so that each word is looked up.

        Args:
            latents: of the run; each picture is corrected for itself.
            step: position of the loop.
            predict: computes the prediction under the prompt, for its attention.
        """
        settings = self.settings
        target = self._target(step)
        moves = step.within(settings.until)
        if not moves and target is None:
            return latents
        # The paper's: a root of what falls from 1 to a half.
        length = settings.strength * math.sqrt(1 - 0.5 * step.index / max(1, step.count - 1))
        loss, slope = self._loss(latents, predict)
        if target is not None and settings.tries:
            open_, tries = loss > 1 - target, 0
            while bool(open_.any()):
                latents = torch.where(_each(open_), latents - length * slope, latents)
                tries += 1
                # As in diffusers a picture takes one step more from where it has reached its target.
                open_ = open_ & (loss > 1 - target) & (tries < settings.tries)
                loss, slope = self._loss(latents, predict)
        return latents - length * slope if moves else latents

    def _target(self, step: Step) -> float | None:
        """Return the share that each word is to reach at this step, if it is one of those."""
        found = {int(share * step.count + 1e-9): target for share, target in THRESHOLDS.items()}
        return found.get(step.index) if step.within(self.settings.until) else None

    def _loss(self, latents: Tensor, predict: Callable[[Tensor], object]) -> tuple[Tensor, Tensor]:
        """Return how much the word looked up least lacks, (B,), and its slope (B, C, h, w) along the latents."""
        with torch.enable_grad():
            moving = latents.detach().requires_grad_(True)
            self._seen = []
            try:
                predict(moving)
                found = self._seen
            finally:
                self._seen = None
            rows, columns = latents.shape[-2:]
            loss = lacking(on_one_grid(found, rows, columns), self._places)
            (slope,) = torch.autograd.grad(loss.sum(), [moving])
        return loss.detach(), slope


def _each(marked: Tensor) -> Tensor:
    """Return marks (B,) as (B, 1, 1, 1)."""
    return marked[:, None, None, None]


def on_one_grid(layers: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """Return the mean attention (B, h, w, L) of the layers on the finest grid that is not finer than the paper's.

    Args:
        layers: attention (B, N, L) of each.
        rows: of the latents.
        columns: of the latents.
    """
    finest = max(SIDE, rows / QUARTER) * max(SIDE, columns / QUARTER)
    sizes = {one.shape[1] for one in layers}
    chosen = max((size for size in sizes if size <= finest), default=min(sizes))
    grid = torch.stack([one for one in layers if one.shape[1] == chosen]).mean(dim=0)
    height = max(1, round(math.sqrt(chosen * rows / columns)))
    return grid.unflatten(1, (height, chosen // height))


def lacking(attention: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """Return 1 - the largest share of the word that has the smallest, (B,) in [0, 1].

    Args:
        attention: (B, h, w, L) of all places of the encoded prompt, the first of which is the start token.
        places: of each word.
    """
    shares = (attention[..., 1:-1] * SHARPENED).softmax(dim=-1)
    each: list[Tensor] = []
    for own in places:
        share = shares[..., [place - 1 for place in own]].sum(dim=-1)[:, None]
        if min(share.shape[-2:]) > 1:  # there is something around to smooth with
            share = F.conv2d(F.pad(share, (1, 1, 1, 1), mode="reflect"), _smoothing().to(share))
        each.append(share.flatten(1).amax(dim=1))
    return (1 - torch.stack(each)).clamp(min=0).amax(dim=0)


def _smoothing() -> Tensor:
    """Return the authors' kernel (1, 1, 3, 3), a Gaussian in which 0.5 stands for a spread of 0.71."""
    line = torch.exp(-((torch.tensor([-1.0, 0.0, 1.0]) / (2 * 0.5)) ** 2))
    kernel = line[:, None] * line[None, :]
    return (kernel / kernel.sum())[None, None]
