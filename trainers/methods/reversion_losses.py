"""Losses and figures of a word for a relation (ReVersion, Huang et al., arXiv:2303.13495)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import DataError
from pipelines.models.components import Components
from trainers.data.batches import Batch, Example, ordinary, usable
from trainers.data.named_pairs import Pair, named_pair, sides
from trainers.losses import Conditioning, caption_ids, drawn, pixels_of, predicted, target, weighted_error
from trainers.methods.parts.adapters import Trained
from trainers.methods.parts.steering import Basis, focal_timesteps, steering_loss

if TYPE_CHECKING:
    from trainers.methods.reversion import ReVersionConfig


@dataclass
class State:
    """What the losses and the export of a relation need."""

    config: ReVersionConfig
    levels: Tensor
    conditioning: Conditioning
    bases: tuple[Basis, ...]
    rows: tuple[nn.Parameter, ...]
    trained: tuple[Trained, ...]
    pairs: list[Pair] = field(default_factory=list)


def relation_losses(
    components: Components, state: State, batch: Batch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the denoising loss at timesteps drawn toward the noisy end, and the steering loss."""
    config = state.config
    noise, timesteps = drawn(batch, config, len(state.levels), generator)
    if config.focal:
        chosen = batch.part.of(lambda n: focal_timesteps(n, len(state.levels), config.focal, generator), len(timesteps))
        timesteps = chosen.to(timesteps.device)
    terms = _denoising(components, state, batch, (noise, timesteps), generator)
    # The logarithm is of sums over the whole batch, so that every process computes it whole.
    captions = list(batch.together) or batch.captions
    for which, (basis, row) in enumerate(zip(state.bases, state.rows, strict=False)):
        weight = config.steer / len(state.bases)
        if config.steer:
            count = min(config.positives, len(basis.rows))
            picked = [torch.randperm(len(basis.rows), generator=generator)[:count] for _ in captions]
            positives = basis.rows[torch.cat(picked).to(basis.rows.device)]
            negatives = basis.negatives(caption_ids(components, which, captions))
            loss = weight * steering_loss(row, positives, negatives, config.temperature)
            terms["steer"] = terms.get("steer", 0) + loss
        if config.norm_pull:
            usual = basis.rows.norm(dim=-1).median()
            pull = (row.norm(dim=-1) / usual - 1).square().mean() * config.norm_pull / len(state.bases)
            terms["norm_pull"] = terms.get("norm_pull", 0) + pull
    return terms


def examine(state: State, examples: Sequence[Example]) -> None:
    """Refuse pictures that do not name two things, and remember those they name."""
    config = state.config
    given = Pair(config.left, config.right) if config.left else None
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
    state: State,
    batch: Batch,
    draw: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The denoising term and, where weights change, that of ordinary captions; predicted in one call of the UNet."""
    config, (noise, timesteps), latents = state.config, draw, batch.latents
    captions, frames, count = batch.captions, batch.frames, len(latents)
    kind = str(components.scheduler_config.get("prediction_type", "epsilon"))
    wanted = target(kind, latents, noise, state.levels[timesteps])
    size = pixels_of(components, latents)
    if state.trained and config.keep:
        known = ordinary(components.family)
        chosen = batch.part.of(lambda n: torch.randint(len(known), (n,), generator=generator), count)
        others = [known[i] for i in chosen.tolist()]
        with ExitStack() as stack, torch.no_grad():
            for one in state.trained:
                stack.enter_context(one.off())
            arguments = state.conditioning(others, frames, size)
            kept = predicted(components, latents, timesteps, noise, state.levels, arguments)
        wanted, captions = torch.cat((wanted, kept)), captions + others
        latents, noise = torch.cat((latents, latents)), torch.cat((noise, noise))
        timesteps, frames = torch.cat((timesteps, timesteps)), torch.cat((frames, frames))
    arguments = state.conditioning(captions, frames, size)
    guess = predicted(components, latents, timesteps, noise, state.levels, arguments)
    level = state.levels[timesteps]
    own = weighted_error(components, guess[:count], wanted[:count], level[:count], config, batch.masks)
    terms = {"denoise": own.mean()}
    if len(guess) > count:
        other = weighted_error(components, guess[count:], wanted[count:], level[count:], config)
        terms["keep"] = config.keep * other.mean()
    return terms


@torch.no_grad()
def figures(state: State, starts: Sequence[Tensor]) -> dict[str, float]:
    """Length and displacement of the word, and its mean cosine to the basis: losses alone do not tell steering."""
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
