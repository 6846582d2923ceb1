"""Attention of the picture to the words, read while a denoiser computes it.

Of a UNet the cross-attention is computed a second time beside each of its layers. Of a transformer in which picture and
text attend to each other, queries, keys and mask are taken where torch computes the attention, behind norms and rotary
positions, so that one reader serves all such transformers of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from pipelines.errors import RequestError
from pipelines.models.components import Components

See = Callable[[Tensor, Tensor, Tensor | None, float | None], None]
"""Takes queries, keys, mask and scale."""

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "layers.")
"""Beginnings of the names of blocks in which picture and text attend to each other."""


class Watcher(Protocol):
    """Looks at the cross-attention of a UNet."""

    def rows(self, batch: int) -> list[int]:
        """Return the places in a batch of predictions that are looked at."""
        ...

    def add(self, attention: Tensor) -> None:
        """Take the attention (B, N, L) of one layer, B of the rows."""
        ...


@contextmanager
def cross_attention_shown(components: Components, watcher: Watcher) -> Iterator[None]:
    """Show the cross-attention of every layer of a UNet while the `with` lasts.

    It has a gradient where the UNet's output has one.
    """
    unet: Any = components.denoiser
    before = dict(unet.attn_processors)
    try:
        unet.set_attn_processor({name: _Watched(one, watcher) for name, one in before.items()})
        yield
    finally:
        unet.set_attn_processor(before)


class _Watched:
    """An attention processor that shows cross-attention, and computes what it computed before."""

    def __init__(self, processor: Any, watcher: Watcher) -> None:
        self.processor, self.watcher = processor, watcher

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        regions: dict[str, Tensor] | None = None,
        **others: Any,
    ) -> Tensor:
        if regions is not None:
            others["regions"] = regions
        output = self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, **others)
        rows = self.watcher.rows(len(hidden_states))
        if rows and attn.is_cross_attention and encoder_hidden_states is not None:
            mask = regions[str(hidden_states.shape[1])][rows] if regions is not None else None
            self.watcher.add(cross_attention(attn, hidden_states[rows], encoder_hidden_states[rows], mask))
        return output


def cross_attention(attn: Any, hidden: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q k / sqrt(d)) of a layer of a UNet, mean over its heads, (B, N, L) float32."""
    query, key = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (attn.to_q(hidden), attn.to_k(text)))
    scores = (query @ key.transpose(-1, -2)).float() * attn.scale
    if mask is not None:
        scores = scores + mask[:, None].float()
    return scores.softmax(dim=-1).mean(dim=1)


@contextmanager
def shown(components: Components, see: See) -> Iterator[None]:
    """Show the queries and keys of every joint attention while the `with` lasts.

    Args:
        components: the base, a transformer.
        see: called with queries and keys (B, heads, N, d), the mask that is added to their products or says which
            count, and their scale.

    Raises:
        RequestError: if the transformer has no such layers.
    """
    layers = joint_layers(components.denoiser)
    if not layers:
        raise RequestError(
            f"{components.family.title} ({type(components.denoiser).__name__}) has no layers in which words are looked "
            "up in a way known here.",
            "Use a base of Stable Diffusion, FLUX, Z-Image, Qwen-Image or Krea 2.",
        )
    reader = _Reader(see)
    handles = [layer.register_forward_pre_hook(reader.enter) for layer in layers]
    handles += [layer.register_forward_hook(reader.leave, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def joint_layers(transformer: Any) -> list[torch.nn.Module]:
    """Return the layers of a transformer in which picture and text attend to each other."""
    return [
        layer
        for name, layer in transformer.named_modules()
        if name.startswith(BLOCKS) and hasattr(layer, "processor") and not name.endswith("attn2")
    ]


def looked_up(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None, rows: slice, columns: Sequence[int]
) -> Tensor:
    """Return softmax(q k / sqrt(d)) of some queries for some keys, mean over heads, (B, rows, columns) float32.

    Args:
        query: (B, heads, N, d).
        key: (B, heads, N, d), or of fewer heads, each for several of the queries'.
        mask: (B, 1, 1 or N, N) to add to the products, or which of them count; None for all.
        scale: of the products; None for 1 / sqrt(d).
        rows: of the queries.
        columns: of the keys.
    """
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    if mask is not None and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    total: Tensor | None = None
    for head in range(heads):  # one by one: all at once are gigabytes for a large picture
        product = query[:, head, rows].float() @ key[:, head // shared].float().transpose(-1, -2)
        product = product * (query.shape[-1] ** -0.5 if scale is None else scale)
        if mask is not None:
            product = product + mask[:, head if mask.shape[1] > 1 else 0].float()
        share = product.softmax(dim=-1)[..., list(columns)]
        total = share if total is None else total + share
    return total / heads  # pyright: ignore[reportOptionalOperand]


class _Reader(TorchFunctionMode):
    """Shows what torch's attention is called with, between the beginning and end of a layer."""

    def __init__(self, see: See) -> None:
        super().__init__()
        self.see = see

    def enter(self, layer: Any, inputs: Any) -> None:
        """Begin to read."""
        self.__enter__()

    def leave(self, layer: Any, inputs: Any, output: Any) -> None:
        """Read no more."""
        self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key = (told[name] if name in told else args[at] for at, name in enumerate(("query", "key")))
            mask = told.get("attn_mask", args[3] if len(args) > 3 else None)
            with torch.no_grad():
                self.see(query, key, mask, told.get("scale"))
        return func(*args, **told)
