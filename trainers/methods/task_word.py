"""A word for a task: Textual Inversion on grids, so that what example pairs show can be said in one word.

The rows of the new word minimise the denoising loss of the answer's cell (Gal et al., arXiv:2208.01618, eq. 2, under an
inpainting UNet). In a share of the grids the example is left blank, so that the word must tell alone what is to be
done. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pipelines.concepts.card import ConceptCard
from trainers.method import Draw, Offer, Trainable
from trainers.settings import DataConfig, TokenConfig, TrainConfig, require_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipelines.concepts.concept import Concept
    from pipelines.events import Preview
    from pipelines.models.components import Components
    from pipelines.models.noise import NoiseProcess
    from trainers.data.folders import Example, Reading

FEWEST = 2
"""Pairs that a word is learned from: an example and a query."""

RECIPE = {
    "steps": 200,
    "batch": 4,
    "learning_rate": 6e-3,
    "scale_lr": False,
    "warmup": 20,
    "decay": 0.3,
    "weight_decay": 0.0,
}


class TaskWordConfig(TokenConfig):
    """Settings of a word that is learned from pairs of pictures."""

    unused: ClassVar[frozenset[str]] = frozenset(
        {"center_crop", "flip", "buckets", "smaller_copies", "cache", "candidates", "preview"}
    )
    encodes_once: ClassVar[bool] = False

    init: str = Field(default="picture", min_length=1)
    """The known word it starts from."""

    blank: float = Field(default=0.7, ge=0, le=1)
    """Share of grids whose example is left out, so that the word must tell alone what is to be done."""

    def read(self, folder: Path | None) -> Reading:
        """Read pairs: fox.before.png with fox.after.png, or before/fox.png with after/fox.png."""
        from trainers.data.picture_pairs import read_pairs

        return read_pairs(require_folder(folder))


@dataclass
class TaskState:
    """A word for a task in training.

    Attributes:
        config: settings.
        process: noise process of the base.
        shown: (1, 2, 2, 3, h, w), an example and a query to draw previews of; made with the batches.
    """

    config: TaskWordConfig
    process: NoiseProcess
    shown: Tensor | None = None


class TaskWord:
    """Learns a word for what pairs of pictures show, so that it can be asked for without an example."""

    name = "task-word"
    Settings = TaskWordConfig
    offers = (
        Offer(
            "change",
            "What happens between two pictures, learned as one word: two pairs or more, before and after, in a zip; "
            "the model needs an inpainting UNet. Ask for it as a hint, By example.",
            {"token": ("Its new word", "<my-change>"), "init": ("The nearest word the model knows", "picture")},
            hint=True,
        ),
    )

    def recipe(self, family: str, config: TaskWordConfig) -> Mapping[str, Any]:
        """Return a short training with a high rate."""
        return RECIPE

    @contextmanager
    def prepare(
        self, components: Components, config: TaskWordConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Add the word to the base with its inpainting UNet, all its vectors starting as the initializer."""
        from pipelines.concepts.token_embeddings import new_words, single_rows
        from pipelines.models.inpainting_unet import inpainting_components

        # The word is one of the base, whichever UNet it is used with.
        inside = inpainting_components(replace(components, identity=components.fingerprint()))
        starts = tuple(row.expand(config.vectors, -1) for row in single_rows(inside, config.init))
        with new_words(inside, config.token, starts) as words:
            state = TaskState(config, words.components.family.process(words.components))
            yield Trainable(
                words.components,
                {f"rows_{i}": row for i, row in enumerate(words.rows)},
                (),
                state,
                examine=self.examine,
                batches=lambda *given: self.batches(words.components, state, *given),
                preview=lambda step: preview(words.components, state, step),
                sample=lambda examples, count: examples[: max(count, FEWEST)],
            )

    def examine(self, examples: Sequence[Example]) -> None:
        """Raise `DataError` if there are too few pairs, or pictures that are none."""
        from trainers.base_models.inpainting_data import require_pairs

        require_pairs(examples)

    def batches(
        self,
        components: Components,
        state: TaskState,
        examples: Sequence[Example],
        train: TrainConfig,
        data: DataConfig,
        over: Callable[[], float],
    ) -> Draw:
        """Return a function for the cells (B, 2, 2, 3, h, w) of a batch."""
        from trainers.methods.parts.grid_batches import cells_of, drawn

        pairs = cells_of(examples, data.resolution or components.defaults.size)
        state.shown = pairs[:FEWEST][None]
        return lambda index, generator: drawn(pairs, train.batch, state.config.blank, generator)

    def losses(self, trainable: Trainable, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the squared error of the prediction in the answer's cell, under the word alone."""
        from trainers.methods.parts.grid_batches import answer_error

        state: TaskState = trainable.state
        return {"denoise": answer_error(trainable.components, state.process, batch, state.config.token, generator)}

    def export(self, trainable: Trainable) -> Concept:
        """Return the rows as they are now."""
        from pipelines.concepts.concept import Concept

        config: TaskWordConfig = trainable.state.config
        card = ConceptCard(
            token=config.token,
            kind="style",
            method=self.name,
            family=trainable.components.family.name,
            base=trainable.components.name,
            vectors=config.vectors,
            init=config.init,
        )
        return Concept(card, tuple(row.detach().cpu().float().clone() for row in trainable.parameters.values()))


def preview(components: Components, state: TaskState, step: int) -> Preview:
    """Return the answer to the first query under the word as it is now."""
    from pipelines.events import Preview
    from pipelines.incontext import paint
    from pipelines.pictures.tensors import to_pictures
    from pipelines.request.request import Request

    assert state.shown is not None, "made with the batches"
    request = Request(prompt=state.config.token, steps=15).resolved(components.defaults)
    painted = paint(components, state.shown, request)
    return Preview(step, to_pictures(painted.answers)[0], state.config.token)
