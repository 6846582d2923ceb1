"""Prompts as token ids for T5 and language models: words of several vectors written out, one row a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.models.components import Components
from pipelines.models.families.clip import counted
from pipelines.models.text import parse_weights

_WORD = re.compile(r"<[^<>\s]+>|\w+(?:['-]\w+)*|[^\w\s]")
_MARK = "\x01"


class Rows(NamedTuple):
    """Token ids of prompts.

    Attributes:
        ids: (B, n).
        mask: (B, n), true where there is a token of the prompt.
    """

    ids: Tensor
    mask: Tensor


def bare(prompts: Sequence[str], plain: bool) -> list[str]:
    """Return prompts without the syntax of weights, which such encoders have no use for; captions as they are."""
    if plain:
        return list(prompts)
    return ["".join(text for text, _ in parse_weights(prompt)) for prompt in prompts]


def token_rows(
    components: Components, which: int, texts: Sequence[str], most: int, *, fill: bool = True, ends: int = 0
) -> Rows:
    """Return the token ids of texts for one text encoder.

    Args:
        components: the base.
        which: text encoder.
        texts: a row each.
        most: most tokens; what exceeds them is cut off.
        fill: pad to `most`, else to the longest of the texts.
        ends: number of last tokens that stay when a text is cut: the end token of T5.
    """
    tokenizer: Any = components.tokenizers[which]
    listed: list[list[int]] = []
    for text in texts:
        found = tokenizer(text, verbose=False).input_ids
        ids = [meant for token in found for meant in components.expansions.get(token, (token,))]
        listed.append(ids if len(ids) <= most else [*ids[: most - ends], *ids[len(ids) - ends :]])
    length = most if fill else max(len(ids) for ids in listed)
    pad = tokenizer.pad_token_id
    device = next(components.text_encoders[which].parameters()).device
    table = torch.tensor([ids + [pad] * (length - len(ids)) for ids in listed], device=device)
    mask = torch.tensor([[True] * len(ids) + [False] * (length - len(ids)) for ids in listed], device=device)
    return Rows(table, mask)


def asked(components: Components, texts: Sequence[str], *, thinking: bool) -> list[str]:
    """Return texts as a person's turn in the chat template of the first tokenizer, the answer still to come."""
    tokenizer: Any = components.tokenizers[0]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for text in texts
    ]


def length_of(components: Components, text: str) -> int:
    """Return the number of tokens of a text for the first text encoder."""
    return len(components.tokenizers[0](text).input_ids)


def word_places(
    components: Components,
    which: int,
    prompt: str,
    most: int,
    shift: int = 0,
    template: Callable[[str], str] = str,
) -> list[tuple[str, list[int]]]:
    """Return the words of a prompt, each with the places of its tokens; a word that comes again is counted.

    Args:
        components: the base, with any new words attached.
        which: text encoder.
        prompt: as a request has it.
        most: tokens of it that are read; what stands behind them has no place.
        shift: place of the first token; negative where those before the prompt are cut off.
        template: puts a prompt into the text that is encoded.
    """
    tokenizer: Any = components.tokenizers[which]
    (said,) = bare([prompt], plain=False)
    begins = template(_MARK).index(_MARK)
    words = [(found.group(), begins + found.start(), begins + found.end()) for found in _WORD.finditer(said)]
    found: list[tuple[str, list[int]]] = [(word, []) for word, _, _ in words]
    told = tokenizer(template(said), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    place = 0
    for token, (first, last) in zip(told.input_ids, told.offset_mapping, strict=True):
        meant = range(place, place + len(components.expansions.get(token, (token,))))
        place = meant.stop
        for (_, places), (_, start, end) in zip(found, words, strict=True):
            if first < end and last > start:
                places += [one + shift for one in meant if one < most]
    return counted(found)
