"""P+: learn a word by rows of its own for each cross-attention layer, everything else frozen.

Source: Voynov et al., arXiv:2303.09522 (extended Textual Inversion, 3.3): the loss of Textual Inversion is minimised
over one embedding for each cross-attention layer. Coarse layers come to hold shape, fine ones colour and texture, so
that it is learned in fewer steps and can be said in more prompts. Two differences: the word may have several vectors in
each layer, and its rows are kept for every cross-attention layer the base has, not only for the 16 of Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from trainers.method import Offer, Trainable
from trainers.methods.textual_inversion import (
    NEAREST,
    POCKET,
    TextualInversion,
    TextualInversionConfig,
    rows_of,
    word_card,
)

if TYPE_CHECKING:
    from pipelines.concepts.concept import Concept
    from pipelines.concepts.token_embeddings import NewWords
    from pipelines.models.components import Components

PAPER = {"steps": 500, "batch": 8, "learning_rate": 5e-3, "scale_lr": False}


class PPlusConfig(TextualInversionConfig):
    """Settings of P+."""


class PPlus(TextualInversion):
    """Learns the embedding rows of a new word for each cross-attention layer."""

    name = "p-plus"
    Settings = PPlusConfig
    offers = (
        Offer(
            "object, layer by layer",
            "A thing, learned as one word that coarse and fine layers of the model read apart: as small as an object "
            "and sooner learned, but other programs cannot load it.",
            {"token": ("Its new word", "<my-wolf>"), "init": (NEAREST, "fox")},
        ),
    )

    def recipe(self, family: str, config: TextualInversionConfig) -> Mapping[str, Any]:
        """Return the paper's values; for `pocket` those of Textual Inversion."""
        return POCKET if family == "pocket" else PAPER

    def added(self, components: Components, token: str, init: str, vectors: int) -> AbstractContextManager[NewWords]:
        """Add a word to the base inside the `with`, all its rows in all layers starting as the initializer."""
        from pipelines.concepts.parts.layer_rows import cross_attention, layered_word
        from pipelines.concepts.token_embeddings import single_rows

        layers = len(cross_attention(components))
        starts = [row.expand(layers, vectors, -1) for row in single_rows(components, init)]
        return layered_word(components, token, starts)

    def concept(self, trainable: Trainable, place: int) -> Concept:
        """Return a word of the run as it is now, in all layers."""
        from pipelines.concepts.concept import Concept
        from pipelines.concepts.parts.layer_rows import LayerRows

        vectors = trainable.state.config.vectors
        rows = tuple(row.unflatten(0, (-1, vectors)) for row in rows_of(trainable, place))
        return Concept(word_card(trainable, self.name, place), parts=[LayerRows(rows)])
