"""The examples that are most like a query, by how a picture encoder sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipelines.measures.judge import Judge
from pipelines.pictures.files import open_picture
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import ExamplePair

Embed = Callable[[Sequence[Image.Image]], Tensor]
"""Pictures to unit vectors (N, D)."""


def nearest(query: Image.Image, pairs: Sequence[ExamplePair], embed: Embed, count: int = 1) -> tuple[ExamplePair, ...]:
    """Return the examples whose picture before is most like the query, by cosine, the nearest last.

    Unsupervised retrieval (Zhang et al., "What Makes Good Examples for Visual In-Context Learning?", arXiv:2301.13670).

    Args:
        query: the picture to be changed.
        pairs: to choose from.
        embed: gives unit vectors.
        count: number of items.
    """
    seen = torch.cat([embed([open_picture(Path(pair.before))]) for pair in pairs])
    likeness = F.cosine_similarity(seen, embed([query]))
    best = likeness.argsort(descending=True, stable=True)[:count].tolist()
    return tuple(pairs[index] for index in reversed(best))


def judges_eye(judge: Judge) -> Embed:
    """Return the picture encoder of pocket's judge."""

    @torch.no_grad()
    def embed(pictures: Sequence[Image.Image]) -> Tensor:
        return torch.cat([judge.embed_pictures(to_tensor(picture)[None]) for picture in pictures])

    return embed
