"""Textual Inversion: learn a word for what example pictures show, everything else frozen.

Source: Gal et al., arXiv:2208.01618: the embedding v of a new word minimises the denoising loss of the pictures under
prompts with that word (eq. 2). Several words of several sets of pictures are learned at once, each as in a run of its
own, through one frozen model in one batch (`many`). The update is that of the official diffusers script: AdamW on the
rows, no clipping, weight decay on the rows too. Differences, none of which changes a figure: only the new rows are
parameters, instead of the whole table restored after each step, and the autoencoder's posteriors are computed once and
sampled each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import model_validator

from pipelines.concepts.card import ConceptCard
from pipelines.request.settings import FileOf
from trainers.method import Offer, Trainable
from trainers.settings import ObjectiveConfig, TokenConfig
from trainers.several import Further, further, require_further

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipelines.concepts.concept import Concept
    from pipelines.concepts.token_embeddings import NewWords
    from pipelines.models.components import Components
    from trainers.data.batches import Batch
    from trainers.methods.parts.many_words import WordBatches


class TextualInversionConfig(TokenConfig, ObjectiveConfig):
    """Settings of Textual Inversion."""

    kind: Literal["object", "style"] = "object"
    """Kind of concept that the pictures share; decides the prompt templates."""

    templates: Literal["auto", "object", "style", "pocket"] = "auto"
    """Prompt templates; "auto" takes those of `kind`, and for `pocket` the few it understands."""

    many: tuple[Annotated[str, FileOf("dataset", after=2)], ...] = ()
    """A further word to learn in the same run, as DIR:TOKEN:INIT, for example my-cat:<my-cat>:cat. May be given several
    times. Each is learned as in a run of its own, in one batch with the others; one that diverges stops alone."""

    @property
    def words(self) -> tuple[Further, ...]:
        """Return the words of the run, its own first, without a folder."""
        return (Further(Path(), self.token, self.init), *further(self.many))

    @property
    def triggers(self) -> tuple[str, ...]:
        """Return the new words."""
        return tuple(word.token for word in self.words)

    def folders(self, images: Path | None) -> tuple[tuple[Path | None, str | None], ...]:
        """Return the folder of each word, with the word if there are several."""
        if not self.many:
            return ((images, None),)
        return ((images, self.token), *((word.images, word.token) for word in further(self.many)))

    @property
    def batches_apart(self) -> bool:
        """Return whether there are several words."""
        return bool(self.many)

    @model_validator(mode="after")
    def _words_differ(self) -> Self:
        require_further("many", self.many, "DIR:TOKEN:INIT", "words", self.token)
        return self


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
        """Add the words, all vectors of each starting as its initializer."""
        with ExitStack() as stack:
            listed: list[tuple[nn.Parameter, ...]] = []
            for word in config.words:
                added = stack.enter_context(self.added(components, word.token, word.word, config.vectors))
                components = added.components
                listed.append(added.rows)
            yield trainable_words(components, listed, config)

    def added(self, components: Components, token: str, init: str, vectors: int) -> AbstractContextManager[NewWords]:
        """Add a word to the base inside the `with`, all its vectors starting as the initializer."""
        from pipelines.concepts.token_embeddings import new_words, single_rows

        starts = tuple(row.expand(vectors, -1) for row in single_rows(components, init))
        return new_words(components, token, starts)

    def losses(self, trainable: Trainable, batch: Batch | WordBatches, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the denoising loss at timesteps drawn evenly; of several words one for each."""
        from trainers.losses import conditioning, denoising_errors, drawn, pixels_of
        from trainers.methods.parts.many_words import WordBatches, losses_of_words

        if isinstance(batch, WordBatches):
            return losses_of_words(trainable, batch)
        components, state = trainable.components, trainable.state
        draw = drawn(batch, state.config, state.process, generator)
        size = pixels_of(components, batch.latents)
        told = conditioning(components, batch.captions, batch.frames, size)
        errors = denoising_errors(components, batch, draw, state.process, told, state.config)
        return {"denoise": errors.mean()}

    def export(self, trainable: Trainable) -> Concept:
        """Return the rows as they are now; those of further words are partners of the first."""
        listed = [self.concept(trainable, place) for place in range(len(trainable.state.words))]
        return replace(listed[0], partners=tuple(listed[1:]))

    def concept(self, trainable: Trainable, place: int) -> Concept:
        """Return a word of the run as it is now."""
        from pipelines.concepts.concept import Concept

        return Concept(word_card(trainable, self.name, place), rows_of(trainable, place))


def trainable_word(components: Components, rows: Sequence[nn.Parameter], config: TextualInversionConfig) -> Trainable:
    """Return a base with a new word as what is trained, with figures of how far its rows have come.

    Args:
        components: the base with the word in it.
        rows: (..., dim) of the word for each text encoder.
        config: the word, its kind and its prompt templates.
    """
    return trainable_words(components, [rows], config)


def trainable_words(
    components: Components, words: Sequence[Sequence[nn.Parameter]], config: TextualInversionConfig
) -> Trainable:
    """Return a base with new words as what is trained; arguments are those of `trainable_word`, rows of each word."""
    from trainers.data.batches import prompt_templates
    from trainers.losses import process_of
    from trainers.methods.parts.many_words import WordState, with_many

    own = "pocket" if components.family.world == "pocket" else config.kind
    templates = prompt_templates(own if config.templates == "auto" else config.templates)
    rows = [row for word in words for row in word]
    state = WordState(config, process_of(components, config), tuple(tuple(word) for word in words))
    named = {f"rows_{i}": row for i, row in enumerate(rows)}
    trainable = Trainable(components, named, templates, state, _figures(rows))
    return with_many(trainable) if config.many else trainable


def rows_of(trainable: Trainable, place: int) -> tuple[Tensor, ...]:
    """Return copies of the rows of a word for each text encoder, on the CPU in float32."""
    return tuple(row.detach().cpu().float().clone() for row in trainable.state.words[place])


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


def word_card(trainable: Trainable, method: str, place: int = 0) -> ConceptCard:
    """Return the card of a word of `trainable_words`."""
    config: TextualInversionConfig = trainable.state.config
    word = config.words[place]
    return ConceptCard(
        token=word.token,
        kind=config.kind,
        method=method,
        family=trainable.components.family.name,
        base=trainable.components.name,
        vectors=config.vectors,
        init=word.word,
    )
