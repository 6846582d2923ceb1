"""Results with infinite or undefined values: reported with their cause, instead of drawn black."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.concepts.concept import Concept
from pipelines.errors import NotNumbers
from pipelines.models.components import Components
from pipelines.models.text import parse_weights
from pipelines.request.request import Request

STRONG = 10.0
"""Weights beyond this are told as the cause; up to 2 is usual."""

LARGE = 100.0
"""Numbers beyond this in a concept are told as the cause; rows of words are below 1, changes of weights below 10."""


def require_numbers(
    values: Tensor, what: str, components: Components, request: Request, learned: Sequence[Concept]
) -> Tensor:
    """Return the values if all of them are finite.

    Args:
        values: latents or pictures, of any shape.
        what: their name in the error.
        components: the base that made them.
        request: the request.
        learned: the concepts of the request, in its order.

    Raises:
        NotNumbers: if one is infinite or none, naming the weight or the concept that did it where that is known.
    """
    if bool(torch.isfinite(values).all()):
        return values
    cause, way = _cause(components, request, learned)
    raise NotNumbers(f"{what} became infinite or no numbers at all{cause}.", way)


def _cause(components: Components, request: Request, learned: Sequence[Concept]) -> tuple[str, str]:
    """Return the cause as the end of a sentence, and what to do."""
    weighed = [pair for text in (request.prompt, request.negative_prompt) for pair in parse_weights(text)]
    word, weight = max(weighed, key=lambda pair: abs(pair[1]))
    if not abs(weight) <= STRONG:
        return f": {word.strip()!r:.60} weighs {weight:g}", "Give words weights from 0 to 2."
    for concept, use in zip(learned, request.concepts, strict=True):
        if (largest := _largest(concept)) * max(use.strength, 1) > LARGE or largest != largest:
            said = f": the concept {concept.token} holds numbers up to {largest:g}"
            return said, "Use it with less strength, train it with a smaller rate, or leave it out."
    if learned:
        names = ", ".join(one.token for one in learned)
        return f" with {names}", "Use less strength, or leave one out to see which it is."
    if components.dtype == torch.float16:
        return " in float16", "Compute in more digits: --dtype float32 or bfloat16."
    return "", "Use a smaller guidance scale, or more steps."


def _largest(concept: Concept) -> float:
    """Return the largest absolute value in a concept."""
    held = [tensor for part in concept.parts for tensor in part.tensors().values()]
    return max((float(part.abs().max()) for part in held if part.numel()), default=0.0)
