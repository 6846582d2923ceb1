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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines.concepts.card import ConceptCard
from pipelines.errors import DataError
from trainers.data.named_pairs import NamedPair, named_pair, pair_captions, sides
from trainers.method import Offer, Trainable
from trainers.methods.textual_inversion import NEAREST, POCKET
from trainers.settings import LowRankConfig, ObjectiveConfig, TokenConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipelines.concepts.concept import Concept
    from pipelines.models.components import Components
    from pipelines.models.noise import NoiseProcess
    from trainers.data.batches import Batch, Example
    from trainers.losses import Captions
    from trainers.methods.parts.adapters import Trained
    from trainers.methods.parts.steering import Basis


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


@dataclass
class _State:
    """Parameters and settings of a relation for its losses and export."""

    config: ReVersionConfig
    process: NoiseProcess
    captions: Captions
    bases: tuple[Basis, ...]
    rows: tuple[nn.Parameter, ...]
    trained: tuple[Trained, ...]
    pairs: list[NamedPair] = field(default_factory=list)


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
        from trainers.losses import Captions, process_of
        from trainers.methods.parts.adapters import denoiser_low_rank
        from trainers.methods.parts.steering import bases

        if bool(config.left) != bool(config.right):
            raise DataError(
                f"Only one of the two things is named ({config.left or config.right}).", "Give both --left and --right."
            )
        steered = bases(components, config.basis) if config.steer or config.norm_pull else ()
        starts = tuple(row.expand(config.vectors, -1) for row in single_rows(components, config.init))
        process = process_of(components, config)
        with ExitStack() as stack:
            words = stack.enter_context(new_words(components, config.token, starts))
            trained: tuple[Trained, ...] = ()
            if config.lora:
                trained = (stack.enter_context(denoiser_low_rank(components, config, generator)),)
            named = {f"rows_{i}": row for i, row in enumerate(words.rows)}
            weights = {name: value for one in trained for name, value in one.parameters.items()}
            captions = Captions(words.components, frozen=False)
            state = _State(config, process, captions, steered, words.rows, trained)
            yield Trainable(
                words.components,
                weights | named,
                pair_captions(NamedPair(config.left, config.right)) if config.left else (),
                state,
                figures=lambda: _figures(state, starts),
                rates=dict.fromkeys(named, config.word_rate) if config.lora else {},
                examine=lambda examples: _examine(state, examples),
            )

    def losses(self, trainable: Trainable, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the denoising loss at timesteps drawn toward the noisy end, and the steering loss."""
        return _losses(trainable.components, trainable.state, batch, generator)

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
            family=trainable.components.family.name,
            base=trainable.components.name,
            vectors=config.vectors,
            init=config.init,
            left=", ".join(left)[:300],
            right=", ".join(right)[:300],
            example=pair_captions(state.pairs[0])[0].replace("{}", config.token) if state.pairs else "",
        )
        return Concept(card, tuple(row.detach().cpu().float().clone() for row in state.rows), changes)


def _losses(components: Components, state: _State, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the denoising loss at timesteps drawn toward the noisy end, and the steering loss."""
    import torch

    from trainers.losses import drawn
    from trainers.methods.parts.steering import focal_timesteps, spoken, steering_loss

    config, process = state.config, state.process
    noise, timesteps = drawn(batch, config, process, generator)
    if config.focal:
        chosen = batch.part.of(lambda n: focal_timesteps(n, process.count, config.focal, generator), len(timesteps))
        timesteps = process.at(chosen).to(timesteps.device)
    terms = _denoising(components, state, batch, (noise, timesteps), generator)
    # The logarithm is of sums over the whole batch, so that every process computes it whole.
    captions = list(batch.together) or batch.captions
    for which, (basis, row) in enumerate(zip(state.bases, state.rows, strict=False)):
        weight = config.steer / len(state.bases)
        if config.steer:
            count = min(config.positives, len(basis.rows))
            picked = [torch.randperm(len(basis.rows), generator=generator)[:count] for _ in captions]
            positives = basis.rows[torch.cat(picked).to(basis.rows.device)]
            negatives = basis.negatives(spoken(components, which, captions))
            loss = weight * steering_loss(row, positives, negatives, config.temperature)
            terms["steer"] = terms.get("steer", 0) + loss
        if config.norm_pull:
            usual = basis.rows.norm(dim=-1).median()
            pull = (row.norm(dim=-1) / usual - 1).square().mean() * config.norm_pull / len(state.bases)
            terms["norm_pull"] = terms.get("norm_pull", 0) + pull
    return terms


def _examine(state: _State, examples: Sequence[Example]) -> None:
    """Refuse pictures that do not name two things, and remember those they name."""
    from trainers.data.batches import usable

    config = state.config
    given = NamedPair(config.left, config.right) if config.left else None
    for example in examples:
        spoken = [caption for caption in example.captions if usable(caption, config.token)]
        incomplete = next((caption for caption in spoken if sides(caption, config.token) is None), None)
        if incomplete is not None:
            raise DataError(
                f"The caption {incomplete!r:.80} of {example.name} names only one of the two things, or none.",
                "Name one before the {} and one after it: a cat {} a box.",
            )
        pair = named_pair(spoken, config.token) or given
        if pair is None:
            raise DataError(
                f"{example.name} does not say which two things stand in the relation.",
                "Name them for all pictures with --left and --right, or for each in pairs.json: "
                f'{{"{example.name}": ["cat", "box"]}}.',
            )
        state.pairs.append(pair)


def _denoising(
    components: Components,
    state: _State,
    batch: Batch,
    draw: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The denoising term and, where weights change, that of ordinary captions; predicted in one call."""
    import torch

    from trainers.data.batches import ordinary
    from trainers.losses import pixels_of, predicted, weighted_error

    config, (noise, timesteps), latents = state.config, draw, batch.latents
    captions, frames, count = batch.captions, batch.frames, len(latents)
    wanted = state.process.target(latents, noise, timesteps)
    size = pixels_of(components, latents)
    if state.trained and config.keep:
        known = ordinary(components.family.world)
        chosen = batch.part.of(lambda n: torch.randint(len(known), (n,), generator=generator), count)
        others = [known[i] for i in chosen.tolist()]
        with ExitStack() as stack, torch.no_grad():
            for one in state.trained:
                stack.enter_context(one.off())
            told = state.captions(others, frames, size)
            kept = predicted(components, latents, timesteps, noise, state.process, told)
        wanted, captions = torch.cat((wanted, kept)), captions + others
        latents, noise = torch.cat((latents, latents)), torch.cat((noise, noise))
        timesteps, frames = torch.cat((timesteps, timesteps)), torch.cat((frames, frames))
    told = state.captions(captions, frames, size)
    guess = predicted(components, latents, timesteps, noise, state.process, told)
    own = weighted_error(state.process, guess[:count], wanted[:count], timesteps[:count], config, batch.masks)
    terms = {"denoise": own.mean()}
    if len(guess) > count:
        other = weighted_error(state.process, guess[count:], wanted[count:], timesteps[count:], config)
        terms["keep"] = config.keep * other.mean()
    return terms


def _figures(state: _State, starts: Sequence[Tensor]) -> dict[str, float]:
    """Length and displacement of the word, and its mean cosine to the basis: losses alone do not tell steering."""
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        moved = [(row - start).norm(dim=-1).mean() for row, start in zip(state.rows, starts, strict=True)]
        figures = {
            "displacement": float(torch.stack(moved).mean()),
            "norm": float(torch.stack([row.norm(dim=-1).mean() for row in state.rows]).mean()),
        }
        if state.bases:
            near = [
                (F.normalize(row, dim=-1) @ F.normalize(basis.rows, dim=-1).T).mean()
                for row, basis in zip(state.rows, state.bases, strict=True)
            ]
            figures["prepositions"] = float(torch.stack(near).mean())
        return figures
