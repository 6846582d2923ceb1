"""The words a relation is steered by: toward prepositions, away from what captions say of things.

Source: Huang et al., ReVersion, arXiv:2303.13495, 3.2: in the space of input embeddings words lie together by part of
speech, so a relation's word should lie with the prepositions, away from nouns and adjectives. Prepositions of several
tokens are left out of the basis: their pieces are no prepositions (the authors' code uses the pieces).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.concepts.token_embeddings import embed_ids, word_ids
from pipelines.errors import ConfigError
from pipelines.models.components import Components
from trainers.data.batches import WORDS


def listed(name: str) -> tuple[str, ...]:
    """The words of a list that comes with the studio, without repetition."""
    return tuple(dict.fromkeys((WORDS / f"{name}.txt").read_text(encoding="utf-8").split()))


@dataclass(frozen=True)
class Basis:
    """The constants that steer the new row of one text encoder.

    Attributes:
        words: the prepositions, in the order of `rows`.
        rows: (P, dim) float32 input embeddings of the prepositions.
        table: (V, dim) of all words, from which the captions' words are looked up.
        stops: ids that are no negatives: prepositions, other function words, punctuation, special tokens.
    """

    words: tuple[str, ...]
    rows: Tensor
    table: Tensor
    stops: frozenset[int]

    def negatives(self, ids: Tensor) -> Tensor:
        """Rows (M, dim) of the content words among token ids; what pads captions is none of them."""
        kept = [i for i in ids.flatten().tolist() if i not in self.stops and i < len(self.table)]
        return self.table[torch.tensor(kept, dtype=torch.long, device=self.table.device)]


def bases(components: Components, words: Sequence[str]) -> tuple[Basis, ...]:
    """The basis of each text encoder.

    Args:
        components: the base without the relation's word.
        words: prepositions of one's own, or none for the list of the base's family.

    Raises:
        ConfigError: if a word of one's own is several tokens for the base, or fewer than two words are left.
    """
    own = "pocket_prepositions" if components.family.world == "pocket" else "prepositions"
    found: list[Basis] = []
    for tokenizer, encoder in zip(components.tokenizers, components.text_encoders, strict=True):
        single = {word: ids[0] for word in (words or listed(own)) if len(ids := word_ids(tokenizer, word)) == 1}
        for word in words:
            if word not in single:
                pieces = " ".join(tokenizer.convert_ids_to_tokens(word_ids(tokenizer, word))) or "nothing"
                raise ConfigError(
                    f"The positive word {word!r} is {len(word_ids(tokenizer, word))} tokens for {components.name} "
                    f"({pieces}), not one.",
                    f"Take plain prepositions such as {', '.join(listed(own)[:4])}.",
                )
        if len(single) < 2:
            raise ConfigError(
                f"{components.name} has {len(single)} prepositions of one token to steer by; 2 are the least.",
                "Name some that it knows with --basis, or switch steering off with --steer 0.",
            )
        stops = {
            i for word in (*listed("stop_words"), *listed("prepositions"), *single) for i in word_ids(tokenizer, word)
        }
        marks = (
            i for token, i in tokenizer.get_vocab().items() if not any(c.isalnum() for c in token.replace("</w>", ""))
        )
        table = torch.as_tensor(embed_ids(encoder, range(len(tokenizer))))
        special = {i for i in tokenizer.all_special_ids if i is not None}
        rows = embed_ids(encoder, list(single.values()))
        found.append(Basis(tuple(single), rows, table, frozenset(stops | set(marks) | special)))
    return tuple(found)


def spoken(components: Components, which: int, captions: Sequence[str]) -> Tensor:
    """The token ids of captions for one text encoder, end to end, without what pads and ends them."""
    tokenizer = components.tokenizers[which]
    ids = [i for caption in captions for i in tokenizer(caption, add_special_tokens=False, verbose=False).input_ids]
    return torch.tensor(ids, dtype=torch.long)


def steering_loss(row: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Relation-steering contrastive loss (arXiv:2303.13495, eq. 6): sums over words inside the logarithm.

    -log( sum_l exp(r.p_l / t) / (sum_l exp(r.p_l / t) + sum_m exp(r.n_m / t)) ) with unit vectors.

    Args:
        row: (dim,) or (k, dim) of the relation; the mean over its vectors.
        positives: (L, dim), at least one.
        negatives: (M, dim); with none the loss is 0.
        temperature: t.
    """
    unit = F.normalize(torch.atleast_2d(row), dim=-1)
    toward = unit @ F.normalize(positives, dim=-1).T / temperature
    away = unit @ F.normalize(negatives, dim=-1).T / temperature
    return (torch.cat((toward, away), dim=-1).logsumexp(-1) - toward.logsumexp(-1)).mean()


def focal_timesteps(count: int, timesteps: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Timesteps (count,) drawn toward the noisy end, where layout is decided (arXiv:2303.13495, eq. 8).

    f(t) is proportional to 1 - alpha cos(pi t / T). Deliberately without an importance weight: the loss is weighted so.

    Args:
        count: how many.
        timesteps: T, length of the noise schedule.
        alpha: 0 for all alike, 1 for none at t = 0.
        generator: on the CPU.
    """
    t = torch.arange(timesteps, dtype=torch.float64)
    density = 1 - alpha * torch.cos(torch.pi * t / timesteps)
    return torch.multinomial(density, count, replacement=True, generator=generator)
