"""Several words learned at once, each exactly as in a run of its own.

All go through one frozen model in one batch. Each has pictures, order, captions, noise and rows of its own, and a
generator that draws what that of a run of its own would draw with the same seed; AdamW treats each value by itself, so
rows come out as those of separate runs. What one is taught never reaches another: its loss is a term of its own, and
samples of a batch do not mix. One whose loss stops being a number goes back to its last good rows and learns no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.errors import ConfigError
from pipelines.events import Preview
from pipelines.models.noise import NoiseProcess
from trainers.data.batches import Batch, Example, LatentSet
from trainers.data.smaller_copies import copied
from trainers.losses import conditioning, denoising_errors, drawn, pixels_of
from trainers.method import Draw, Trainable
from trainers.settings import DataConfig, TrainConfig

GOOD_EVERY = 10
"""Batches between copies of rows to go back to."""
COLUMNS = 4
"""Pictures in a row of a preview."""


@dataclass(frozen=True)
class WordState:
    """Parameters and settings of words for their losses and export.

    Attributes:
        config: the words and their objective, a `TextualInversionConfig`.
        process: noise process of the base.
        words: for each word its rows for each text encoder.
        stopped: place of a word -> step at which it diverged; of several words alone.
        good: rows to go back to then, the batch they are of, and the step that is done now.
    """

    config: Any
    process: NoiseProcess
    words: tuple[tuple[nn.Parameter, ...], ...]
    stopped: dict[int, int] = field(default_factory=dict)
    good: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WordBatches:
    """The batches of several words.

    Attributes:
        index: which draw this is.
        step: the step that it belongs to, from 1.
        own: place of a word -> its batch, and the generator that has drawn it and draws its noise.
    """

    index: int
    step: int
    own: Mapping[int, tuple[Batch, torch.Generator]]


def with_many(trainable: Trainable) -> Trainable:
    """Return what is trained with batches, previews, samples and news of several words.

    Args:
        trainable: of `trainable_words`, its state a `WordState`.
    """
    state: WordState = trainable.state
    tokens = state.config.triggers
    good = {"rows": _copied(state), "batch": 0, "step": 0}
    known: set[int] = set()

    def batches(examples: Sequence[Example], pace: TrainConfig, data: DataConfig, share: Callable[[], float]) -> Draw:
        _refuse(pace, data)
        sets = [
            LatentSet.of(trainable.components, copied(_of(word, examples), data, pace.seed), data, pace.seed)
            for word in tokens
        ]
        return _draw(trainable, sets, pace)

    def news() -> list[str]:
        _stop_broken(state, good)
        found = [place for place in state.stopped if place not in known]
        known.update(found)
        return [
            f"Warning: {tokens[place]} stopped being a number by step {state.stopped[place]}; it "
            "keeps what it had learned shortly before, and the others go on. Lower the learning rate for it."
            for place in found
        ]

    return replace(
        trainable,
        state=replace(state, good=good),
        batches=batches,
        sample=lambda examples, count: [one for word in tokens for one in _of(word, examples)[:count]],
        preview=lambda step: _preview(trainable, step),
        news=news,
    )


def _refuse(pace: TrainConfig, data: DataConfig) -> None:
    """Refuse settings that would tie words to each other, so that none were as if learned alone.

    Raises:
        ConfigError: if there is one.
    """
    if data.buckets:
        raise ConfigError("Pictures of several words share a batch, and so a shape.", "Leave --buckets out.")
    if pace.max_grad_norm is not None:
        raise ConfigError(
            f"--max-grad-norm {pace.max_grad_norm:g} is one limit for all that is learned together.",
            "Leave it out with --many, or learn the words one after another.",
        )
    if pace.precision == "fp16":
        raise ConfigError(
            "In fp16 all losses of a run share one scale, which one word that diverges would lower for all.",
            "Use --precision bf16 with --many.",
        )


def _of(token: str, examples: Sequence[Example]) -> list[Example]:
    """Return the examples of a word."""
    return [example for example in examples if example.word == token]


def _copied(state: WordState) -> list[list[Tensor]]:
    return [[row.detach().clone() for row in word] for word in state.words]


def _draw(trainable: Trainable, sets: Sequence[LatentSet], pace: TrainConfig) -> Draw:
    """Return a function that draws the batches of words which still learn."""
    state: WordState = trainable.state
    tokens, own = state.config.triggers, dict[int, torch.Generator]()

    def draw(index: int, generator: torch.Generator) -> WordBatches:
        if index % pace.accumulate == 0 or not own:  # a step begins: each goes on from what the step's would draw
            begun = generator.get_state()
            own.update((place, torch.Generator().set_state(begun)) for place in range(len(sets)))
        drawn_now = {
            place: (one.draw(index, pace.batch, tokens[place], trainable.templates, own[place]), own[place])
            for place, one in enumerate(sets)
            if _learns(state, place)
        }
        return WordBatches(index, index // pace.accumulate + 1, drawn_now)

    return draw


def losses_of_words(trainable: Trainable, batch: WordBatches) -> dict[str, Tensor]:
    """Return the denoising loss of each word that still learns, by its word.

    A word whose loss is no number is stopped, unless it is the last: then the loop says so and stops.
    """
    components, state = trainable.components, trainable.state
    state.good["step"] = batch.step
    batches = [one for one, _ in batch.own.values()]
    draws = [drawn(one, state.config, state.process, generator) for one, generator in batch.own.values()]
    places, left = list(batch.own), list(range(len(batches)))
    while True:
        joined = _joined([batches[i] for i in left])
        told = conditioning(components, joined.captions, joined.frames, pixels_of(components, joined.latents))
        noise, times = (torch.cat([draws[i][part] for i in left]) for part in (0, 1))
        errors = denoising_errors(components, joined, (noise, times), state.process, told, state.config)
        means = torch.stack([part.mean() for part in errors.split([len(batches[i].latents) for i in left])])
        good = torch.isfinite(means.detach()).tolist()
        if all(good) or not any(good):
            break
        for i, sound in zip(left, good, strict=True):
            if not sound:
                _stop(state, state.good, places[i])
        left = [i for i, sound in zip(left, good, strict=True) if sound]
    if all(good) and batch.index >= state.good["batch"] + GOOD_EVERY:
        state.good.update(rows=_copied(state), batch=batch.index)
    return {f"denoise {state.config.triggers[places[i]]}": mean for i, mean in zip(left, means, strict=True)}


def _learns(state: WordState, place: int) -> bool:
    """Return whether a word still learns; a resumed run knows it by its rows."""
    return all(row.requires_grad for row in state.words[place])


def _stop_broken(state: WordState, good: Mapping[str, Any]) -> None:
    """Stop words whose rows are no numbers after a step, unless none is left: then the loop says so and stops."""
    learning = [place for place in range(len(state.words)) if _learns(state, place)]
    broken = [place for place in learning if not all(bool(row.isfinite().all()) for row in state.words[place])]
    for place in broken if len(broken) < len(learning) else ():
        _stop(state, good, place)


@torch.no_grad()
def _stop(state: WordState, good: Mapping[str, Any], place: int) -> None:
    """Let a word learn no more, its rows as they were last kept."""
    state.stopped[place] = good["step"]
    for row, kept in zip(state.words[place], good["rows"][place], strict=True):
        row.copy_(kept)
        row.requires_grad_(False)
        row.grad = None


def _joined(batches: Sequence[Batch]) -> Batch:
    """Join batches along the pictures; where some have masks, all of a picture without one counts."""
    masks: Any = None
    if any(one.masks is not None for one in batches):
        masks = torch.cat([torch.ones_like(one.latents[:, :1]) if one.masks is None else one.masks for one in batches])
    return replace(
        batches[0],
        latents=torch.cat([one.latents for one in batches]),
        captions=[caption for one in batches for caption in one.captions],
        indices=[index for one in batches for index in one.indices],
        frames=torch.cat([one.frames for one in batches]),
        masks=masks,
    )


def _preview(trainable: Trainable, step: int) -> Preview:
    """Draw all words side by side."""
    from pipelines.generation import generate
    from pipelines.request.request import Request
    from trainers.loop.previews import on_plain_ground

    template, world = trainable.templates[0], trainable.components.family.world
    prompts = [on_plain_ground(template.replace("{}", one), world) for one in trainable.state.config.triggers]
    drawn_now: list[Image.Image] = [
        generate(trainable.components, Request(prompt=prompt, steps=15, seed=0)).pictures[0] for prompt in prompts
    ]
    width, height = drawn_now[0].size
    sheet = Image.new("RGB", (width * min(COLUMNS, len(drawn_now)), height * -(-len(drawn_now) // COLUMNS)), "white")
    for number, picture in enumerate(drawn_now):
        sheet.paste(picture, (number % COLUMNS * width, number // COLUMNS * height))
    return Preview(step, sheet, " · ".join(prompts))
