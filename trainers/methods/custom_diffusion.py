"""Custom Diffusion: a new word, and the keys and values of cross-attention that read it.

Source: Kumari et al., arXiv:2212.04488, 3.2: only W_k and W_v of each cross-attention layer and the row of one new word
are trained, with prior preservation. Several concepts are learned jointly in one run (3.3), each picture under its own
word with the prior of its own class, or learned apart and merged in closed form (eq. 6), see `merged`.
Differences from the authors' code: the masked error is a mean, so the prior weight means what it says (theirs makes it
a quarter); rows of other words are not decayed; the new word
stands for the class word instead of before it; pictures are not pasted at random scales unless the person does so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference
from pipelines.errors import ConceptError
from pipelines.models.components import Components
from trainers.data.batches import Batch, subject_templates
from trainers.losses import conditioning, uncropped
from trainers.method import Trainable
from trainers.method_settings import CustomDiffusionConfig
from trainers.methods.parts.adapters import whole
from trainers.methods.parts.subject_binding import bound, concepts_of, displacement, subject_losses, with_words

POCKET: dict[str, Any] = {
    "steps": 150,
    "batch": 8,
    "learning_rate": 2e-3,
    "word_rate": 3.0,
    "prior_scope": "world",
    "warmup": 10,
    "scale_lr": False,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
    "flip": 0.0,
}
SD: dict[str, Any] = {
    "steps": 500,
    "batch": 2,
    "learning_rate": 4e-5,
    "scale_lr": False,
    "max_grad_norm": 1.0,
    "flip": 0.0,
    "center_crop": True,
}


class CustomDiffusion:
    """Learns a new word with the keys and values of cross-attention; several are merged."""

    name: ClassVar[str] = "custom-diffusion"
    Config: ClassVar[Any] = CustomDiffusionConfig

    def recipe(self, family: str, config: CustomDiffusionConfig) -> Mapping[str, Any]:
        """The authors' values on one GPU, their steps for each subject as they have it; for `pocket` short ones."""
        values = POCKET if family == "pocket" else SD
        return values | {"steps": values["steps"] * len(config.subjects)}

    @contextmanager
    def prepare(
        self, components: Components, config: CustomDiffusionConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Add the word, starting as the class word, and make keys and values trainable."""
        wordings = subject_templates(components.family.world, config.wordings)
        with (
            with_words(components, config) as (taught, words),
            whole("unet", components.unet, readers(components)) as trained,
        ):
            binding = bound(taught, config, [trained], words, frozen=False)
            rates = dict.fromkeys(binding.rows, config.word_rate)
            yield Trainable(taught, binding.parameters, wordings, binding, displacement(binding), rates)

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The denoising loss of the subjects, and the prior term of their classes."""
        return subject_losses(trainable.components, trainable.state, batch, generator)

    def export(self, trainable: Trainable) -> Concept:
        """The words and the changes as they are now."""
        return concepts_of(trainable.components, trainable.state, self.name)


def readers(components: Components) -> list[str]:
    """Names of the weights that read the text: keys and values of cross-attention."""
    return [
        name
        for name, _ in components.unet.named_parameters()
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    ]


# -- merging ----------------------------------------------------------------------------------------------------

RIDGE = 1e-4
"""Added to the diagonal of the captions' covariance, relative to its mean: few captions leave it without full rank."""


@torch.no_grad()
def merged(
    components: Components, concepts: Sequence[Concept], captions: Sequence[str], wordings: Sequence[str] = ("a {}",)
) -> list[Concept]:
    """Make concepts learned apart fit one base together (arXiv:2212.04488, eq. 6).

    Each layer's weight becomes the one that maps the words of every concept to what that concept's own weights made of
    them, and changes least on ordinary captions: W = W0 + (V - W0 C) (D C)^-1 D with D = (K^T K)^-1 C read as rows.

    Args:
        components: the base.
        concepts: of Custom Diffusion, on this base; their words must differ.
        captions: ordinary prompts of the base, what is to stay as it is.
        wordings: prompts with a `{}` in which each concept is to hold.

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
            prompts = [wording.replace("{}", concept.token) for wording in wordings]
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
