"""A word for a task: Textual Inversion on grids, so that what example pairs show can be said in one word.

The row of the new word minimises the denoising loss of the answer's cell (Gal et al., arXiv:2208.01618, eq. 2, under an
inpainting UNet). In a share of the grids the example is left blank, so that the word must tell alone what is to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.errors import DataError
from pipelines.events import OnEvent, ignore
from pipelines.models.components import CONCAT, Components
from pipelines.pictures.grids import Grid
from trainers.base_models.inpainting_unet import inputs_beside
from trainers.loop.clock import Clock
from trainers.loop.ema import EMA, averaged_checkpoint
from trainers.loop.loop import Losses, Pace, optimise, warm_stable_decay
from trainers.losses import conditioning, uncropped
from trainers.method_settings import TaskWordConfig

METHOD = "task-word"
KEEP_EVERY = 50  # steps between writes of the training state


def learn_word(
    components: Components,
    pairs: Tensor,
    config: TaskWordConfig,
    *,
    keep: Path | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Concept:
    """Learn a word for what pairs show.

    Args:
        components: with an inpainting UNet; bit-identical afterwards.
        pairs: (N, 2, 3, h, w) in [-1, 1], before and after; at least two.
        config: the word, and how long and fast it is learned.
        keep: folder for the training state; if there is one in it, learning goes on from it.
        on_event: receives the loop's events.
        should_stop: asked before each step.

    Raises:
        DataError: if there are fewer than two pairs.
        ConceptError: if the word or its initializer will not do.
        Cancelled: if `should_stop` said so; the state is kept.
        ConfigError: if the state is of other pairs, settings or another base.
    """
    if len(pairs) < 2:
        raise DataError(f"{len(pairs)} pairs; a word is learned from two at least.", "Give more pairs.")
    starts = tuple(row.expand(config.vectors, -1) for row in single_rows(components, config.init))
    with new_words(components, config.token, starts) as words:
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(words.rows, config.rate, weight_decay=0.0)]
        named = {f"rows_{i}": row for i, row in enumerate(words.rows)}
        about = {**config.model_dump(mode="json", exclude={"steps"}), "base": components.fingerprint()}
        about["pairs"] = hashlib.sha256(pairs.cpu().contiguous().numpy().tobytes()).hexdigest()
        optimise(
            grid_losses(words.components, pairs, config),
            optimizers,
            Pace(config.steps, config.seed),
            rate=lambda step, steps: warm_stable_decay(step, steps, 20),
            checkpoint=keep
            and averaged_checkpoint(keep, KEEP_EVERY, named, EMA(named, 0.0), optimizers, Clock(None), about),
            on_event=on_event,
            should_stop=should_stop,
        )
        rows = tuple(row.detach().cpu().float().clone() for row in words.rows)
    card = ConceptCard(
        token=config.token,
        kind="style",
        method=METHOD,
        family=components.family.name,
        base=components.name,
        base_fingerprint=components.fingerprint(),
        vectors=config.vectors,
        init=config.init,
        recipe=config.model_dump() | {"pairs": len(pairs)},
    )
    return Concept(card, rows)


def grid_losses(components: Components, pairs: Tensor, config: TaskWordConfig) -> Losses:
    """The loss of a step: squared error of the prediction in the answer's cell, under the word alone."""
    batch = config.batch
    grid, family, process = Grid(), components.family, components.family.process(components)
    side = grid.mask(*pairs.shape[-2:])
    size = (side.shape[-2], side.shape[-1])

    def losses(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            cells = _drawn(pairs, batch, config.blank, generator).to(components.device)
            clean, mask, around = inputs_beside(components, grid.compose(cells), side.to(cells))
        even = (torch.rand((), generator=generator) + torch.arange(batch) / batch) % 1
        t = process.at((even * process.count).long().clamp(max=process.count - 1).to(components.device))
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        noisy = process.noised(clean, noise, t).to(components.dtype)
        told = conditioning(components, [config.token] * batch, uncropped(batch, size), size)
        told[CONCAT] = torch.cat((mask, around), 1).to(components.dtype)
        guess = family.predict(components, noisy, t, told).float()
        error = (guess - process.target(clean, noise, t)).square() * mask
        return {"denoise": error.sum() / (mask.sum() * clean.shape[1])}

    return losses


def _drawn(pairs: Tensor, batch: int, blank: float, generator: torch.Generator) -> Tensor:
    """Cells (batch, 2, 2, 3, h, w): another pair as the example, or none, and a pair to be answered."""
    query = torch.randint(len(pairs), (batch,), generator=generator)
    other = (query + torch.randint(1, len(pairs), (batch,), generator=generator)) % len(pairs)
    cells = torch.stack((pairs[other], pairs[query]), 1)
    cells[torch.rand(batch, generator=generator) < blank, 0] = 0
    return cells
