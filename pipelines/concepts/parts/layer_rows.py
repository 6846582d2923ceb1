"""Layer rows: a new word that each cross-attention layer of the UNet reads by rows of its own (P+).

Source: Voynov et al., arXiv:2303.09522, 3.2: the prompt is encoded once for each layer, with that layer's rows, and
each layer reads its own encoding. SDXL's pooled text, which no single layer reads, is the mean over these encodings.
The phrase of a box is read by the gated layers alone, with the rows of the first layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.parts.token_rows import blended, check_widths
from pipelines.concepts.token_embeddings import NewWords, new_words
from pipelines.errors import ConceptError
from pipelines.models.components import Components
from pipelines.models.text_hooks import EncodeIds

PREFIX = "layer_rows."


@dataclass(frozen=True)
class LayerRows:
    """A new word with rows for each cross-attention layer.

    Attributes:
        rows: (layers, vectors, dim) float32 for each text encoder, layers in the order of `cross_attention`.
    """

    rows: tuple[Tensor, ...]

    @property
    def vectors(self) -> int:
        """Number of embedding vectors of the word in each layer."""
        return self.rows[0].shape[1]

    def fits(self, components: Components, card: ConceptCard) -> None:
        """Refuse a base whose text encoders read rows of another length, or whose UNet has other layers.

        Raises:
            ConceptError: with both numbers.
        """
        check_widths(components, card, [rows.shape[-1] for rows in self.rows])
        own, there = len(self.rows[0]), len(cross_attention(components))
        if own != there:
            raise ConceptError(
                f"{card.token} has rows for {own} cross-attention layers, and {components.name} has {there}.",
                "Use it with its own base, or train it again on this one.",
            )

    @contextmanager
    def attach(self, components: Components, card: ConceptCard, strength: float) -> Iterator[Components]:
        """Add the word; a strength below 1 blends its rows toward the word training started from.

        Raises:
            ConceptError: if the word is taken.
        """
        with layered_word(components, card.token, blended(components, card, self.rows, strength)) as added:
            for parameter in added.rows:
                parameter.requires_grad_(False)
            yield added.components

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows of each text encoder behind the prefix."""
        return {f"{PREFIX}{i}": rows.detach().cpu().float().contiguous() for i, rows in enumerate(self.rows)}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LayerRows | None:
        """Make the part from the tensors of a file.

        Raises:
            ConceptError: if they are no rows of layers.
        """
        rows = tuple(tensors[name].float() for name in sorted(tensors))
        if any(one.ndim != 3 or len(one) != len(rows[0]) for one in rows):
            shapes = " and ".join(str(tuple(one.shape)) for one in rows)
            raise ConceptError(f"The rows of its layers have the shapes {shapes}, which no word has.", "Get it again.")
        return cls(rows) if rows else None


def cross_attention(components: Components) -> list[nn.Module]:
    """Return the cross-attention layers of the UNet, in the order of its modules."""
    return [module for module in components.unet.modules() if getattr(module, "is_cross_attention", False)]


@contextmanager
def layered_word(components: Components, token: str, initial: Sequence[Tensor]) -> Iterator[NewWords]:
    """Add a word with rows for each cross-attention layer for as long as the `with` lasts.

    Args:
        components: the base.
        token: the word.
        initial: (layers, vectors, dim) for each text encoder; copied into parameters (layers * vectors, dim) float32.

    Raises:
        ConceptError: if the word is taken.
    """
    vectors = initial[0].shape[1]
    with new_words(components, token, [rows.flatten(0, 1) for rows in initial]) as words:
        added = words.components
        first, ids = next((key, ids) for key, ids in added.expansions.items() if key not in components.expansions)
        expansions = {**added.expansions, first: ids[:vectors]}
        layered = next((hook for hook in components.text_hooks if isinstance(hook, _LayeredText)), None)
        others = tuple(hook for hook in components.text_hooks if hook is not layered)
        hook = _LayeredText(len(initial[0]), (*(layered.words if layered else ()), (first, vectors)))
        added = replace(added, expansions=expansions, text_hooks=(*others, hook))
        with _reading_apart(added) if layered is None else _as_it_is():
            yield replace(words, components=added)


@dataclass(frozen=True)
class _LayeredText:
    """Encodes ids for each layer: the contexts of all layers side by side in the channels, (B, window, layers * dim).

    Attributes:
        layers: number of layers.
        words: first id and vectors of each word with rows for layers; the ids of the next layer follow those of one.
    """

    layers: int
    words: tuple[tuple[int, int], ...]

    def __call__(self, which: int, ids: Tensor, encode: EncodeIds) -> tuple[Tensor, Tensor]:
        shift = torch.zeros_like(ids)
        for first, vectors in self.words:
            shift = shift + vectors * ((ids >= first) & (ids < first + vectors))
        # In training the word is always there, and the question would wait for the device.
        if not torch.is_grad_enabled() and not bool(shift.any()):  # all layers read the same
            context, pool = encode(ids)
            return context.repeat(1, 1, self.layers), pool
        every = torch.cat([ids + layer * shift for layer in range(self.layers)])
        context, pool = encode(every)
        apart = context.unflatten(0, (self.layers, -1))
        return apart.permute(1, 2, 0, 3).flatten(2), pool.unflatten(0, (self.layers, -1)).mean(0)


@contextmanager
def _reading_apart(components: Components) -> Iterator[None]:
    """Let each cross-attention layer read its own context among the channels of the whole."""
    widths = [encoder.config.hidden_size for encoder in components.text_encoders]
    layers = cross_attention(components)
    handles = [
        layer.register_forward_pre_hook(_Own(place, len(layers), widths), with_kwargs=True)
        for place, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@dataclass(frozen=True)
class _Own:
    """Gives a layer the part of the context that is its own; each text encoder has `layers` parts of its width."""

    place: int
    layers: int
    widths: Sequence[int]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        encoders = kwargs["encoder_hidden_states"].split([self.layers * width for width in self.widths], dim=-1)
        own = [one.unflatten(-1, (self.layers, -1))[..., self.place, :] for one in encoders]
        return args, {**kwargs, "encoder_hidden_states": torch.cat(own, dim=-1)}
