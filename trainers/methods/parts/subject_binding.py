"""Binding subjects into weights: what DreamBooth and Custom Diffusion share.

A run learns one subject or several at once. Each picture carries the word of its own subject, each subject keeps its
own class, and what is learned of the weights serves all of them: every subject is exported as a concept with its word
and the same weights, which are laid into a base once however many of them are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.concepts.weight_deltas import Change
from pipelines.errors import ConfigError, DataError
from pipelines.events import Note, OnEvent
from pipelines.models.components import Components
from pipelines.models.noise import NoiseProcess
from trainers.data.batches import Batch, Example, ordinary
from trainers.data.class_images import class_examples
from trainers.data.cut_mix import cut_mixed
from trainers.distributed import BatchShare
from trainers.losses import Captions, drawn, pixels_of, predicted, process_of, weighted_error
from trainers.method import Trainable
from trainers.methods.parts.adapters import Trained
from trainers.methods.parts.identifiers import collision
from trainers.settings import DataConfig, SubjectConfig


@dataclass(frozen=True)
class Binding:
    """A base in which subjects are being bound.

    Attributes:
        config: objective, prior and subjects.
        process: noise process of the base.
        captions: the conditioning of captions.
        trained: the weights.
        words: for each subject the rows of its new word in each text encoder, or none.
    """

    config: SubjectConfig
    process: NoiseProcess
    captions: Captions
    trained: tuple[Trained, ...]
    words: tuple[tuple[nn.Parameter, ...], ...]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name."""
        return {name: value for one in self.trained for name, value in one.parameters.items()} | self.rows

    @property
    def rows(self) -> dict[str, nn.Parameter]:
        """The rows of new words, by name; those of the run's own subject first."""
        listed = [row for word in self.words for row in word]
        return {f"rows_{i}": row for i, row in enumerate(listed)}


@contextmanager
def with_words(
    components: Components, config: SubjectConfig, vectors: int = 1
) -> Iterator[tuple[Components, tuple[tuple[nn.Parameter, ...], ...]]]:
    """The base with a new word for each subject, starting as the last word of its class; gives their rows too."""
    with ExitStack() as stack:
        words: list[tuple[nn.Parameter, ...]] = []
        starts = [single_rows(components, subject.class_word.split()[-1]) for subject in config.subjects]
        for subject, start in zip(config.subjects, starts, strict=True):
            initial = tuple(row.expand(vectors, -1) for row in start)
            added = stack.enter_context(new_words(components, subject.token, initial))
            components = added.components
            words.append(added.rows)
        yield components, tuple(words)


def bound(
    components: Components,
    config: SubjectConfig,
    trained: Sequence[Trained],
    words: tuple[tuple[nn.Parameter, ...], ...],
    frozen: bool,
) -> Binding:
    """The state that losses and export of subjects need; `frozen` if nothing of the text side is trained."""
    return Binding(config, process_of(components, config), Captions(components, frozen), tuple(trained), words)


def displacement(binding: Binding) -> Callable[[], dict[str, float]]:
    """Figures of how far a run has come: what new words moved by in the mean, and the size of low-rank changes.

    The size is the root of the summed squares of all changed weights: of B A of rank r it is tr((B' B)(A A')), which
    takes r x r products alone. Weights that are trained whole have no copy of what they were, and no figure.
    """
    starts = {name: row.detach().clone() for name, row in binding.rows.items()}
    pairs = [
        (value, one.parameters[f"{name.removesuffix('.down')}.up"], one.scale)
        for one in binding.trained
        for name, value in one.parameters.items()
        if name.endswith(".down")
    ]

    @torch.no_grad()
    def figures() -> dict[str, float]:
        told: dict[str, float] = {}
        if starts:
            moved = [(row - starts[name]).norm(dim=-1).mean() for name, row in binding.rows.items()]
            told["displacement"] = float(torch.stack(moved).mean())
        if pairs:
            flat = [(down.flatten(1), up.flatten(1), scale) for down, up, scale in pairs]
            squares = [scale**2 * ((up.T @ up) * (down @ down.T)).sum() for down, up, scale in flat]
            told["change"] = float(torch.stack(squares).sum().clamp(min=0).sqrt())
        return told

    return figures


def concepts_of(components: Components, binding: Binding, method: str) -> Concept:
    """The run's own subject as a concept, the others beside it in `partners`; all with the same changes."""
    config = binding.config
    changes: dict[str, Change] = {key: change for one in binding.trained for key, change in one.changes().items()}
    listed: list[Concept] = []
    for place, subject in enumerate(config.subjects):
        rows = tuple(row.detach().cpu().float().clone() for row in (binding.words[place] if binding.words else ()))
        card = ConceptCard(
            token=subject.trigger,
            kind=config.kind,
            method=method,
            family=components.family.name,
            base=components.name,
            vectors=len(rows[0]) if rows else 0,
            init=subject.class_word,
        )
        listed.append(Concept(card, rows, changes))
    return replace(listed[0], partners=tuple(listed[1:]))


# -- pictures -------------------------------------------------------------------------------------------------


def trainable_subjects(
    components: Components, binding: Binding, templates: tuple[str, ...], rates: Mapping[str, float]
) -> Trainable:
    """Return a base in which subjects are being bound as what is trained, with the pictures that they need.

    Args:
        components: the base with new words and layers in it.
        binding: subjects and what is trained.
        templates: prompts with a `{}`.
        rates: name of a parameter -> factor on the learning rate.
    """
    config = binding.config
    notes: list[str] = []
    if config.cut_mix:
        notes.append(f"{config.cut_mix:.0%} of the pictures are two of them side by side (--cut-mix).")
    if config.new_word is None:
        meant = ((subject.token, collision(subject.token)) for subject in config.subjects)
        notes += [f"Warning: {token!r} already means something to most models: {why}." for token, why in meant if why]
    return Trainable(
        components,
        binding.parameters,
        templates,
        binding,
        displacement(binding),
        rates,
        completed=partial(_completed, components, config, templates),
        class_pictures=partial(_class_pictures, components, config, templates) if config.prior == "pictures" else None,
        notes=notes,
    )


def _class_pictures(
    components: Components,
    config: SubjectConfig,
    templates: Sequence[str],
    folder: Path,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> list[Example]:
    """Return pictures of each class, read or made by the base."""
    on_event(Note(f"{config.num_class_images} pictures of the class, for the prior"))
    made: list[Example] = []
    classes = [subject.class_word for subject in config.subjects]
    for word in dict.fromkeys(classes):
        one = config.model_copy(update={"class_word": word})
        listed = class_examples(components, one, templates, folder=folder, on_event=on_event, should_stop=should_stop)
        # A class of two subjects is seen twice as often.
        made += [replace(e, word=word, repeats=e.repeats * classes.count(word)) for e in listed]
    return made


def _completed(
    components: Components,
    config: SubjectConfig,
    templates: Sequence[str],
    examples: Sequence[Example],
    data: DataConfig,
    seed: int,
) -> Sequence[Example]:
    """Return the examples of a run with several subjects, with composed ones among them if it asks for some.

    Raises:
        DataError: if a subject has no picture.
        ConfigError: if composed pictures would be mirrored.
    """
    if not config.also:
        return examples
    examples = [replace(example, word=example.word or config.trigger) for example in examples]
    shown = {example.word for example in examples}
    if missing := [word for word in config.triggers if word not in shown]:
        raise DataError(f"There is no picture of {missing[0]}.", "Give each subject some of its own.")
    if not config.cut_mix:
        return examples
    if data.flip:
        raise ConfigError(
            "Mirrored pictures would contradict captions that say left and right.", "Use --flip 0 with --cut-mix."
        )
    side = data.resolution or components.defaults.size
    generator = torch.Generator().manual_seed(seed * 6_151 + 29)
    return cut_mixed(examples, config, templates, side=side, crop=data.center_crop, generator=generator)


# -- losses -----------------------------------------------------------------------------------------------------


def subject_losses(
    components: Components, binding: Binding, batch: Batch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Terms of the subjects and of their classes; the two are predicted in one call of the denoiser.

    Args:
        components: the base with what is trained in it.
        binding: objective, prior and what is trained.
        batch: the subjects' pictures, with those of their classes in `prior` where there are any.
        generator: source of chance.
    """
    config, process = binding.config, binding.process
    noise, timesteps = drawn(batch, config, process, generator)
    latents, captions, frames, count = batch.latents, batch.captions, batch.frames, len(batch.latents)
    taught: Tensor | None = None
    if batch.prior is not None:
        prior_noise, prior_timesteps = drawn(batch.prior, config, process, generator)
        noise, timesteps = torch.cat((noise, prior_noise)), torch.cat((timesteps, prior_timesteps))
        latents, frames = torch.cat((latents, batch.prior.latents)), torch.cat((frames, batch.prior.frames))
        captions = captions + batch.prior.captions
    elif config.prior == "model":
        plain = [config.plain(caption) for caption in captions]
        if config.prior_scope == "world":
            plain = _every_second(plain, ordinary(components.family.world), generator, batch.part)
        held = slice(None, None, config.prior_every)
        inputs = _Held(latents[held], frames[held], plain[held], noise[held], timesteps[held])
        taught = _base_prediction(components, binding, inputs)
        noise, timesteps = torch.cat((noise, inputs.noise)), torch.cat((timesteps, inputs.timesteps))
        latents, frames = torch.cat((latents, inputs.latents)), torch.cat((frames, inputs.frames))
        captions = captions + inputs.captions
    told = binding.captions(captions, frames, pixels_of(components, latents))
    guess = predicted(components, latents, timesteps, noise, process, told)
    wanted = process.target(latents, noise, timesteps)
    if taught is not None:
        wanted = torch.cat((wanted[:count], taught))
    own = weighted_error(process, guess[:count], wanted[:count], timesteps[:count], config, batch.masks)
    terms = {"denoise": own.mean()}
    if len(latents) > count:
        other = weighted_error(process, guess[count:], wanted[count:], timesteps[count:], config)
        terms["prior"] = config.prior_weight * other.mean()
    return terms


def _every_second(
    captions: list[str], others: tuple[str, ...], generator: torch.Generator, part: BatchShare
) -> list[str]:
    """The captions, each replaced by one of others with a chance of one half."""
    swapped = (part.of(lambda n: torch.rand(n, generator=generator), len(captions)) < 0.5).tolist()
    chosen = part.of(lambda n: torch.randint(len(others), (n,), generator=generator), len(captions)).tolist()
    return [others[k] if swap else own for own, swap, k in zip(captions, swapped, chosen, strict=True)]


@dataclass(frozen=True)
class _Held:
    """Inputs on which the base's own prediction is held fast, a row for each picture.

    Attributes:
        latents: (N, C, h, w) clean.
        frames: as in `Batch`.
        captions: what the base is told.
        noise: (N, C, h, w).
        timesteps: (N,).
    """

    latents: Tensor
    frames: Tensor
    captions: list[str]
    noise: Tensor
    timesteps: Tensor


@torch.no_grad()
def _base_prediction(components: Components, binding: Binding, held: _Held) -> Tensor:
    """Return what the base itself predicts, all that was learned switched off."""
    with ExitStack() as stack:
        for one in binding.trained:
            stack.enter_context(one.off())
        told = binding.captions.anew(held.captions, held.frames, pixels_of(components, held.latents))
        return predicted(components, held.latents, held.timesteps, held.noise, binding.process, told)
