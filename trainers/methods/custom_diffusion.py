"""Custom Diffusion: a new word, and the keys and values of cross-attention that read it.

Source: Kumari et al., arXiv:2212.04488, 3.2: only W_k and W_v of each cross-attention layer and the row of one new word
are trained, with prior preservation. Several concepts are learned jointly in one run (3.3), each picture under its own
word with the prior of its own class, or learned apart and merged in closed form (eq. 6), see `parts.merging`.
Differences from the authors' code: the masked error is a mean, so the prior weight means what it says (theirs makes it
a quarter); rows of other words are not decayed; the new word
stands for the class word instead of before it; pictures are not pasted at random scales unless the person does so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines.words import Composed
from trainers.method import Offer, Trainable
from trainers.settings import SubjectConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipelines.concepts.concept import Concept
    from pipelines.models.components import Components
    from trainers.data.batches import Batch


class CustomDiffusionConfig(SubjectConfig):
    """Settings of Custom Diffusion."""

    token: Composed = Field(min_length=1, max_length=60)
    """The new word, for example `<my-fox>`."""

    word_rate: float = Field(default=1.0, gt=0, le=1000)
    """Learning rate of the new word relative to that of the weights."""

    @property
    def trains_weights(self) -> bool:
        """Return whether weights of the UNet themselves are trained, which then stay float32."""
        return True

    @property
    def trains_text(self) -> bool:
        """Return whether gradients go through the text encoders, which then stay float32."""
        return True


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

    name = "custom-diffusion"
    Settings = CustomDiffusionConfig
    offers = (
        Offer(
            "subject to merge",
            "One thing as a new word, with the few weights that read words: half the time of a subject and less "
            "likeness, a file of 400 KB; several that were learned apart can be merged.",
            {
                "token": ("Its new word", "<my-wolf>"),
                "class_word": ("What kind of thing it is, in one word", "fox"),
            },
        ),
    )

    def recipe(self, family: str, config: CustomDiffusionConfig) -> Mapping[str, Any]:
        """Return the authors' values on one GPU, with their steps for each subject; for `pocket` short ones."""
        values = POCKET if family == "pocket" else SD
        return values | {"steps": values["steps"] * len(config.subjects)}

    @contextmanager
    def prepare(
        self, components: Components, config: CustomDiffusionConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Add the word, starting as the class word, and make keys and values trainable."""
        from trainers.data.batches import subject_templates
        from trainers.methods.parts.adapters import whole
        from trainers.methods.parts.merging import readers
        from trainers.methods.parts.subject_binding import bound, trainable_subjects, with_words

        templates = subject_templates(components.family.world, config.templates)
        with (
            with_words(components, config) as (taught, words),
            whole("unet", components.unet, readers(components)) as trained,
        ):
            binding = bound(taught, config, [trained], words, frozen=False)
            rates = dict.fromkeys(binding.rows, config.word_rate)
            yield trainable_subjects(taught, binding, templates, rates)

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the denoising loss of the subjects, and the prior term of their classes."""
        from trainers.methods.parts.subject_binding import subject_losses

        return subject_losses(trainable.components, trainable.state, batch, generator)

    def export(self, trainable: Trainable) -> Concept:
        """Return the words and the changes as they are now."""
        from trainers.methods.parts.subject_binding import concepts_of

        return concepts_of(trainable.components, trainable.state, self.name)
