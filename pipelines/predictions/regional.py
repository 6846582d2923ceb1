"""Weights in regions: several concepts that change the same weights in one picture, each in its own boxes.

Laid in together, their changes add up everywhere, and each thing turns into a mixture of both. Here the prediction is
composed place by place instead, as in MultiDiffusion (Bar-Tal et al., arXiv:2302.08113, eq. 5, with the regions of its
section 5.2): in the boxes that name a concept it is that of the base with this concept's weights, elsewhere that of the
base without any of them. Where boxes overlap the predictions are averaged. Each concept costs one more prediction a
step; nothing is trained, and any base can do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipelines.concepts.concept import Concept, attached
from pipelines.concepts.formats.delta_tensors import same
from pipelines.condition import Condition, Step
from pipelines.conditions.boxes import Boxes
from pipelines.conditions.regions import on_grid
from pipelines.conditions.text import Text
from pipelines.models.components import Components
from pipelines.predictions.weights import Weights, weights_of
from pipelines.request.request import Box, Request
from pipelines.words import says


@dataclass(frozen=True)
class View:
    """The base with other weights and conditions, for a part of the picture.

    Attributes:
        where: (1, 1, h, w) on the grid of the latents in [0, 1], 1 where it holds.
        weights: of the denoiser here.
        instead: conditions as they are read here, attached already, in the place of those of their kind.
        without: kinds of conditions that do not hold here.
        ground: latents (1, C, h, w) of what is around it while it is drawn by itself; None if it never is.
        alone: share of the steps, from the first, in which it is drawn by itself.
    """

    where: Tensor
    weights: Weights
    instead: Mapping[type, Condition] = field(default_factory=dict)
    without: tuple[type, ...] = ()
    ground: Tensor | None = None
    alone: float = 0.0

    def conditions(self, everywhere: Sequence[Condition]) -> list[Condition]:
        """Return the conditions of the run as they are here."""
        kept = [self.instead.get(type(one), one) for one in everywhere if not isinstance(one, self.without)]
        return [*kept, *(one for one in self.instead.values() if one not in kept)]

    def predicted(
        self, guided: Callable[[Tensor, Tensor, Step], Tensor], sample: Tensor, time: Tensor, step: Step
    ) -> Tensor:
        """Return the guided prediction (B, C, h, w) with the weights that hold here."""
        with self.weights.worn():
            return guided(sample, time, step)

    def seen(self, latents: Tensor, noise: Tensor, scheduler: Any, step: Step) -> Tensor:
        """Return the latents (B, C, h, w) as they are seen here: at first with nothing around.

        Args:
            latents: of the run.
            noise: that it began with.
            scheduler: of the run.
            step: position of the loop.
        """
        if self.ground is None or not step.within(self.alone):
            return latents
        ground = self.ground.to(latents).expand_as(latents)
        around = scheduler.add_noise(ground, noise.to(latents), step.timestep.reshape(1).expand(len(latents)))
        return self.where * latents + (1 - self.where) * around


def boxed(request: Request, learned: Sequence[Concept]) -> dict[int, list[Box]]:
    """Return which concepts can be kept to boxes: their place in the request -> the boxes that name them.

    Those that change weights, where there are several such with different changes; what was learned together may stay
    together.
    """
    changing = [index for index, concept in enumerate(learned) if concept.changes]
    if all(same(learned[index].changes, learned[changing[0]].changes) for index in changing):
        return {}
    found = {index: [box for box in request.boxes if says(box.phrase, learned[index].token)] for index in changing}
    return {index: boxes for index, boxes in found.items() if boxes}


def apart_alone(learned: Sequence[Concept], *places: dict[int, Any]) -> None:
    """Take out of these the concepts whose changes another one, which is in none of them, lays in everywhere.

    What was learned together has the same changes, and they count once.
    """
    kept = {index for one in places for index in one}
    rest = [concept for index, concept in enumerate(learned) if index not in kept and concept.changes]
    for one in places:
        for index in [at for at in one if any(same(learned[at].changes, other.changes) for other in rest)]:
            del one[index]


def without_weights(concepts: Sequence[Concept], those: Mapping[int, object]) -> list[Concept]:
    """Return the concepts, those at these places without their changed weights."""
    return [replace(one, changes={}) if index in those else one for index, one in enumerate(concepts)]


def weights_alone(concept: Concept) -> Concept:
    """Return the changed weights of a concept, without its word."""
    return Concept(concept.card, (), concept.changes)


def view(
    components: Components,
    uses: Sequence[tuple[Concept, float]],
    where: Tensor,
    read: tuple[Text, Boxes | None],
    count: int,
    lasting: ExitStack,
    **more: Any,
) -> View:
    """Return the view of a part of the picture.

    Args:
        components: the base with all words of the request; bit-identical afterwards.
        uses: the concepts whose weights act there, each with its strength.
        where: (h, w) on the grid of the latents, as in `View`.
        read: prompt and boxes as they are read here, not attached yet.
        count: pictures of the run.
        lasting: ends with the run.
        more: further attributes of the view.
    """
    (text, things), alone = read, [(weights_alone(concept), strength) for concept, strength in uses]
    with attached(components, alone) as taught:
        lasting.enter_context(text.attach(taught, count))
        if things is not None:
            things.read(taught, count)
        own = weights_of(taught, [concept for concept, _ in uses])
    instead = {Text: text} if things is None else {Text: text, Boxes: things}
    return View(where[None, None].to(components.device, torch.float32), own, instead, **more)


def covered_by(boxes: Sequence[Box], size: tuple[int, int], factor: int) -> Tensor:
    """Return the cells (h, w) of the latents in boxes as 1; `size` is in pixels, `factor` pixels to a cell."""
    width, height = (side // factor for side in size)
    return torch.stack([on_grid(box.box, width, height) for box in boxes]).any(dim=0).float()


def boxes_seen(request: Request, learned: Sequence[Concept], index: int | None) -> Boxes:
    """Return the boxes of a request as the concept at `index` sees them, or as a part without a concept does (None).

    Its own is that of a thing without a name, since what goes there comes from the prompt; in the others are things of
    the kinds that the other concepts started from.
    """
    kinds = {one.token: one.card.init for place, one in enumerate(learned) if place != index and one.card.init}

    def plain(phrase: str) -> str:
        for token, kind in kinds.items():
            phrase = phrase.replace(token, kind)
        return phrase

    named = [box.model_copy(update={"phrase": plain(box.phrase)}) for box in request.boxes]
    own = {} if index is None else {learned[index].token: learned[index].card.init}
    return Boxes([named], float(request.grounding.beta or 0), own)


def composed(everywhere: Tensor, views: Sequence[tuple[View, Tensor]]) -> Tensor:
    """Return the prediction (B, C, h, w) that is in each place that of the views there, or of the base.

    Args:
        everywhere: prediction of the base.
        views: each with its prediction.
    """
    if not views:
        return everywhere
    total = torch.stack([one.where for one, _ in views]).sum(dim=0)
    blended = everywhere * (1 - total).clamp(min=0)
    for one, prediction in views:
        blended = blended + prediction * (one.where / total.clamp(min=1))
    return blended.to(everywhere.dtype)
