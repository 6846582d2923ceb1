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
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipelines.card import ConceptCard
from pipelines.changes import PARTS, Change
from pipelines.components import Components
from pipelines.concept import Concept
from pipelines.tokens import new_words, single_rows
from trainers.adapters import BOXES, TEXT_TARGETS, UNET_TARGETS, Trained, layers, low_rank, whole
from trainers.config import LowRankConfig, ObjectiveConfig, PriorConfig
from trainers.data import Batch, ordinary, subject_templates
from trainers.identifiers import check_identifier
from trainers.method import Trainable
from trainers.processes import Part
from trainers.terms import Conditioning, drawn, noise_levels, pixels_of, predicted, target, weighted_error


class DreamBoothConfig(PriorConfig, LowRankConfig, ObjectiveConfig):
    """Settings of DreamBooth."""

    token: str = Field(min_length=1, max_length=60)
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

    kind: Literal["subject", "object", "style"] = "subject"
    """What is learned."""

    wordings: Literal["auto", "object", "style", "pocket"] = "auto"
    """Prompt templates for pictures without captions; "auto" is "a photo of {}", and for `pocket` its own few."""

    @property
    def trigger(self) -> str:
        """What prompts say to call the subject: the new word, or the identifier with its class."""
        return self.token if self.pivotal else f"{self.token} {self.class_word}"

    @property
    def new_word(self) -> str | None:
        """The word it adds to the base, if any."""
        return self.token if self.pivotal else None

    @property
    def trains_weights(self) -> bool:
        """Whether weights of the UNet themselves are trained, which then stay float32."""
        return self.form == "full"

    @property
    def trains_text(self) -> bool:
        """Whether gradients go through the text encoders, which then stay float32."""
        return self.pivotal or self.text_encoder

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.form == "full" and self.dora:
            raise ValueError("dora belongs to low-rank changes; use it with form lora")
        return self


SD = {"batch": 1, "scale_lr": False, "max_grad_norm": 1.0, "flip": 0.0, "center_crop": True}
POCKET = SD | {
    "batch": 8,
    "warmup": 10,
    "weight_decay": 0.0,
    "steps": 150,
    "rank": 8,
    "center_crop": False,
    "targets": "transformer",
    # Its text encoder is small and has never seen the identifier: frozen, it hardly tells it from nothing.
    "text_encoder": True,
    "prior_scope": "world",
}


@dataclass(frozen=True)
class _State:
    config: DreamBoothConfig
    levels: Tensor
    conditioning: Conditioning
    trained: tuple[Trained, ...]
    words: tuple[nn.Parameter, ...]


class DreamBooth:
    """Binds a subject into the weights, low-rank or whole."""

    name: ClassVar[str] = "dreambooth"
    Config: ClassVar[Any] = DreamBoothConfig

    def recipe(self, family: str, config: DreamBoothConfig) -> Mapping[str, Any]:
        """The official scripts' values for each form; for `pocket` short ones."""
        full = config.form == "full"
        if family == "pocket":
            return POCKET | {"learning_rate": 2e-4 if full else 1e-3}
        steps = 800 if config.prior == "pictures" else 400 if full else 500
        if family == "sdxl" and not full:
            return SD | {"steps": steps, "learning_rate": 1e-4, "text_rate": 0.05, "weight_decay": 1e-4}
        return SD | {"steps": steps, "learning_rate": (2e-6 if config.text_encoder else 5e-6) if full else 1e-4}

    @contextmanager
    def prepare(
        self, components: Components, config: DreamBoothConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Make weights, and with `pivotal` a new word, trainable."""
        levels = noise_levels(components.scheduler_config, components.device)
        wordings = subject_templates(components.family, config.wordings)
        with ExitStack() as stack:
            words: tuple[nn.Parameter, ...] = ()
            if config.pivotal:
                starts = tuple(
                    row.expand(config.vectors, -1) for row in single_rows(components, config.class_word.split()[-1])
                )
                added = stack.enter_context(new_words(components, config.token, starts))
                components, words = added.components, added.rows
            else:
                check_identifier(components, config.token)
            trained = tuple(stack.enter_context(one) for one in _trained(components, config, generator))
            named = {f"rows_{i}": row for i, row in enumerate(words)}
            parameters = {name: value for one in trained for name, value in one.parameters.items()} | named
            rates = {name: config.text_rate for name in parameters if name.startswith("text_encoder")}
            rates |= dict.fromkeys(named, config.word_rate)
            conditioning = Conditioning(components, frozen=not words and not config.text_encoder)
            state = _State(config, levels, conditioning, trained, words)
            yield Trainable(components, parameters, wordings, state, rates=rates)

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The denoising loss of the subject, and the prior term of its class."""
        return subject_losses(trainable.components, trainable.state, batch, generator)

    def export(self, trainable: Trainable) -> Concept:
        """The changes, and the new word, as they are now."""
        state: _State = trainable.state
        config = state.config
        changes: dict[str, Change] = {key: change for one in state.trained for key, change in one.changes().items()}
        card = ConceptCard(
            token=config.trigger,
            kind=config.kind,
            method=f"{self.name}-{config.form}",
            family=trainable.components.family,
            base=trainable.components.name,
            vectors=config.vectors if config.pivotal else 0,
            init=config.class_word,
        )
        return Concept(card, tuple(row.detach().cpu().float().clone() for row in state.words), changes)


def _trained(
    components: Components, config: DreamBoothConfig, generator: torch.Generator
) -> Iterator[AbstractContextManager[Trained]]:
    """What is to be trained: the UNet, and the text encoders if asked for."""
    unet = components.unet
    encoders = zip(PARTS[1:], components.text_encoders, strict=False) if config.text_encoder else ()
    if config.form == "lora":
        yield low_rank("unet", unet, layers(unet, UNET_TARGETS[config.targets]), config, generator)
        for part, encoder in encoders:
            yield low_rank(part, encoder, layers(encoder, TEXT_TARGETS), config, generator)
    else:
        names = [name for name, _ in unet.named_parameters() if not any(box in name.split(".") for box in BOXES)]
        yield whole("unet", unet, names)
        for part, encoder in encoders:
            yield whole(part, encoder, [n for n, _ in encoder.named_parameters() if "token_embedding" not in n])


def subject_losses(components: Components, state: Any, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Terms of a subject and of its class; the two are predicted in one call of the UNet.

    Args:
        components: the base with what is trained in it.
        state: has config (an objective and a prior), levels, conditioning, trained.
        batch: the subject's pictures, with the class's in `prior` where there are any.
        generator: source of chance.
    """
    config, levels = state.config, state.levels
    noise, timesteps = drawn(batch, config, len(levels), generator)
    latents, captions, sizes, count = batch.latents, batch.captions, batch.sizes, len(batch.latents)
    taught: Tensor | None = None
    if batch.prior is not None:
        prior_noise, prior_timesteps = drawn(batch.prior, config, len(levels), generator)
        noise, timesteps = torch.cat((noise, prior_noise)), torch.cat((timesteps, prior_timesteps))
        latents, sizes = torch.cat((latents, batch.prior.latents)), torch.cat((sizes, batch.prior.sizes))
        captions = captions + batch.prior.captions
    elif config.prior == "model":
        plain = [caption.replace(config.trigger, config.class_word) for caption in captions]
        if config.prior_scope == "world":
            plain = _every_second(plain, ordinary(components.family), generator, batch.part)
        taught = _base_prediction(components, state, batch, (noise, timesteps), plain)
        noise, timesteps = torch.cat((noise, noise)), torch.cat((timesteps, timesteps))
        latents, sizes, captions = torch.cat((latents, latents)), torch.cat((sizes, sizes)), captions + plain
    arguments = state.conditioning(captions, sizes, pixels_of(components, latents))
    guess = predicted(components, latents, timesteps, noise, levels, arguments)
    kind = str(components.scheduler_config.get("prediction_type", "epsilon"))
    wanted = target(kind, latents, noise, levels[timesteps])
    if taught is not None:
        wanted = torch.cat((wanted[:count], taught))
    level = levels[timesteps]
    own = weighted_error(components, guess[:count], wanted[:count], level[:count], config, batch.masks)
    terms = {"denoise": own.mean()}
    if len(latents) > count:
        other = weighted_error(components, guess[count:], wanted[count:], level[count:], config)
        terms["prior"] = config.prior_weight * other.mean()
    return terms


def _every_second(captions: list[str], others: tuple[str, ...], generator: torch.Generator, part: Part) -> list[str]:
    """The captions, each replaced by one of others with a chance of one half."""
    swapped = (part.of(lambda n: torch.rand(n, generator=generator), len(captions)) < 0.5).tolist()
    chosen = part.of(lambda n: torch.randint(len(others), (n,), generator=generator), len(captions)).tolist()
    return [others[k] if swap else own for own, swap, k in zip(captions, swapped, chosen, strict=True)]


@torch.no_grad()
def _base_prediction(
    components: Components, state: Any, batch: Batch, draw: tuple[Tensor, Tensor], captions: list[str]
) -> Tensor:
    """What the base itself predicts, all that was learned switched off."""
    noise, timesteps = draw
    with ExitStack() as stack:
        for one in state.trained:
            stack.enter_context(one.off())
        arguments = state.conditioning.anew(captions, batch.sizes, pixels_of(components, batch.latents))
        return predicted(components, batch.latents, timesteps, noise, state.levels, arguments)
