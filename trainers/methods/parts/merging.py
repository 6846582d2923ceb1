"""Merging concepts of Custom Diffusion that were learned apart (Kumari et al., arXiv:2212.04488, 3.3, eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference
from pipelines.errors import ConceptError
from pipelines.models.components import Components
from trainers.losses import conditioning, uncropped


def readers(components: Components) -> list[str]:
    """Names of the weights that read the text: keys and values of cross-attention."""
    return [
        name
        for name, _ in components.unet.named_parameters()
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    ]


RIDGE = 1e-4
"""Added to the diagonal of the captions' covariance, relative to its mean: few captions leave it without full rank."""


@torch.no_grad()
def merged(
    components: Components, concepts: Sequence[Concept], captions: Sequence[str], templates: Sequence[str] = ("a {}",)
) -> list[Concept]:
    """Make concepts learned apart fit one base together (arXiv:2212.04488, eq. 6).

    Each layer's weight becomes the one that maps the words of every concept to what that concept's own weights made of
    them, and changes least on ordinary captions: W = W0 + (V - W0 C) (D C)^-1 D with D = (K^T K)^-1 C read as rows.

    Args:
        components: the base.
        concepts: of Custom Diffusion, on this base; their words must differ.
        captions: ordinary prompts of the base, what is to stay as it is.
        templates: prompts with a `{}` in which each concept is to hold.

    Returns:
        The concepts with their words, each with the joint weights.

    Raises:
        ConceptError: if there are fewer than two, or one has no such weights.
    """
    keys = [f"unet.{name}" for name in readers(components)]
    if len(concepts) < 2:
        raise ConceptError(f"{len(concepts)} concepts cannot be merged.", "Give two or more.")
    if len({concept.token for concept in concepts}) < len(concepts):
        raise ConceptError(f"Two of the concepts are called {concepts[0].token}.", "Train one under another word.")
    for concept in concepts:
        if set(concept.changes) != set(keys) or not concept.rows:
            raise ConceptError(
                f"{concept.token} is no Custom Diffusion concept of this base.",
                "Merging needs the keys and values of cross-attention and a word; other concepts are used as they are.",
            )
    ordinary = _words_of(components, list(captions))
    covariance = ordinary.T @ ordinary / len(ordinary)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    texts: list[Tensor] = []
    for concept in concepts:
        with Concept(concept.card, concept.rows).attach(components) as taught:
            prompts = [template.replace("{}", concept.token) for template in templates]
            texts.append(_words_of(taught, prompts, concept.token))
    joined = torch.cat(texts)
    joint: dict[str, Any] = {}
    for key in keys:
        weight = components.unet.get_parameter(key.removeprefix("unet.")).float().cpu()
        own = [concept.changes[key].changed(weight, 1.0) for concept in concepts]
        wanted = torch.cat([text @ w.T for text, w in zip(texts, own, strict=True)])
        # Least change of what ordinary captions read, subject to the concepts' words (both as rows); ridge on the
        # inner system as well, because prompts of one concept share most of their words.
        solved = torch.linalg.solve(covariance, joined.T)
        inner = joined @ solved
        inner += RIDGE * inner.diagonal().mean() * torch.eye(len(inner))
        joint[key] = Difference((solved @ torch.linalg.solve(inner, wanted - joined @ weight.T)).T.half())
    return [replace(concept, changes=joint) for concept in concepts]


def _words_of(components: Components, captions: list[str], token: str | None = None) -> Tensor:
    """Text states (N, dim) of captions without their padding, float32 on the CPU.

    With a token only those from it on: what stands before knows nothing of it, and concepts would contradict each
    other there.
    """
    states = conditioning(components, captions, uncropped(len(captions), (1, 1)), (1, 1))["encoder_hidden_states"]
    tokenizer = components.tokenizers[0]
    listed: list[Tensor] = []
    for caption, row in zip(captions, states, strict=True):
        ids = tokenizer(caption, truncation=True, verbose=False).input_ids
        first = 0 if token is None else ids.index(tokenizer.convert_tokens_to_ids(token))
        listed.append(row[first : len(ids)].float().cpu())
    return torch.cat(listed)
