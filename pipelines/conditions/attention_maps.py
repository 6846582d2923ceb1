"""Attention maps: where in the picture each word of the prompt is looked up (DAAM, Tang et al., arXiv:2210.04885).

The cross-attention of every layer of a UNet, softmaxed, is averaged over heads, layers and steps, for the prediction
under the prompt. Nothing of the picture changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.condition import Branch, Step
from pipelines.errors import RequestError
from pipelines.models.components import Components, Conditioning
from pipelines.models.families.clip import prompt_ids


class AttentionMaps:
    """A condition that asks for nothing and remembers where words were looked up.

    Args:
        prompt: of the request.
    """

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self._sums: dict[int, Tensor] = {}
        self._calls = 0
        self._places: list[tuple[str, list[int]]] = []
        self._looked: dict[Branch, Tensor] = {}

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Watch every cross-attention of the UNet.

        Raises:
            RequestError: for a base without a UNet.
        """
        if not components.has_unet:
            raise RequestError(
                f"Attention maps are read from the cross-attention of a UNet, which {components.name} lacks.",
                "Use a base of Stable Diffusion 1.x, 2.x or XL.",
            )
        self._places, self._sums, self._calls = words_of(components, self.prompt), {}, 0
        device = components.device
        self._looked = {Branch.POSITIVE: torch.ones(count, device=device)}
        self._looked[Branch.NEGATIVE] = torch.zeros(count, device=device)
        unet: Any = components.denoiser
        before = dict(unet.attn_processors)
        try:
            unet.set_attn_processor({name: _Watched(one, self._add) for name, one in before.items()})
            yield
        finally:
            unet.set_attn_processor(before)

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return the mark of the predictions that are under the prompt."""
        return {"cross_attention_kwargs": {"looked": self._looked[branch]}}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def _add(self, attention: Tensor) -> None:
        """Add the attention (B, N, L) of one layer."""
        before = self._sums.get(attention.shape[1])
        self._sums[attention.shape[1]] = attention if before is None else before + attention
        self._calls += 1

    def maps(self, height: int, width: int) -> dict[str, Tensor]:
        """Return each word's share of the attention at each place, (B, height, width) in [0, 1].

        Args:
            height: of the maps; the latents' is the finest that is known.
            width: of the maps.

        Raises:
            RequestError: if nothing was drawn yet.
        """
        if not self._sums:
            raise RequestError("No picture was drawn with these attention maps.", "Give them to generate() first.")
        total: Tensor | None = None
        for positions, summed in self._sums.items():
            rows = max(1, round((positions * height / width) ** 0.5))
            grid = summed.transpose(1, 2).unflatten(-1, (rows, positions // rows))
            large = interpolate(grid, (height, width), mode="bilinear", align_corners=False)
            total = large if total is None else total + large
        shares = total / self._calls  # pyright: ignore[reportOptionalOperand]
        return {word: shares[:, places].sum(dim=1).cpu() for word, places in self._places}


def words_of(components: Components, prompt: str) -> list[tuple[str, list[int]]]:
    """Return the words of a prompt, each with its places in the encoded prompt; a word that comes again is counted.

    A learned word of several vectors is one word.
    """
    tokenizer = components.tokenizers[0]
    ids, places = prompt_ids(components, prompt)
    found: list[tuple[str, list[int]]] = []
    goes_on = False
    for piece, place in zip(tokenizer.convert_ids_to_tokens(ids), places, strict=True):
        learned = piece.startswith("<") and not piece.endswith("</w>")
        last = found[-1][0] if found else ""
        if goes_on or (learned and last.startswith("<") and piece.startswith(f"{last}_")):
            text = last if learned else last + piece.removesuffix("</w>")
            found[-1] = (text, [*found[-1][1], place])
        else:
            found.append((piece.removesuffix("</w>"), [place]))
        goes_on = not learned and not piece.endswith("</w>")
    return _counted(found)


def _counted(found: Sequence[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    seen: dict[str, int] = {}
    named: list[tuple[str, list[int]]] = []
    for word, places in found:
        seen[word] = seen.get(word, 0) + 1
        named.append((word if seen[word] == 1 else f"{word} ({seen[word]})", places))
    return named


class _Watched:
    """An attention processor that tells the attention of marked predictions, and computes what it computed before."""

    def __init__(self, processor: Any, tell: Any) -> None:
        self.processor, self.tell = processor, tell

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        looked: Tensor | None = None,
        regions: dict[str, Tensor] | None = None,
        **others: Any,
    ) -> Tensor:
        if regions is not None:
            others["regions"] = regions
        output = self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, **others)
        if looked is not None and attn.is_cross_attention and encoder_hidden_states is not None:
            rows = looked > 0
            if bool(rows.any()):
                mask = regions[str(hidden_states.shape[1])][rows] if regions is not None else None
                self.tell(_attention(attn, hidden_states[rows], encoder_hidden_states[rows], mask))
        return output


@torch.no_grad()
def _attention(attn: Any, hidden: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q k / sqrt(d)) of a layer, mean over its heads, (B, N, L) float32."""
    query, key = (one.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for one in (attn.to_q(hidden), attn.to_k(text)))
    scores = (query @ key.transpose(-1, -2)).float() * attn.scale
    if mask is not None:
        scores = scores + mask[:, None].float()
    return scores.softmax(dim=-1).mean(dim=1)
