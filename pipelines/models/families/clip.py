"""CLIP as a reader of prompts: windows, weights, and words of several vectors.

A prompt longer than the text encoder's window is cut into chunks of that window, each encoded by itself and laid end
to end, as AUTOMATIC1111 does; cuts are made at a comma where one is near, and never within a word of several vectors.
A weight multiplies the encoded rows of its words, after which the chunk's root mean square is restored. A prompt
without either is encoded exactly as the plain pipelines do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import RequestError
from pipelines.models.components import Components
from pipelines.models.text import parse_weights

COMMA_REACH = 20  # tokens before a chunk's end in which a comma is preferred as the cut


@dataclass(frozen=True)
class EncodedPrompt:
    """Conditioning of one prompt.

    Attributes:
        context: (1, chunks * window, dim) for cross-attention.
        pooled: (1, dim) of SDXL's second encoder, else None.
    """

    context: Tensor
    pooled: Tensor | None


def _chunks(
    components: Components, which: int, fragments: list[tuple[str, float]]
) -> list[tuple[list[int], list[float]]]:
    """Return token ids and weights of each window, without start and end."""
    tokenizer = components.tokenizers[which]
    room = tokenizer.model_max_length - 2
    ids: list[int] = []
    weights: list[float] = []
    begins: list[bool] = []  # a word, of which there may be several vectors
    for text, weight in fragments:
        for token in tokenizer(text, add_special_tokens=False, verbose=False).input_ids:
            meant = components.expansions.get(token, (token,))
            ids += meant
            weights += [weight] * len(meant)
            begins += [True, *[False] * (len(meant) - 1)]
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    listed: list[tuple[list[int], list[float]]] = []
    while len(ids) > room:
        # A word of several vectors goes whole into the next window, unless it is longer than one.
        whole = next((i for i in range(room, 0, -1) if begins[i]), room)
        cut = next((i for i in range(whole, max(room - COMMA_REACH, 1), -1) if ids[i - 1] == comma), whole)
        listed.append((ids[:cut], weights[:cut]))
        ids, weights, begins = ids[cut:], weights[cut:], begins[cut:]
    return [*listed, (ids, weights)]


def window_count(components: Components, prompts: list[str]) -> int:
    """Return the number of windows of text that `encode_prompts` makes of each of these prompts."""
    return max(
        len(_chunks(components, which, parse_weights(prompt)))
        for which in range(len(components.tokenizers))
        for prompt in prompts
    )


def prompt_ids(components: Components, prompt: str) -> tuple[list[int], list[int]]:
    """Return token ids of a prompt for the first text encoder, and the position of each in the encoded prompt."""
    window = components.tokenizers[0].model_max_length
    ids: list[int] = []
    places: list[int] = []
    for number, (own, _) in enumerate(_chunks(components, 0, parse_weights(prompt))):
        ids += own
        places += [number * window + 1 + k for k in range(len(own))]  # after the start token
    return ids, places


def clip_words(components: Components, prompt: str) -> list[tuple[str, list[int]]]:
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
    return counted(found)


def counted(found: Sequence[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Return words with their places, each of one spelling but the first with its number."""
    seen: dict[str, int] = {}
    named: list[tuple[str, list[int]]] = []
    for word, places in found:
        seen[word] = seen.get(word, 0) + 1
        named.append((word if seen[word] == 1 else f"{word} ({seen[word]})", places))
    return named


def encode_prompts(components: Components, prompts: Sequence[str], skip: int = 0) -> list[EncodedPrompt]:
    """Encode prompts to conditioning of one common length (the shorter ones get empty chunks).

    Differentiable with respect to the text encoders' input rows.

    Args:
        components: the base.
        prompts: one or several.
        skip: number of last layers of the text encoders to leave out, as in `encode_ids`.

    Raises:
        RequestError: if they do not have so many.
    """
    parsed = [parse_weights(prompt) for prompt in prompts]
    per_encoder: list[list[Tensor]] = []
    pooled: list[Tensor] | None = None
    longest = 0
    chunked: list[list[list[tuple[list[int], list[float]]]]] = []
    for which in range(len(components.tokenizers)):
        chunked.append([_chunks(components, which, fragments) for fragments in parsed])
        longest = max(longest, *(len(chunks) for chunks in chunked[-1]))
    for which, listed in enumerate(chunked):
        contexts: list[Tensor] = []
        pools: list[Tensor] = []
        for chunks in listed:
            context, pool = _encode_windows(components, which, chunks + [([], [])] * (longest - len(chunks)), skip)
            contexts.append(context)
            pools.append(pool)
        per_encoder.append(contexts)
        pooled = pools
    contexts = [torch.cat(parts, dim=-1) for parts in zip(*per_encoder, strict=True)]
    if len(components.text_encoders) == 1 or pooled is None:
        return [EncodedPrompt(context, None) for context in contexts]
    return [EncodedPrompt(context, pool) for context, pool in zip(contexts, pooled, strict=True)]


def _encode_windows(
    components: Components, which: int, chunks: list[tuple[list[int], list[float]]], skip: int = 0
) -> tuple[Tensor, Tensor]:
    tokenizer, encoder = components.tokenizers[which], components.text_encoders[which]
    window = tokenizer.model_max_length
    pad = tokenizer.pad_token_id
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids, _ in chunks]
    ids = torch.tensor([row + [pad] * (window - len(row)) for row in rows], device=encoder.device)
    context, pool = encode_ids(components, which, ids, skip)
    table = torch.ones(len(chunks), window)
    for row, (_, weights) in enumerate(chunks):
        table[row, 1 : 1 + len(weights)] = torch.tensor(weights)
    weighted = (table != 1).any(dim=1)
    if bool(weighted.any()):
        # A1111 restores the mean, which is near 0 in some encoders: its ratio may then be anything, -20 too.
        before = context.square().mean(dim=(1, 2), keepdim=True).sqrt()
        scaled = context * table[..., None].to(context)
        scaled = scaled * (before / scaled.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12))
        context = torch.where(weighted[:, None, None].to(context.device), scaled, context)
    return context.reshape(1, -1, context.shape[-1]), pool[:1]


def encode_ids(components: Components, which: int, ids: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Run one text encoder on token ids (B, window): context (B, window, dim) and pooled vector (B, dim').

    SD 1.x and 2.x use the last layer, normalised; SDXL the last but one of both encoders. `skip` leaves out as many
    more ("clip skip" less one), as diffusers does; the pooled vector is of the last layer always. Hooks of `components`
    may give the context more channels, for layers of cross-attention that each read their own.

    Raises:
        RequestError: if the encoder does not have so many layers.
    """
    encode = partial(_encode, components, which, skip=skip)
    for hook in components.text_hooks:
        encode = partial(hook, which, encode=encode)
    return encode(ids)


def _encode(components: Components, which: int, ids: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    encoder: Any = components.text_encoders[which]
    xl = len(components.text_encoders) > 1
    out = encoder(ids, output_hidden_states=xl or skip > 0)
    pool = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    if not (xl or skip):
        return out.last_hidden_state, pool
    behind = skip + (2 if xl else 1)
    if behind > (there := len(out.hidden_states)):
        raise RequestError(
            f"Clip skip {skip + 1} is more than the {there - 1} layers of a text encoder of {components.name} allow.",
            f"Use 1 to {there - int(xl)}.",
        )
    context = out.hidden_states[-behind]
    return (context if xl else getattr(encoder, "text_model", encoder).final_layer_norm(context)), pool


def caption_ids(components: Components, which: int, captions: Sequence[str]) -> Tensor:
    """Return token ids (B, window) of captions, concepts of several vectors written out, cut at the window."""
    tokenizer = components.tokenizers[which]
    room, window = tokenizer.model_max_length - 2, tokenizer.model_max_length
    rows: list[list[int]] = []
    for caption in captions:
        ids: list[int] = []
        for token in tokenizer(caption, add_special_tokens=False, verbose=False).input_ids:
            ids += components.expansions.get(token, (token,))
        row = [tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (window - len(row)))
    return torch.tensor(rows, device=components.text_encoders[which].device)
