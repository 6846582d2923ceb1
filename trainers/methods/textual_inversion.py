"""Textual Inversion: learn a word for what example pictures show, everything else frozen.

Source: Gal et al., arXiv:2208.01618: the embedding v of a new word minimises the denoising loss of the pictures under
prompts with that word (eq. 2). The update is that of the official diffusers script: AdamW on the rows, no clipping,
weight decay on the rows too. Differences, none of which changes a figure: only the new rows are
parameters, instead of the whole table restored after each step, and the autoencoder's posteriors are computed once and
sampled each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipelines.concepts.card import ConceptCard
from trainers.method import Offer, Trainable
from trainers.settings import ObjectiveConfig, TokenConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipelines.concepts.concept import Concept
    from pipelines.models.components import Components
    from pipelines.models.noise import NoiseProcess
    from trainers.data.batches import Batch


class TextualInversionConfig(TokenConfig, ObjectiveConfig):
    """Settings of Textual Inversion."""

    kind: Literal["object", "style"] = "object"
    """Kind of concept that the pictures share; decides the prompt templates."""

    templates: Literal["auto", "object", "style", "pocket"] = "auto"
    """Prompt templates; "auto" takes those of `kind`, and for `pocket` the few it understands."""


@dataclass(frozen=True)
class WordState:
    """Parameters and settings of a word for its losses and export.

    Attributes:
        config: the word and its objective.
        process: noise process of the base.
    """

    config: TextualInversionConfig
    process: NoiseProcess


POCKET = {
    "steps": 400,
    "decay": 0.5,
    "batch": 8,
    "warmup": 20,
    "learning_rate": 6e-3,
    "scale_lr": False,
    "weight_decay": 0.0,
    "flip": 0.0,
}
NEAREST = "The nearest word the model knows"


class TextualInversion:
    """Learns the embedding rows of a new word."""

    name = "textual-inversion"
    Settings = TextualInversionConfig
    offers = (
        Offer(
            "object",
            "A thing, learned as one word: 3 to 5 pictures, quickest, a file of a few KB; "
            "the model itself stays as it is.",
            {"token": ("Its new word", "<my-wolf>"), "init": (NEAREST, "fox")},
            {"kind": "object"},
        ),
        Offer(
            "style",
            "How pictures look, learned as one word: 5 to 20 pictures of different things in one style; "
            "as quick and small as an object.",
            {"token": ("Its new word", "<my-style>"), "init": (NEAREST, "flat")},
            {"kind": "style"},
        ),
    )

    def recipe(self, family: str, config: TextualInversionConfig) -> Mapping[str, Any]:
        """Return for `pocket` a short one with a high rate."""
        return POCKET if family == "pocket" else {}

    @contextmanager
    def prepare(
        self, components: Components, config: TextualInversionConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Add the word, all its vectors starting as the initializer."""
        from pipelines.concepts.token_embeddings import new_words, single_rows

        starts = tuple(row.expand(config.vectors, -1) for row in single_rows(components, config.init))
        with new_words(components, config.token, starts) as words:
            yield trainable_word(words.components, words.rows, config)

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the denoising loss at timesteps drawn evenly."""
        from trainers.losses import conditioning, denoising_errors, drawn, pixels_of

        components, state = trainable.components, trainable.state
        draw = drawn(batch, state.config, state.process, generator)
        size = pixels_of(components, batch.latents)
        told = conditioning(components, batch.captions, batch.frames, size)
        errors = denoising_errors(components, batch, draw, state.process, told, state.config)
        return {"denoise": errors.mean()}

    def export(self, trainable: Trainable) -> Concept:
        """Return the rows as they are now."""
        from pipelines.concepts.concept import Concept

        rows = tuple(parameter.detach().cpu().float().clone() for parameter in trainable.parameters.values())
        return Concept(word_card(trainable, self.name), rows)


def trainable_word(components: Components, rows: Sequence[nn.Parameter], config: TextualInversionConfig) -> Trainable:
    """Return a base with a new word as what is trained, with figures of how far its rows have come.

    Args:
        components: the base with the word in it.
        rows: (..., dim) of the word for each text encoder.
        config: the word, its kind and its prompt templates.
    """
    from trainers.data.batches import prompt_templates
    from trainers.losses import process_of

    own = "pocket" if components.family.world == "pocket" else config.kind
    templates = prompt_templates(own if config.templates == "auto" else config.templates)
    state = WordState(config, process_of(components, config))
    named = {f"rows_{i}": row for i, row in enumerate(rows)}
    return Trainable(components, named, templates, state, _figures(rows))


def _figures(rows: Sequence[nn.Parameter]) -> Callable[[], dict[str, float]]:
    starts = [row.detach().clone() for row in rows]

    def figures() -> dict[str, float]:
        moved = [(row - start).norm(dim=-1).mean() for row, start in zip(rows, starts, strict=True)]
        norms = [row.norm(dim=-1).mean() for row in rows]
        return {
            name: sum(float(value.detach()) for value in values) / len(values)
            for name, values in (("displacement", moved), ("norm", norms))
        }

    return figures


def word_card(trainable: Trainable, method: str) -> ConceptCard:
    """Return the card of the word of `trainable_word`."""
    config: TextualInversionConfig = trainable.state.config
    return ConceptCard(
        token=config.token,
        kind=config.kind,
        method=method,
        family=trainable.components.family.name,
        base=trainable.components.name,
        vectors=config.vectors,
        init=config.init,
    )
