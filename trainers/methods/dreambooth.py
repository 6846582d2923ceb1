"""DreamBooth: bind a subject into the weights of the base, whole or low-rank, without losing its class.

Source: Ruiz et al., arXiv:2208.12242, eq. 2: the denoising loss of the subject's pictures under "a photo of sks dog"
plus the prior term of the class under "a photo of dog". Three differences from the paper and the official scripts:
- The prior is by default the base's own prediction for the class word at the same noise, not pictures generated
  beforehand: nothing to make, to store or to go stale. `prior="pictures"` is the paper's.
- Min-SNR weights the subject's and the class's errors each by their own timesteps, also for v-prediction.
- The text encoder's word table is never trained: a new word has rows of its own (`pivotal`), old ones stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.errors import ConfigError
from pipelines.words import Composed
from trainers.method import Offer, Trainable
from trainers.settings import LowRankConfig, SubjectConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipelines.concepts.concept import Concept
    from pipelines.models.components import Components
    from trainers.data.batches import Batch
    from trainers.methods.parts.adapters import Trained


class DreamBoothConfig(SubjectConfig, LowRankConfig):
    """Settings of DreamBooth."""

    token: Composed = Field(min_length=1, max_length=60)
    """The identifier: a rare word of one token (`studio identifiers` lists some), or with `pivotal` a new word."""

    form: Literal["lora", "full"] = "lora"
    """Low-rank changes, small and quick, or all weights of the UNet."""

    pivotal: bool = False
    """Make the identifier a new word and learn its embedding together with the weights."""

    vectors: int = Field(default=1, ge=1, le=64)
    """Embedding vectors of the new word, with `pivotal`."""

    word_rate: float = Field(default=5.0, gt=0, le=1000)
    """Learning rate of the new word relative to that of the weights, with `pivotal`."""

    text_encoder: bool = False
    """Train the text encoders too: better likeness, sooner overdone."""

    text_rate: float = Field(default=1.0, gt=0, le=10)
    """Learning rate of the text encoders relative to that of the UNet."""

    @property
    def learns_words(self) -> bool:
        """Return whether the tokens are new words."""
        return self.pivotal

    @property
    def trains_weights(self) -> bool:
        """Return whether weights of the UNet themselves are trained, which then stay float32."""
        return self.form == "full"

    @property
    def trains_text(self) -> bool:
        """Return whether gradients go through the text encoders, which then stay float32."""
        return self.pivotal or self.text_encoder

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.form == "full" and self.dora:
            raise ValueError("dora belongs to low-rank changes; use it with form lora")
        return self


SD = {"batch": 1, "scale_lr": False, "max_grad_norm": 1.0, "flip": 0.0, "center_crop": True}
POCKET_STEPS = 600
POCKET = SD | {
    "batch": 8,
    "warmup": 10,
    "weight_decay": 0.0,
    "decay": 0.5,
    "rank": 16,
    "center_crop": False,
    # Its transformers alone bring the colours of a thing, not its drawing: that is in the convolutions.
    "targets": "all",
    "prior_every": 2,
    # Without them it is learned at the size of its pictures alone, and is a smear beside other things.
    "smaller_copies": 2,
    # Its text encoder is small and has never seen the identifier: frozen, it hardly tells it from nothing.
    "text_encoder": True,
    "prior_scope": "world",
}
KIND_OF_THING = "What kind of thing it is, in one word"


class DreamBooth:
    """Binds a subject into the weights, low-rank or whole."""

    name = "dreambooth"
    Settings = DreamBoothConfig
    offers = (
        Offer(
            "subject",
            "One particular thing, bound into the model's weights: best likeness, best beside others; "
            "twice the time, a file of about 1 MB.",
            {"token": ("Its new word", "<my-wolf>"), "class_word": (KIND_OF_THING, "fox")},
            {"pivotal": True},
        ),
    )

    def recipe(self, family: str, config: DreamBoothConfig) -> Mapping[str, Any]:
        """Return the official scripts' values for each form, their steps for each subject; for `pocket` short ones."""
        full, count = config.form == "full", len(config.subjects)
        if family == "pocket":
            return POCKET | {"learning_rate": 2e-4 if full else 2e-3, "steps": POCKET_STEPS * count}
        steps = count * (800 if config.prior == "pictures" else 400 if full else 500)
        if family == "sdxl" and not full:
            return SD | {"steps": steps, "learning_rate": 1e-4, "text_rate": 0.05, "weight_decay": 1e-4}
        return SD | {"steps": steps, "learning_rate": (2e-6 if config.text_encoder else 5e-6) if full else 1e-4}

    @contextmanager
    def prepare(
        self, components: Components, config: DreamBoothConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Make weights, and with `pivotal` a new word, trainable."""
        from trainers.data.batches import subject_templates
        from trainers.methods.parts.identifiers import check_identifier
        from trainers.methods.parts.subject_binding import bound, trainable_subjects, with_words

        templates = subject_templates(components.family.world, config.templates)
        with ExitStack() as stack:
            words: tuple[tuple[nn.Parameter, ...], ...] = ()
            if config.pivotal:
                components, words = stack.enter_context(with_words(components, config, config.vectors))
            else:
                for subject in config.subjects:
                    check_identifier(components, subject.token)
            trained = tuple(stack.enter_context(one) for one in _trained(components, config, generator))
            binding = bound(components, config, trained, words, frozen=not words and not config.text_encoder)
            rates = {name: config.text_rate for name in binding.parameters if name.startswith("text_encoder")}
            rates |= dict.fromkeys(binding.rows, config.word_rate)
            yield trainable_subjects(components, binding, templates, rates)

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the denoising loss of the subjects, and the prior term of their classes."""
        from trainers.methods.parts.subject_binding import subject_losses

        return subject_losses(trainable.components, trainable.state, batch, generator)

    def export(self, trainable: Trainable) -> Concept:
        """Return the changes, and the new words, as they are now."""
        from trainers.methods.parts.subject_binding import concepts_of

        return concepts_of(trainable.components, trainable.state, f"{self.name}-{trainable.state.config.form}")


def _trained(
    components: Components, config: DreamBoothConfig, generator: torch.Generator
) -> Iterator[AbstractContextManager[Trained]]:
    """Return the networks to train: the denoiser, and the text encoders if asked for."""
    from pipelines.concepts.weight_deltas import PARTS
    from trainers.methods.parts.adapters import BOXES, TEXT_TARGETS, denoiser_low_rank, layers, low_rank, whole

    family, denoiser = components.family, components.denoiser
    if config.text_encoder and not family.trained_text:
        raise ConfigError(
            f"The text encoders of {family.title} stay as they are: other programs read no change of them.",
            "Leave --text-encoder out; with --pivotal a new word is learned beside the weights.",
        )
    chosen = family.trained_text if config.text_encoder else ()
    encoders = [(PARTS[2 + which], components.text_encoders[which]) for which in chosen]
    if config.form == "lora":
        yield denoiser_low_rank(components, config, generator)
        for part, encoder in encoders:
            yield low_rank(part, encoder, layers(encoder, TEXT_TARGETS), config, generator)
    else:
        names = [name for name, _ in denoiser.named_parameters() if not any(box in name.split(".") for box in BOXES)]
        yield whole(family.network, denoiser, names)
        for part, encoder in encoders:
            yield whole(part, encoder, [n for n, _ in encoder.named_parameters() if "token_embedding" not in n])
