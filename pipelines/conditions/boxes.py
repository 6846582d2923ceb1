"""Boxes: things placed at given positions (GLIGEN, Li et al., arXiv:2301.07093).

Tokens of the boxed things are read by gated self-attention layers ("fusers") between self- and cross-attention. They do
not depend on the step, so everything up to the layers' own projections of them is computed once a run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor, nn

from pipelines.condition import Branch, Step
from pipelines.errors import RequestError
from pipelines.gligen.pictures import picture_embeddings
from pipelines.gligen.tokens import SLOTS, grounding_input, has_grounding, phrase_embeddings, read_as
from pipelines.models.components import Components, Conditioning
from pipelines.request.request import Box

_LEARNED_WORD = re.compile(r"<[^<>\s]+>")


class Boxes:
    """Grounding of the conditional branch; the null form, the learned null tokens, in the other.

    Args:
        sets: boxes of every picture alike, `[boxes]`, or of each picture its own. A picture with an empty set is drawn
            as if there were no boxes at all.
        beta: share of the steps, from the first, in which the boxes act (scheduled sampling, section 4.2). Afterwards
            the layers are not run at all.
        learned: learned words that boxes may name, each with the word it started from.
    """

    def __init__(
        self, sets: Sequence[Sequence[Box]], beta: float = 0.3, learned: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.sets = sets
        self.beta = beta
        self.learned = learned
        self._objects: dict[Branch, dict[str, Tensor]] = {}

    @contextmanager
    def attach(self, components: Components, count: int) -> Iterator[None]:
        """Read phrases and boxes once for the run, and let the layers take what was read.

        Raises:
            RequestError: as `read`.
        """
        self.read(components, count)
        if not self._objects:
            yield
            return
        try:
            with ExitStack() as patched:
                patched.enter_context(_instead(components.unet.position_net, _as_given))
                for name, fuser in _fusers(components).items():
                    patched.enter_context(_instead(fuser, _fused(fuser, name)))
                yield
        finally:
            self._objects = {}

    def read(self, components: Components, count: int) -> None:
        """Read phrases and boxes for a run of `count` pictures, which another `Boxes` is attached for.

        Raises:
            RequestError: if the base has no grounding, a box names an unknown word or a picture the base cannot read,
                there are neither one nor `count` box sets, or others are attached already.
        """
        sets = self._checked(components, count)
        if not any(sets):
            return
        unet, fusers = components.unet, _fusers(components)
        if vars(unet.position_net).get("forward") is _as_given:
            raise RequestError("This request has boxes twice: its own and a condition's.", "Leave one of them out.")
        with torch.no_grad():
            # In half precision the Fourier features of a box would be off by pixels.
            read = copy.deepcopy(unet.position_net).float()
            # Where the layers lie, which may wait elsewhere than they work.
            device = next(unet.position_net.parameters()).device
            given = {name: one.to(device) for name, one in _given(components, sets, self.learned).items()}
            null = {name: torch.zeros_like(one) if "masks" in name else one for name, one in given.items()}
            for branch, tokens in ((Branch.POSITIVE, given), (Branch.NEGATIVE, null)):
                objects: Tensor = read(**tokens).to(components.dtype)
                told = {name: fuser.norm1(fuser.linear(objects)) for name, fuser in fusers.items()}
                self._objects[branch] = {name: one.to(components.device) for name, one in told.items()}
                if not all(sets):
                    boxed = torch.tensor([bool(one) for one in sets], device=components.device)
                    self._objects[branch]["boxed"] = boxed[:, None, None]

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return the things' tokens for every layer; nothing once the boxes' share of the steps is over."""
        if not self._objects or not step.within(self.beta):
            return {}
        # The UNet calls its position net with what is in "gligen", and hands the layers what that gives.
        return {"cross_attention_kwargs": {"gligen": {"objects": self._objects[branch]}}}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def _checked(self, components: Components, count: int) -> list[Sequence[Box]]:
        """Return one box set for each picture, all of which this base can follow."""
        sets = [*self.sets] * (count if len(self.sets) == 1 else 1)
        if len(sets) != count and any(sets):
            raise RequestError(
                f"There are {len(sets)} sets of boxes for {count} pictures.", "Give one for all, or one for each."
            )
        for boxes in sets:
            for number, box in enumerate(boxes, 1):
                if why := _refusal(components, number, box):
                    raise RequestError(f"Box {number} ({box.phrase!r:.60}): {why[0]}", why[1])
        return sets


def _fusers(components: Components) -> dict[str, GatedSelfAttentionDense]:
    """Return the gated layers by their names in the UNet."""
    return {name: one for name, one in components.unet.named_modules() if isinstance(one, GatedSelfAttentionDense)}


def _refusal(components: Components, number: int, box: Box) -> tuple[str, str] | None:
    """Return why this base cannot follow a box, and what to do about it; None if it can."""
    if not has_grounding(components.unet):
        return (
            f"{components.name} has no grounding.",
            "Use a base with gated layers, or attach an adapter of them with --grounding-adapter FILE.",
        )
    if number > SLOTS:
        return (f"there is room for {SLOTS} boxes in a picture.", f"Give at most {SLOTS}.")
    words = components.tokenizers[0].get_vocab()
    for word in _LEARNED_WORD.findall(box.phrase):
        if word not in words:
            return (f"{word} is no concept of this request.", "Give its file with --concept, or correct the word.")
    if box.picture is not None and not _reads_pictures(components):
        return (
            f"the grounding of {components.name} reads phrases, no pictures.",
            "Leave the picture out, or teach it as a concept and name that.",
        )
    return None


def _reads_pictures(components: Components) -> bool:
    return hasattr(components.unet.position_net, "linears_image")


def _given(components: Components, sets: Sequence[Sequence[Box]], learned: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the inputs of the position net, one row for each picture; equal phrases or pictures are encoded once."""
    listed = [read_as([box.phrase for box in boxes], components.family.name, learned) for boxes in sets]
    embeddings, masks = _table(components, listed, phrase_embeddings)
    edges = torch.zeros(*masks.shape, 4)
    for row, boxes in enumerate(sets):
        for place, box in enumerate(boxes):
            edges[row, place] = torch.tensor(box.box)
    arguments = grounding_input(embeddings, edges, masks)["gligen"]
    if _reads_pictures(components):
        phrases, masks = arguments.pop("positive_embeddings"), arguments["masks"]
        pictures, shown = _table(components, [[box.picture for box in boxes] for boxes in sets], picture_embeddings)
        shown_as = grounding_input(pictures, edges, shown)["gligen"]
        arguments |= {"phrases_embeddings": phrases, "phrases_masks": masks}
        arguments |= {"image_embeddings": shown_as["positive_embeddings"], "image_masks": shown_as["masks"]}
    return {name: tensor.to(components.device) for name, tensor in arguments.items()}


def _table(
    components: Components,
    listed: Sequence[Sequence[str | None]],
    embed: Callable[[Components, Sequence[str]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return embeddings (B, n, dim) of the entries of each picture, and masks (B, n), 0 where there is no entry."""
    different = sorted({one for row in listed for one in row if one is not None})
    embedded = dict(zip(different, embed(components, different) if different else (), strict=True))
    masks = torch.zeros(len(listed), max(len(row) for row in listed))
    embeddings = torch.zeros(*masks.shape, components.unet.config["cross_attention_dim"])
    for row, ones in enumerate(listed):
        for place, one in enumerate(ones):
            if one is not None:
                embeddings[row, place] = embedded[one]
                masks[row, place] = 1
    return embeddings, masks


def _as_given(objects: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a forward for the position net that gives tokens computed before."""
    return objects


def _fused(fuser: Any, name: str) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    """Return a forward for the gated layer (section 4.1, eq. 8) that looks up the things' tokens by its name.

    Visual tokens alone ask: the answers of the things' tokens would be thrown away.
    """

    def forward(hidden: Tensor, objects: Mapping[str, Tensor]) -> Tensor:
        own = fuser.norm1(hidden)
        attended = fuser.attn(own, encoder_hidden_states=torch.cat([own, objects[name]], dim=1))
        grounded = hidden + fuser.alpha_attn.tanh() * attended
        grounded = grounded + fuser.alpha_dense.tanh() * fuser.ff(fuser.norm2(grounded))
        return torch.where(objects["boxed"], grounded, hidden) if "boxed" in objects else grounded

    return forward


@contextmanager
def _instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of a module inside the `with`."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
