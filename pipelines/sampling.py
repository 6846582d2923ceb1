"""Execution of a request: concepts and conditions attached, latents denoised and decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipelines.concepts.concept import Concept, attached
from pipelines.condition import Canvas, Condition
from pipelines.conditions.boxes import Boxes
from pipelines.conditions.distilled import DistilledGuidance
from pipelines.conditions.excite import Excitation
from pipelines.conditions.inpaint import Inpainting
from pipelines.conditions.regions import Regions, wanted
from pipelines.conditions.text import Text
from pipelines.denoising import denoise, initial_noise
from pipelines.enlarging.second_pass import (
    Enlarging,
    enlarged_size,
    larger,
    require_enlargeable,
    second_noise,
    second_steps,
    tiles_of,
)
from pipelines.enlarging.upscaler import Upscaler, opened
from pipelines.errors import RequestError
from pipelines.events import Event, Note, OnEvent, StepDone, ignore
from pipelines.gligen.layers import with_adapter
from pipelines.models.components import Components, decode, saving_memory
from pipelines.models.inpainting_unet import with_inpainting_unet
from pipelines.models.known_words import known_words
from pipelines.models.text import lacks_a_side, parse_weights
from pipelines.overflow import require_numbers
from pipelines.pictures.tensors import to_pictures
from pipelines.predictions.guided import refuse_unable
from pipelines.predictions.regional import (
    View,
    apart_alone,
    boxed,
    boxes_seen,
    covered_by,
    view,
    weights_alone,
    without_weights,
)
from pipelines.predictions.regions import kept_to_regions, region_views, told
from pipelines.predictions.weights import Weights, weights_of
from pipelines.request.guidance import Prompt
from pipelines.request.request import Box, Request
from pipelines.words import notes


@dataclass(frozen=True)
class Result:
    """The result of a request.

    Attributes:
        pictures: one for each of `request.count`.
        latents: (count, C, h, w) float32 on the CPU, before decoding.
        request: the request with nothing left open; the same request gives the same pictures.
        concepts: the concepts used, in the order of the request.
    """

    pictures: list[Image.Image]
    latents: Tensor
    request: Request
    concepts: tuple[Concept, ...] = ()


def sample(
    components: Components,
    request: Request,
    *,
    concepts: Mapping[str, Concept] | None = None,
    conditions: Sequence[Condition] = (),
    noise: Tensor | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Carry out a request without an in-context question.

    Arguments, result and errors are those of `pipelines.generation.generate`, which takes both kinds.
    """
    components = with_inpainting_unet(components, request.inpaint, on_event)
    canvas = _canvas(components, request, conditions, on_event)
    request = (canvas.sized(request, components) if canvas else request).resolved(components.defaults)
    _check_size(components, request)
    upscaler, request = _with_upscaler(components, request, on_event)
    learned = _learned(components, request, concepts or {}, on_event)
    strengths = [use.strength for use in request.concepts]
    with ExitStack() as lasting, torch.no_grad():
        if request.boxes and request.grounding.adapter:
            components = lasting.enter_context(with_adapter(components, Path(request.grounding.adapter)))
        apart, kept = _apart(request, learned)
        weaker = _weaker(components, request, learned)
        everywhere = without_weights(learned, {**apart, **kept})
        components = lasting.enter_context(attached(components, list(zip(everywhere, strengths, strict=True))))
        _note_words(components, request, learned, on_event)
        request = _placed(components, request, learned)
        if not request.grounding.region:
            rest = _weights_of(learned, strengths, [index for index in apart if index not in kept])
            components, apart = lasting.enter_context(attached(components, rest)), {}
            apart_alone(learned, kept)
        size = (int(request.width or 0), int(request.height or 0))
        views = _views(components, request, learned, apart, lasting)
        placed = told(components, request)
        views += region_views(components, placed, learned, kept, lasting)
        everything = [*_conditions(request, placed.boxes, size, learned), *conditions]
        everything += [canvas] if canvas and canvas not in conditions else []
        for condition in everything:
            lasting.enter_context(condition.attach(components, request.count))
        also = [_text(request, size, prompt) for prompt in request.also]
        for text in also:
            lasting.enter_context(text.attach(components, request.count))
        drawn, generators = initial_noise(components, request)
        start = (drawn if noise is None else noise.to(drawn), generators)
        counted = _counted(on_event, _second_steps(components, request, upscaler))
        latents = denoise(components, request, everything, start, counted, should_stop, views, also, weaker)
        require_numbers(latents, "The picture", components, request, learned)
        with saving_memory(components, request.vae_tiling, request.vae_slicing):
            shown = torch.cat([decode(components, part) for part in latents.split(8)])
        if request.enlarge.acts:
            placed_weights = _weights_of(learned, strengths, {**apart, **kept})
            components = lasting.enter_context(attached(components, placed_weights))
            first = (request, latents, shown, generators)
            latents, shown = _enlarged(components, first, weaker, counted, should_stop, upscaler)
        pictures = to_pictures(require_numbers(shown, "The decoded picture", components, request, learned))
        pictures = canvas.finish(pictures) if canvas else pictures
    return Result(pictures, latents.float().cpu(), request, tuple(learned))


def _weights_of(
    learned: Sequence[Concept], strengths: Sequence[float], those: Iterable[int]
) -> list[tuple[Concept, float]]:
    """Return the changed weights of the concepts at these places, each with its strength."""
    return [(weights_alone(learned[index]), strengths[index]) for index in those]


def _enlarged(
    components: Components,
    first: tuple[Request, Tensor, Tensor, list[torch.Generator]],
    weaker: Weights | None,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    upscaler: Upscaler | None,
) -> tuple[Tensor, Tensor]:
    """Return latents and pictures (B, 3, H, W) of the second pass.

    Args:
        components: the base, with all concepts attached.
        first: the request, latents and pictures of the first pass, and the generators that go on.
        weaker: as in `denoise`.
        on_event: told each step.
        should_stop: asked before each step.
        upscaler: enlarges the pictures, in the place of interpolation.
    """
    request, latents, shown, generators = first
    size = enlarged_size(components, request)
    if upscaler is not None:
        shown = upscaler.enlarged(shown, size, on_event, should_stop)
    if not second_steps(request):
        return latents, larger(shown, size)
    tiles = tiles_of(components, request, size)
    tile = (tiles.side[1] * components.factor, tiles.side[0] * components.factor)
    text, also = _text(request, tile), [_text(request, tile, prompt) for prompt in request.also]
    conditions = [text, DistilledGuidance(request.guidance), Enlarging(components, request, latents, shown, size)]
    plain = request.model_copy(update={"boxes": (), "regions": ()})  # they have placed their things already
    start = (second_noise(latents, generators, size, components.factor), generators)
    with ExitStack() as lasting:
        for condition in (*conditions, *also):
            lasting.enter_context(condition.attach(components, request.count))
        latents = denoise(components, plain, conditions, start, on_event, should_stop, (), also, weaker, tiles)
    require_numbers(latents, "The enlarged picture", components, request, ())
    with saving_memory(components, request.vae_tiling, request.vae_slicing):
        return latents, torch.cat([decode(components, one) for one in latents.split(1)])


def _with_upscaler(components: Components, request: Request, on_event: OnEvent) -> tuple[Upscaler | None, Request]:
    """Return the upscaler of the second pass, if it has one, and the request with its digest; refuse what cannot be."""
    require_enlargeable(components, request)
    upscaler, enlarge = opened(request.enlarge, on_event)
    return upscaler, request.model_copy(update={"enlarge": enlarge})


def _second_steps(components: Components, request: Request, upscaler: Upscaler | None) -> int:
    """Return the steps of the second pass, the tiles of the upscaler among them."""
    if upscaler is None:
        return second_steps(request)
    runs = upscaler.tiles((int(request.width or 0), int(request.height or 0)), enlarged_size(components, request))
    return second_steps(request) + request.count * sum(map(len, runs))


def _counted(on_event: OnEvent, more: int) -> OnEvent:
    """Return what is told of the steps, counted with those of both passes.

    Args:
        on_event: is told.
        more: steps of the second pass.
    """
    first, told = 0, 0

    def counted(event: Event) -> None:
        nonlocal first, told
        if isinstance(event, StepDone) and more:
            first = first or event.steps
            told += 1  # each step is told once
            event = replace(event, step=told, steps=first + more)
        on_event(event)

    return counted


def _learned(
    components: Components, request: Request, concepts: Mapping[str, Concept], on_event: OnEvent
) -> list[Concept]:
    """Return the concepts of a request, from memory or from their files; note those without effect."""
    if components.distilled and (request.negative_prompt or request.guidance.rescale):
        on_event(Note(f"{components.name} was distilled with guidance: negative prompt and rescale do nothing here."))
    learned = [concepts.get(use.source) or Concept.load(Path(use.source)) for use in request.concepts]
    for concept in learned:
        if concept.card.kind == "relation" and lacks_a_side(request.prompt, concept.token):
            said = f"name one thing before it and one after it, as in: a cat {concept.token} a box."
            on_event(Note(f"{concept.token} is a relation: {said}"))
    return learned


def _note_words(components: Components, request: Request, learned: Sequence[Concept], on_event: OnEvent) -> None:
    """Note concepts whose word the request never says, and words in angle brackets that nobody taught the base."""
    tokenizer = components.tokenizers[0]

    def known(word: str) -> bool:
        return word in tokenizer.get_vocab()

    prompts = (request.prompt, request.negative_prompt, *(one.prompt for one in (*request.also, *request.regions)))
    weighted = {weight for prompt in prompts for _, weight in parse_weights(prompt)} - {1.0}
    if weighted and not components.family.identifiers:
        on_event(
            Note(f"The weights of words do nothing on {components.family.title}, which reads a prompt as one text.")
        )
    texts = ["".join(text for text, _ in parse_weights(prompt)) for prompt in prompts]
    # A LoRA of another program may have no word at all; it is called by its file then.
    worded = [one for one in learned if one.card.kind != "slider"]  # those act whatever the prompt says
    called = [one.token for one in worded if one.adds_word or one.card.recipe]
    if said := notes([*texts, *(box.phrase for box in request.boxes)], called, known, components.name):
        on_event(Note(said))
    if words := known_words(components.name):
        asked = [texts[0], *texts[2:], *(box.phrase for box in request.boxes)]
        if said := words.note(asked, Path(components.name).name, [concept.token for concept in learned]):
            on_event(Note(said))


def _placed(components: Components, request: Request, learned: Sequence[Concept]) -> Request:
    """Return the request with nothing left open of how its boxes act."""
    if request.grounding.region is not None:
        return request
    region = wanted(components, request.boxes, request.prompt, [concept.token for concept in learned])
    return request.model_copy(update={"grounding": request.grounding.model_copy(update={"region": region})})


def _conditions(
    request: Request, boxes: Sequence[Box], size: tuple[int, int], learned: Sequence[Concept]
) -> list[Condition]:
    """Return the conditions of a request with all its boxes, except the picture that is painted on."""
    asked: list[Condition] = [_text(request, size), DistilledGuidance(request.guidance)]
    asked += [Excitation(request.excite, request.prompt)] if request.excite.acts else []
    return [*asked, *_placing(request, boxes, size, learned)]


def _apart(request: Request, learned: Sequence[Concept]) -> tuple[dict[int, list[Box]], dict[int, list[int]]]:
    """Return the concepts whose weights act in boxes alone, and those whose weights act in regions alone."""
    apart, kept = boxed(request, learned), kept_to_regions(request, learned)
    apart_alone(learned, apart, kept)
    return apart, kept


def _views(
    components: Components,
    request: Request,
    learned: Sequence[Concept],
    apart: Mapping[int, Sequence[Box]],
    lasting: ExitStack,
) -> list[View]:
    """Return the views of the concepts that are kept to boxes."""
    size = (int(request.width or 0), int(request.height or 0))
    return [
        view(
            components,
            [(learned[index], request.concepts[index].strength)],
            covered_by(boxes, size, components.factor),
            (_text(request, size), boxes_seen(request, learned, index)),
            request.count,
            lasting,
        )
        for index, boxes in apart.items()
    ]


def _weaker(components: Components, request: Request, learned: Sequence[Concept]) -> Weights | None:
    """Return the weights of the base without its concepts, for autoguidance; refuse guidance it cannot have."""
    weaker = None
    if request.guidance.preset == "autoguidance":
        weaker = weights_of(components, learned)
    refuse_unable(components, request, weaker)
    return weaker


def _text(request: Request, size: tuple[int, int], further: Prompt | None = None) -> Text:
    """Return the prompts of a request, or a further one of it with its negative prompt."""
    skip, empty = request.clip_skip - 1, request.guidance.encode_empty
    prompt = request.prompt if further is None else further.prompt
    negative = (further.negative_prompt if further else "") or request.negative_prompt
    return Text(prompt, negative, size, skip=skip, encode_empty=empty)


def _placing(
    request: Request, boxes: Sequence[Box], size: tuple[int, int], learned: Sequence[Concept]
) -> list[Condition]:
    """Return the conditions of the boxes of a request, those of its regions among them."""
    if not boxes:
        return []
    kinds = {concept.token: concept.card.init for concept in learned}
    placing: list[Condition] = [Boxes([boxes], float(request.grounding.beta or 0), kinds)]
    if request.boxes and request.grounding.region:
        placing.append(Regions(request.boxes, request.prompt, request.negative_prompt, size))
    return placing


def _canvas(
    components: Components, request: Request, conditions: Sequence[Condition], on_event: OnEvent
) -> Canvas | None:
    """Return the picture to paint on: of the conditions given, or of the request, or None.

    An inpainting UNet is asked for a whole picture, if there is none, by a mask that covers all of an empty one.

    Raises:
        RequestError: if there are two of them.
    """
    found = [condition for condition in conditions if isinstance(condition, Canvas)]
    if request.inpaint is not None:
        found.append(Inpainting.asked(request.inpaint, on_event))
    if len(found) > 1:
        raise RequestError(f"There are {len(found)} pictures to paint on.", "Give one.")
    if not found and components.input_channels != components.channels:
        side = components.defaults.size
        return Inpainting(Image.new("RGB", (side, side), "gray"))
    return found[0] if found else None


def _check_size(components: Components, request: Request) -> None:
    multiple = components.multiple
    for name, value in (("width", request.width), ("height", request.height)):
        if int(value or 0) % multiple:
            raise RequestError(
                f"The {name} {value} is no multiple of {multiple}, which {components.name} needs.",
                f"Use {max(multiple, round(int(value or 0) / multiple) * multiple)}.",
            )
