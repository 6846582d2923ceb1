"""Rare identifiers: words of one token that mean nothing to a base, to bind a subject to.

DreamBooth (arXiv:2208.12242, 3.2) wants identifiers without a prior meaning. How little one means is measured here on
the base's own text encoder: how far "a photo of a X dog" is from "a photo of a dog", from the class word on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from pipelines.errors import ConfigError
from pipelines.models.components import Components
from pipelines.models.families.clip import encode_ids
from trainers.data.batches import WORDS

TAKEN = {"sks": "a rifle", "xxx": "pictures for adults", "art": "a style", "nsfw": "pictures for adults"}
"""Words of one token that look free and are not."""
CANDIDATES = 96
_SHORT = re.compile(r"[a-z]{1,4}")


@dataclass(frozen=True)
class Identifier:
    """A word of one token, and how far it moves the text of its class: cosine distance, 0 for no meaning at all."""

    word: str
    pull: float


def _one_token(components: Components, word: str) -> bool:
    return all(len(t(word, add_special_tokens=False, verbose=False).input_ids) == 1 for t in components.tokenizers)


def check_identifier(components: Components, word: str) -> None:
    """Refuse an identifier of several tokens, where the base reads with CLIP; language models read any words.

    Raises:
        ConfigError: with one that could be used instead.
    """
    if components.family.identifiers and not _one_token(components, word):
        pieces = components.tokenizers[0].tokenize(word)
        offered = rare_identifiers(components, "thing", 1)
        instead = f" such as {offered[0].word!r}" if offered else ""
        raise ConfigError(
            f"The identifier {word!r} is {len(pieces)} tokens for {components.name} ({' '.join(pieces[:8])}), not one.",
            f"Take a rare word of one token{instead} (studio identifiers lists them), or learn a new one: --pivotal.",
        )


@torch.no_grad()
def rare_identifiers(
    components: Components, class_word: str, count: int = 8, avoid: Collection[str] = ()
) -> list[Identifier]:
    """The words of one token, of at most four letters, that say least to the base's first text encoder.

    Args:
        components: the base.
        class_word: the kind of thing they are to stand before.
        count: how many.
        avoid: words not to offer.

    Raises:
        ConfigError: if the base reads with a language model.
    """
    if not components.family.identifiers:
        raise ConfigError(
            f"Rare identifiers are words of CLIP's vocabulary; {components.name} is {components.family.title}.",
            "Call the subject by any words of your own there, such as zwx fox.",
        )
    tokenizer = components.tokenizers[0]
    # Later entries of the vocabulary were merged last, so they are the rarest.
    ranked = sorted(tokenizer.get_vocab().items(), key=lambda entry: -entry[1])
    words = [token.removesuffix("</w>") for token, _ in ranked if token.endswith("</w>")]
    taken = {*TAKEN, *_ordinary(), *class_word.lower().split(), *avoid}
    short = [word for word in words if _SHORT.fullmatch(word) and word not in taken and _one_token(components, word)]
    chosen = short[:CANDIDATES]
    if not chosen:
        return []
    plain = _states(components, [f"a photo of a {class_word}"])
    listed = [f"a photo of a {word} {class_word}" for word in chosen]
    pulls: list[float] = []
    for start in range(0, len(listed), 16):
        # The identifier shifts what follows by one place; its own place is not compared.
        states = _states(components, listed[start : start + 16])
        place = len(tokenizer("a photo of a", add_special_tokens=False).input_ids) + 1
        with_it, without = states[:, place + 1 :], plain[:, place:-1]
        pulls += (1 - F.cosine_similarity(with_it, without.expand_as(with_it), dim=-1)).mean(1).tolist()
    found = [Identifier(word, pull) for word, pull in zip(chosen, pulls, strict=True)]
    return sorted(found, key=lambda one: one.pull)[:count]


def _ordinary() -> set[str]:
    """Words of ordinary captions, "and" and "to" among them, which say little and yet are not free."""
    words = " ".join(path.read_text(encoding="utf-8") for path in WORDS.glob("*.txt"))
    return set(re.findall(r"[a-z]+", words.lower()))


def _states(components: Components, texts: list[str]) -> torch.Tensor:
    ids = components.tokenizers[0](
        texts, padding="max_length", truncation=True, return_tensors="pt", verbose=False
    ).input_ids
    return encode_ids(components, 0, ids.to(components.device))[0].float()


def collision(word: str) -> str | None:
    """Return the meaning that a word which looks free already has, or None."""
    return TAKEN.get(word.lower())
