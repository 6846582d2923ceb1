"""Textual Inversion: learn a word for what example pictures show, everything else frozen.

Source: Gal et al., arXiv:2208.01618: the embedding v of a new word minimises the denoising loss of the pictures under
prompts with that word (eq. 2). The update is that of the official diffusers script: AdamW on the rows, no clipping,
weight decay on the rows too. Differences, none of which changes a figure: only the new rows are
parameters, instead of the whole table restored after each step, and the autoencoder's posteriors are computed once and
sampled each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.models.components import Components
from pipelines.models.noise import NoiseProcess
from trainers.data.batches import Batch, prompt_templates
from trainers.losses import conditioning, denoising_errors, drawn, pixels_of, process_of
from trainers.method import Trainable
from trainers.method_settings import TextualInversionConfig


@dataclass(frozen=True)
class _State:
    config: TextualInversionConfig
    starts: tuple[Tensor, ...]
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


class TextualInversion:
    """Learns the embedding rows of a new word."""

    name: ClassVar[str] = "textual-inversion"
    Config: ClassVar[Any] = TextualInversionConfig

    def recipe(self, family: str, config: TextualInversionConfig) -> Mapping[str, Any]:
        """For `pocket` a short one with a high rate."""
        return POCKET if family == "pocket" else {}

    @contextmanager
    def prepare(
        self, components: Components, config: TextualInversionConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Add the word, all its vectors starting as the initializer."""
        starts = tuple(row.expand(config.vectors, -1) for row in single_rows(components, config.init))
        own = "pocket" if components.family.world == "pocket" else config.kind
        wordings = prompt_templates(own if config.wordings == "auto" else config.wordings)
        process = process_of(components, config)
        with new_words(components, config.token, starts) as words:

            def figures() -> dict[str, float]:
                moved = torch.stack(
                    [(row - start).norm(dim=-1).mean() for row, start in zip(words.rows, starts, strict=True)]
                )
                norm = torch.stack([row.norm(dim=-1).mean() for row in words.rows])
                return {"displacement": float(moved.detach().mean()), "norm": float(norm.detach().mean())}

            named = {f"rows_{i}": row for i, row in enumerate(words.rows)}
            yield Trainable(words.components, named, wordings, _State(config, starts, process), figures)

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The denoising loss at timesteps drawn evenly."""
        components, state = trainable.components, trainable.state
        draw = drawn(batch, state.config, state.process, generator)
        size = pixels_of(components, batch.latents)
        told = conditioning(components, batch.captions, batch.frames, size)
        errors = denoising_errors(components, batch, draw, state.process, told, state.config)
        return {"denoise": errors.mean()}

    def export(self, trainable: Trainable) -> Concept:
        """The rows as they are now."""
        config = trainable.state.config
        rows = tuple(parameter.detach().cpu().float().clone() for parameter in trainable.parameters.values())
        card = ConceptCard(
            token=config.token,
            kind=config.kind,
            method=self.name,
            family=trainable.components.family.name,
            base=trainable.components.name,
            vectors=config.vectors,
            init=config.init,
        )
        return Concept(card, rows)
