"""One guided prediction a step: which predictions a request needs, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipelines import guidance as formulas
from pipelines.condition import Branch, Condition, Step, merge, stack
from pipelines.conditions.attention_maps import AttentionMaps
from pipelines.conditions.boxes import Boxes
from pipelines.conditions.regions import Regions
from pipelines.conditions.text import Text
from pipelines.errors import RequestError
from pipelines.guidance import acts
from pipelines.models.components import Components
from pipelines.predictions.perturbation import require_self_attention, weakened
from pipelines.predictions.weights import Weights
from pipelines.request.guidance import Prompt
from pipelines.request.request import Request

NEGATIVE, UNPLACED, POSITIVE, PERTURBED = "negative", "unplaced", "positive", "perturbed"
"""Predictions of one call, in the order of its batch (diffusers': negative first)."""
WEAKER = "weaker"
"""The prediction under the prompt without the concepts' weights, in a call of its own."""
PAPER_NORM, PAPER_SIZE = 15.0, 4 * 128 * 128
"""APG's longest difference for SDXL, and how many numbers its latents have (arXiv:2410.02416, table 10)."""


def predictions(request: Request, step: Step, distilled: bool = False) -> tuple[str, ...]:
    """Return the predictions that a step needs, those of further prompts not among them.

    Args:
        request: with nothing left open.
        step: position of the loop.
        distilled: whether the denoiser reads the scale instead (`Components.distilled`).
    """
    guidance = request.guidance
    if distilled or not acts(guidance, step):
        return (POSITIVE,)
    needed = {POSITIVE}
    if guidance.scale != 1.0 or request.also:
        needed.add(WEAKER if guidance.preset == "autoguidance" else NEGATIVE)
    placed = request.boxes or request.regions
    if placed and request.grounding.scale is not None and step.within(float(request.grounding.beta or 0)):
        needed.add(UNPLACED)
    if guidance.preset in ("pag", "seg") and guidance.perturbed:
        needed.add(PERTURBED)
    return tuple(one for one in (NEGATIVE, UNPLACED, POSITIVE, PERTURBED, WEAKER) if one in needed)


def refuse_unable(components: Components, request: Request, weaker: Weights | None) -> None:
    """Refuse guidance that this base or request cannot have.

    Raises:
        RequestError: naming it, and the next step.
    """
    guidance = request.guidance
    special = "further prompts (also)" if request.also else f"the guidance {guidance.preset}"
    if components.distilled and (request.also or guidance.preset != "cfg"):
        raise RequestError(
            f"{components.name} was distilled with guidance and predicts once a step, which {special} cannot use.",
            "Use the preset cfg and one prompt, or the base it was distilled from.",
        )
    if guidance.preset in ("pag", "seg"):
        require_self_attention(components, guidance.preset)
    if guidance.preset == "autoguidance" and not (weaker and weaker.values):
        raise RequestError(
            "The guidance autoguidance leads away from the base without the concepts' weights, and no concept of this "
            "request changes weights.",
            "Add one learned by DreamBooth or a LoRA, or use the preset cfg.",
        )
    said = [one.negative_prompt for one in (request, *request.also, *request.regions) if one.negative_prompt]
    if guidance.preset == "autoguidance" and said:
        raise RequestError(
            f"The guidance autoguidance has no place for the negative prompt {said[0]!r:.60}: it leads away from the "
            "base without the concepts' weights instead.",
            "Say it as a further prompt with a weight below 0 (also), or use the preset cfg.",
        )


@dataclass
class Guided:
    """The guided prediction of a run, or of one region of it.

    Attributes:
        components: the base.
        request: with nothing left open.
        conditions: attached ones.
        also: further prompts, attached, in the order of the request.
        weaker: weights of the base without its concepts.
    """

    components: Components
    request: Request
    conditions: Sequence[Condition]
    also: Sequence[Text] = ()
    weaker: Weights | None = None
    _momentum: dict[int, Tensor] = field(default_factory=dict)
    _tile: tuple[int, int] = (-1, 0)

    def __call__(self, sample: Tensor, time: Tensor, step: Step) -> Tensor:
        """Return the prediction (B, C, h, w) for latents as the sampler scales them, at their time."""
        wanted = predictions(self.request, step, self.components.distilled)
        together = [one for one in wanted if one != WEAKER]
        given = dict(zip(together, self._called(together, sample, time, step), strict=True))
        if WEAKER in wanted and self.weaker is not None:
            with self.weaker.worn():
                (given[WEAKER],) = self._called([WEAKER], sample, time, step)
        further: list[tuple[Prompt, Tensor, Tensor | None]] = []
        if len(wanted) > 1:
            for prompt, text in zip(self.request.also, self.also, strict=True):
                both = [NEGATIVE, POSITIVE] if prompt.negative_prompt else [POSITIVE]
                *own, told = self._called(both, sample, time, step, text)
                further.append((prompt, told, own[0] if own else None))
        return self._combined(given, further, sample, time, step)

    def under_prompt(self, sample: Tensor, time: Tensor, step: Step) -> Tensor:
        """Return the prediction under the prompt alone, which nobody watches."""
        unwatched = [one for one in self.conditions if not isinstance(one, AttentionMaps)]
        return replace(self, conditions=unwatched)._called([POSITIVE], sample, time, step)[0]

    def _called(
        self, names: Sequence[str], sample: Tensor, time: Tensor, step: Step, text: Text | None = None
    ) -> tuple[Tensor, ...]:
        """Return the predictions of one call, with another prompt if there is one."""
        components, told = self.components, []
        for name in names:
            parts = [_read(one, name, step, text) for one in self.conditions]
            told.append(merge(parts))
        guidance, ratio = self.request.guidance, sample.shape[-1] / sample.shape[-2]
        with ExitStack() as call:
            if PERTURBED in names:
                call.enter_context(weakened(components, guidance.preset, guidance.blur, len(names), ratio))
            for one in self.conditions:
                if isinstance(one, AttentionMaps) and text is None:
                    call.enter_context(one.watching([name == POSITIVE for name in names], sample))
            batch = torch.cat([sample] * len(names)).to(components.dtype)
            output = components.family.predict(components, batch, time, stack(told))
        return output.chunk(len(names))

    def _combined(
        self,
        given: Mapping[str, Tensor],
        further: Sequence[tuple[Prompt, Tensor, Tensor | None]],
        sample: Tensor,
        time: Tensor,
        step: Step,
    ) -> Tensor:
        """Return one prediction of those there are."""
        guidance, c = self.request.guidance, given[POSITIVE]
        if len(given) == 1:
            return c
        if guidance.preset == "cfg-zero" and step.before + step.index < self._still():
            return torch.zeros_like(c)
        u = given.get(NEGATIVE, given.get(WEAKER))
        scale = formulas.scheduled(
            1.0 if guidance.scale is None else guidance.scale, guidance.schedule, step.index, step.count
        )
        told = given.get(UNPLACED, c)
        guided = told if u is None else self._guided(told, u, scale, (sample, time, step))
        if UNPLACED in given:
            guided = guided + float(self.request.grounding.scale or 0) * (c - told)
        for prompt, prediction, own in further:
            against = u if own is None else own
            guided = guided + scale * prompt.weight * (prediction - (told if against is None else against))
        if PERTURBED in given:
            guided = formulas.pushed(guided, c, given[PERTURBED], guidance.perturbed)
        return formulas.rescaled(guided, c, guidance.rescale) if guidance.rescale else guided

    def _still(self) -> int:
        """Return how many first steps of the schedule are not taken."""
        asked = self.request.guidance.zero_steps
        return int(self.components.family.process(self.components).rests_at_zero) if asked is None else asked

    def _guided(self, c: Tensor, u: Tensor, scale: float, at: tuple[Tensor, Tensor, Step]) -> Tensor:
        """Return c guided away from u by the formula of the preset."""
        guidance, family = self.request.guidance, self.components.family
        if guidance.preset == "apg":
            return self._projected(c, u, scale, *at)
        if guidance.preset == "cfg-zero":
            u = formulas.fitted(c, u)
        elif guidance.preset == "tcfg":
            u = formulas.tangential(c, u)
        return family.guide(c, u, scale)

    def _projected(self, c: Tensor, u: Tensor, scale: float, sample: Tensor, time: Tensor, step: Step) -> Tensor:
        """Return c guided by what is new in its difference from u, seen in finished pictures (APG, algorithm 1)."""
        guidance, place = self.request.guidance, self._place(step)
        kept, share = self.components.family.process(self.components).as_clean(time)
        clean = kept * sample + share * c
        difference = share * (c - u)
        if place in self._momentum:
            difference = difference + guidance.momentum * self._momentum[place]
        self._momentum[place] = difference
        size = (c[0].numel() / PAPER_SIZE) ** 0.5
        difference = formulas.clipped(difference, guidance.norm or PAPER_NORM * size)
        return c + (scale - 1) * formulas.projected(difference, clean, guidance.parallel) / share

    def _place(self, step: Step) -> int:
        """Return which of the predictions of a step this is: a picture drawn in tiles has one for each of them."""
        before, number = self._tile
        self._tile = (step.index, number + 1 if before == step.index else 0)
        return self._tile[1]


def _read(condition: Condition, name: str, step: Step, text: Text | None) -> Mapping[str, object]:
    """Return what a condition says in a prediction.

    The words of another prompt stand in other places, so boxes keep none of them to themselves there.
    """
    branch = Branch.NEGATIVE if name == NEGATIVE else Branch.POSITIVE
    if text is not None and isinstance(condition, Text):
        return text.conditioning(branch, step)
    free = name == UNPLACED and isinstance(condition, Boxes | Regions)
    if free or (text is not None and isinstance(condition, Regions)):
        branch = Branch.NEGATIVE
    return condition.conditioning(branch, step)
