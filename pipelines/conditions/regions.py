"""Regions: the words of a boxed thing act inside its box only, so that attributes do not leak between things.

In every cross-attention, places outside a box do not see the words of its phrase in the prompt; all else is seen from
everywhere. What the text encoder carried from those words into later ones stays visible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.errors import RequestError
from pipelines.models.components import Components, Conditioning
from pipelines.models.families.clip import prompt_ids, window_count
from pipelines.request.request import Box
from pipelines.words import says

_ARTICLE = ("a ", "an ", "the ")


class Regions:
    """Cross-attention restricted to boxes in the conditional branch; the null form has no restriction.

    Args:
        boxes: each with a phrase that the prompt says; boxes of the same phrase share its words.
        prompt: the prompt.
        negative_prompt: the negative prompt, which decides with it how many windows of text there are.
        size: width and height in pixels.
    """

    def __init__(self, boxes: Sequence[Box], prompt: str, negative_prompt: str, size: tuple[int, int]) -> None:
        self.boxes, self.prompt, self.negative_prompt, self.size = boxes, prompt, negative_prompt, size
        self._masks: dict[Branch, dict[str, Tensor]] = {}

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Find the phrases in the prompt, and draw the boxes on the grids of all resolutions of the UNet.

        Raises:
            RequestError: if the prompt does not say a box's phrase.
        """
        unet = components.unet
        words = phrases_within(components, self.boxes, self.prompt)
        length = (
            window_count(components, [self.prompt, self.negative_prompt]) * components.tokenizers[0].model_max_length
        )
        columns, rows = (side // components.factor for side in self.size)
        for level in range(len(unet.config["block_out_channels"])):
            width, height = math.ceil(columns / 2**level), math.ceil(rows / 2**level)
            hidden = torch.zeros(height * width, length, dtype=torch.bool)
            for places, boxes in words:
                inside = torch.stack([on_grid(box.box, width, height) for box in boxes]).any(dim=0).flatten()
                hidden[:, places] = ~inside[:, None]
            mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(components.dtype).min)
            mask = mask.to(components.device, components.dtype).expand(count, -1, -1)
            self._masks.setdefault(Branch.POSITIVE, {})[str(height * width)] = mask
            self._masks.setdefault(Branch.NEGATIVE, {})[str(height * width)] = torch.zeros_like(mask)
        before = unet.attn_processors
        try:
            wrapped: Any = {name: _InRegions(processor) for name, processor in before.items()}
            unet.set_attn_processor(wrapped)
            yield
        finally:
            unet.set_attn_processor(before)
            self._masks = {}

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return the attention masks for each number of positions in the UNet."""
        return {"cross_attention_kwargs": {"regions": self._masks[branch]}}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents


def phrases_within(components: Components, boxes: Sequence[Box], prompt: str) -> list[tuple[list[int], list[Box]]]:
    """Return for each phrase of the boxes its places in the encoded prompt, and its boxes.

    Raises:
        RequestError: if the prompt does not say a box's phrase.
    """
    ids, places = prompt_ids(components, prompt)
    grouped: dict[tuple[int, ...], list[Box]] = {}
    for number, box in enumerate(boxes, 1):
        bare = box.phrase.strip()
        for article in _ARTICLE:
            bare = bare[len(article) :] if bare.lower().startswith(article) else bare
        key = tuple(prompt_ids(components, bare)[0])
        if not key or not _occurrences(key, ids):
            raise RequestError(
                f"Box {number} ({box.phrase!r:.60}): the prompt does not say {bare!r:.60}, "
                "so its words cannot be kept to the box.",
                "Write it in the prompt, or turn --grounding-region off.",
            )
        grouped.setdefault(key, []).append(box)
    return [
        ([places[start + k] for start in _occurrences(key, ids) for k in range(len(key))], boxes)
        for key, boxes in grouped.items()
    ]


def wanted(components: Components, boxes: Sequence[Box], prompt: str, learned: Sequence[str]) -> bool:
    """Return whether words are kept to their boxes where a request leaves that open.

    A learned word is told to the gated layers by what kind of thing it is, or as a thing without a name: the words of
    the other boxes would fill its box. Between things that the layers know by name little leaks.

    Args:
        components: the base, with the learned words in it.
        boxes: of the request.
        prompt: of the request.
        learned: words of its concepts.
    """
    if len(boxes) < 2 or not any(says(box.phrase, word) for box in boxes for word in learned):
        return False
    try:
        phrases_within(components, boxes, prompt)
    except RequestError:
        return False
    return True


def _occurrences(key: Sequence[int], ids: Sequence[int]) -> list[int]:
    return [start for start in range(len(ids) - len(key) + 1) if tuple(ids[start : start + len(key)]) == tuple(key)]


def on_grid(box: tuple[float, float, float, float], width: int, height: int) -> Tensor:
    """Return the cells (height, width) whose centres lie in a box, as true; at least one row and one column of them."""

    def along(low: float, high: float, cells: int) -> Tensor:
        centres = (torch.arange(cells) + 0.5) / cells
        inside = (centres >= low) & (centres <= high)
        if not bool(inside.any()):
            inside[min(int((low + high) / 2 * cells), cells - 1)] = True
        return inside

    left, top, right, bottom = box
    return along(top, bottom, height)[:, None] & along(left, right, width)[None, :]


class _InRegions:
    """An attention processor that masks words at some positions; self-attention is as before."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        regions: dict[str, Tensor] | None = None,
        **others: Any,
    ) -> Tensor:
        if attn.is_cross_attention and regions is not None:
            attention_mask = regions[str(hidden_states.shape[1])]
        return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, **others)
