"""ReVersion: learn a word for the relation between two things from pictures of pairs that share it.

Source: Huang et al., arXiv:2303.13495. The denoising loss of the pictures under captions such as "a cat <r> a box",
with two additions: the word is steered toward prepositions and away from the captions' nouns (`steering_loss`), and
timesteps are drawn toward the noisy end, where layout is decided (`focal_timesteps`). Both are on by default; the
authors' script has them off. Differences from the authors' code:
- All captions of a batch give negatives and the row itself is read; theirs takes the row from the first caption, and is
  not a number if that one was cut.
- Padding is no negative; theirs makes some seventy of each caption in SD 2.x. Punctuation is none either.
- The batch's positives are drawn once, `positives` a prompt as in theirs, from prepositions of one token.
Extensions, all off by default: several vectors, a pull of the row's length to that of ordinary words, masks of the two
things, and low-rank changes of the UNet for relations that the base cannot draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines.concepts.card import ConceptCard
from pipelines.errors import DataError
from trainers.data.named_pairs import Pair, pair_captions
from trainers.method import Offer, Trainable
from trainers.methods.textual_inversion import NEAREST, POCKET
from trainers.settings import LowRankConfig, ObjectiveConfig, TokenConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipelines.concepts.concept import Concept
    from pipelines.models.components import Components
    from trainers.data.batches import Batch
    from trainers.methods.parts.adapters import Trained


class ReVersionConfig(TokenConfig, LowRankConfig, ObjectiveConfig):
    """Settings of ReVersion."""

    kind: Literal["relation"] = "relation"
    """Kind of concept to learn."""

    init: str = Field(default="and", min_length=1)
    """An existing word of one token to start from."""

    left: str = ""
    """Name of the first thing, where it is the same in all pictures; else say it for each in pairs.json."""

    right: str = ""
    """Name of the second thing."""

    steer: float = Field(default=0.01, ge=0, le=10)
    """Weight of the steering loss; 0 switches it off."""

    positives: int = Field(default=4, ge=1, le=64)
    """Prepositions drawn for each picture of a step."""

    temperature: float = Field(default=0.07, gt=0, le=10)
    """Temperature of the steering loss."""

    basis: tuple[str, ...] = ()
    """Prepositions to steer toward; those of the paper that the base knows by default."""

    focal: float = Field(default=0.5, ge=0, le=1)
    """Preference for timesteps at the noisy end; 0 for none."""

    norm_pull: float = Field(default=0.0, ge=0, le=10)
    """Weight of a pull of the word's length to the median length of prepositions; 0 for none."""

    lora: bool = False
    """Learn low-rank changes of the UNet beside the word, for relations that the base cannot draw."""

    word_rate: float = Field(default=5.0, gt=0, le=1000)
    """Learning rate of the word relative to that of the weights, with `lora`."""

    keep: float = Field(default=1.0, ge=0, le=100)
    """With `lora`, weight of holding the base's own predictions for ordinary captions fast."""


SHORT = POCKET | {"steps": 200, "decay": 0.0}
"""For `pocket`."""
PAPER = {"steps": 3000, "batch": 8, "learning_rate": 2.5e-4, "flip": 0.0}


class ReVersion:
    """Learns a word for the relation between two things."""

    name = "reversion"
    Settings = ReVersionConfig
    offers = (
        Offer(
            "relation",
            "What holds between two things, for any other two: ten pictures of pairs that share nothing else; "
            "two to three times as long.",
            {"token": ("Its new word", "<relation>"), "init": (NEAREST, "on")},
            pairs=True,
        ),
    )

    def recipe(self, family: str, config: ReVersionConfig) -> Mapping[str, Any]:
        """Return the paper's values (2 pictures accumulated 4 times are a batch of 8 here); for `pocket` short ones.

        `pocket` reads four relations and "and" and can draw no other from a word alone, so `lora` is on there unless it
        is switched off.
        """
        if family != "pocket":
            return PAPER | ({"learning_rate": 1e-4, "scale_lr": False} if config.lora else {})
        if config.lora or "lora" not in config.model_fields_set:
            return SHORT | {"lora": True, "learning_rate": 1e-3, "rank": 8, "targets": "transformer"}
        return SHORT

    @contextmanager
    def prepare(
        self, components: Components, config: ReVersionConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Add the word, all its vectors starting as the initializer, and low-rank layers if asked for."""
        from pipelines.concepts.token_embeddings import new_words, single_rows
        from trainers.losses import Conditioning, noise_levels
        from trainers.methods.parts.adapters import UNET_TARGETS, layers, low_rank
        from trainers.methods.parts.steering import bases
        from trainers.methods.reversion_losses import State, examine, figures

        if bool(config.left) != bool(config.right):
            raise DataError(
                f"Only one of the two things is named ({config.left or config.right}).", "Give both --left and --right."
            )
        steered = bases(components, config.basis) if config.steer or config.norm_pull else ()
        starts = tuple(row.expand(config.vectors, -1) for row in single_rows(components, config.init))
        levels = noise_levels(components.scheduler_config, components.device)
        with ExitStack() as stack:
            words = stack.enter_context(new_words(components, config.token, starts))
            trained: tuple[Trained, ...] = ()
            if config.lora:
                names = layers(components.unet, UNET_TARGETS[config.targets])
                trained = (stack.enter_context(low_rank("unet", components.unet, names, config, generator)),)
            named = {f"rows_{i}": row for i, row in enumerate(words.rows)}
            weights = {name: value for one in trained for name, value in one.parameters.items()}
            conditioning = Conditioning(words.components, frozen=False)
            state = State(config, levels, conditioning, steered, words.rows, trained)
            yield Trainable(
                words.components,
                weights | named,
                pair_captions(Pair(config.left, config.right)) if config.left else (),
                state,
                figures=lambda: figures(state, starts),
                rates=dict.fromkeys(named, config.word_rate) if config.lora else {},
                examine=lambda examples: examine(state, examples),
            )

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the denoising loss at timesteps drawn toward the noisy end, and the steering loss."""
        from trainers.methods.reversion_losses import relation_losses

        return relation_losses(trainable.components, trainable.state, batch, generator)

    def export(self, trainable: Trainable) -> Concept:
        """Return the rows as they are now, and the changes if there are any."""
        from pipelines.concepts.concept import Concept

        state = trainable.state
        config = state.config
        changes = {key: change for one in state.trained for key, change in one.changes().items()}
        left, right = ([*dict.fromkeys(getattr(pair, side) for pair in state.pairs)] for side in ("left", "right"))
        card = ConceptCard(
            token=config.token,
            kind="relation",
            method=self.name,
            family=trainable.components.family,
            base=trainable.components.name,
            vectors=config.vectors,
            init=config.init,
            left=", ".join(left)[:300],
            right=", ".join(right)[:300],
            example=pair_captions(state.pairs[0])[0].replace("{}", config.token) if state.pairs else "",
        )
        return Concept(card, tuple(row.detach().cpu().float().clone() for row in state.rows), changes)
