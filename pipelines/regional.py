"""Weights in regions: several concepts that change the same weights in one picture, each in its own boxes.

Laid in together, their changes add up everywhere, and each thing turns into a mixture of both. Here the prediction is
composed place by place instead, as in MultiDiffusion (Bar-Tal et al., arXiv:2302.08113, eq. 5, with the regions of its
section 5.2): in the boxes that name a concept it is that of the base with this concept's weights, elsewhere that of the
base without any of them. Where boxes overlap the predictions are averaged. Each concept costs one more prediction a
step; nothing is trained, and any base can do it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipelines.concepts.concept import Concept, attached
from pipelines.concepts.formats.delta_tensors import same
from pipelines.condition import Condition
from pipelines.conditions.boxes import Boxes
from pipelines.conditions.regions import on_grid
from pipelines.conditions.text import Text
from pipelines.models.components import Components
from pipelines.request.request import Box, Request
from pipelines.words import says


@dataclass(frozen=True)
class View:
    """The base with the weights of one concept, for a part of the picture.

    Attributes:
        where: (1, 1, h, w) on the grid of the latents, 1 in the boxes of the concept.
        weights: layers of the denoiser, the names of their parameters, and what these are here.
        instead: conditions as they are read here, attached already, in the place of those of their kind.
    """

    where: Tensor
    weights: Sequence[tuple[torch.nn.Module, str, torch.nn.Parameter]]
    instead: Mapping[type, Condition] = field(default_factory=dict)

    def conditions(self, everywhere: Sequence[Condition]) -> list[Condition]:
        """Return the conditions of the run as they are here."""
        return [self.instead.get(type(one), one) for one in everywhere]

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Give the denoiser these weights while the `with` lasts; afterwards it has its own, bit for bit."""
        own = [getattr(layer, leaf) for layer, leaf, _ in self.weights]
        try:
            for layer, leaf, here in self.weights:
                setattr(layer, leaf, here)
            yield
        finally:
            for (layer, leaf, _), before in zip(self.weights, own, strict=True):
                setattr(layer, leaf, before)


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


def without_weights(concepts: Sequence[Concept], those: Mapping[int, object]) -> list[Concept]:
    """Return the concepts, those at these places without their changed weights."""
    return [replace(one, changes={}) if index in those else one for index, one in enumerate(concepts)]


def weights_alone(concept: Concept) -> Concept:
    """Return the changed weights of a concept, without its word."""
    return Concept(concept.card, (), concept.changes)


def view(
    components: Components,
    use: tuple[Concept, float],
    boxes: Sequence[Box],
    read: tuple[Text, Boxes],
    count: int,
    lasting: ExitStack,
) -> View:
    """Return the view of a concept.

    Args:
        components: the base with all words of the request; bit-identical afterwards.
        use: the concept and its strength.
        boxes: those that name it.
        read: prompt and boxes as they are read here, not attached yet.
        count: pictures of the run.
        lasting: ends with the run.
    """
    (concept, strength), (text, things) = use, read
    prefix = f"{components.family.network}."
    names = [key.removeprefix(prefix) for key in concept.changes if key.startswith(prefix)]
    with attached(components, [(weights_alone(concept), strength)]) as taught:
        lasting.enter_context(text.attach(taught, count))
        things.read(taught, count)
        places = [name.rpartition(".") for name in names]
        weights = [
            (components.denoiser.get_submodule(path), leaf, taught.denoiser.get_parameter(f"{path}.{leaf}"))
            for path, _, leaf in places
        ]
    width, height = (side // components.factor for side in text.size)
    where = torch.stack([on_grid(box.box, width, height) for box in boxes]).any(dim=0)
    where = where[None, None].to(components.device, torch.float32)
    return View(where, weights, {Text: text, Boxes: things})


def boxes_seen(request: Request, learned: Sequence[Concept], index: int) -> Boxes:
    """Return the boxes of a request as the concept at `index` sees them.

    Its own is that of a thing without a name, since what goes there comes from the prompt; in the others are things of
    the kinds that the other concepts started from.
    """
    kinds = {one.token: one.card.init for place, one in enumerate(learned) if place != index and one.card.init}

    def plain(phrase: str) -> str:
        for token, kind in kinds.items():
            phrase = phrase.replace(token, kind)
        return phrase

    named = [box.model_copy(update={"phrase": plain(box.phrase)}) for box in request.boxes]
    return Boxes([named], float(request.grounding.beta or 0), {learned[index].token: learned[index].card.init})


def composed(everywhere: Tensor, views: Sequence[tuple[View, Tensor]]) -> Tensor:
    """Return the prediction (B, C, h, w) that is in each place that of the views there, or of the base.

    Args:
        everywhere: prediction of the base.
        views: each with its prediction.
    """
    if not views:
        return everywhere
    total = torch.stack([one.where for one, _ in views]).sum(dim=0)
    blended = everywhere * (total == 0)
    for one, prediction in views:
        blended = blended + prediction * (one.where / total.clamp(min=1))
    return blended.to(everywhere.dtype)
