"""`generate`: a request in, pictures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from pipelines.concepts.concept import Concept
from pipelines.condition import Condition
from pipelines.events import OnEvent, ignore
from pipelines.incontext import answer
from pipelines.models.components import Components
from pipelines.request.request import Request
from pipelines.sampling import Result, sample


def generate(
    components: Components,
    request: Request,
    *,
    concepts: Mapping[str, Concept] | None = None,
    conditions: Sequence[Condition] = (),
    noise: Tensor | None = None,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Carry out a request.

    Args:
        components: the base model; bit-identical afterwards, also after an error.
        request: the pictures to generate.
        concepts: concepts already in memory, by the `source` the request names them with; others are read from disk.
        conditions: further conditions beside those of the request; an `Inpainting` with a picture in memory, say.
        noise: (count, C, h, w) to start from instead of that of the seed.
        on_event: receives a `StepDone` for each step, and a `Note` on words without their concept and the reverse.
        should_stop: asked before each step; true leaves with `Cancelled`.

    Raises:
        RequestError: if the size does not suit the base, conditions contradict each other, or what comes out is no
            picture of numbers.
        ConceptError: if a concept cannot be read or does not fit the base.
        Cancelled: if `should_stop` said so.
    """
    if request.in_context is not None:
        return answer(components, request, concepts, conditions, on_event, should_stop)
    return sample(
        components,
        request,
        concepts=concepts,
        conditions=conditions,
        noise=noise,
        on_event=on_event,
        should_stop=should_stop,
    )
