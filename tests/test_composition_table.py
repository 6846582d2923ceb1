"""The table of what goes together in one picture, drawn on small bases; `python -m tests.test_composition_table`.

A pair goes together if each of the two changes what the other one alone draws. One that is silently without effect
beside the other fails; one that is refused in words is named in the table.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.concepts.weight_deltas import LowRank
from pipelines.errors import StudioError
from pipelines.generation import generate
from pipelines.request.boxes import Box
from pipelines.request.enlarge import Enlarge
from pipelines.request.guidance import Prompt
from pipelines.request.regions import Region
from pipelines.request.request import ConceptUse, Grounding, Request
from tests import tiny, tiny_flows

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "guidance-and-regions.md"
BASES = {"SD": tiny.gated, "SDXL": tiny.sdxl, "SD3": lambda: tiny_flows.base("sd3")}
LEFT, MIDDLE = (0.0, 0.0, 0.5, 1.0), (0.2, 0.2, 0.8, 0.8)
WORD, WEIGHTS = ConceptUse(source="word"), ConceptUse(source="weights")
FEATURES = {
    "learned word": {"prompt": "a <w>", "concepts": (WORD,)},
    "learned weights": {"concepts": (WEIGHTS,)},
    "boxes": {"boxes": (Box(phrase="a fox", box=MIDDLE),), "grounding": Grounding(beta=1.0)},
    "boxes' scale": {"boxes": (Box(phrase="a fox", box=MIDDLE),), "grounding": Grounding(beta=1.0, scale=6.0)},
    "region": {"regions": (Region(prompt="a cat", box=LEFT),)},
    "further prompt": {"also": (Prompt(prompt="a house", weight=0.7),)},
    "negative prompt": {"negative_prompt": "a dog"},
    "picture": {},
    "mask": {},
    "larger": {"enlarge": Enlarge(factor=2.0, strength=0.5)},
    "interval": {"guidance": {"start": 0.5}},
    "apg": {"guidance": {"preset": "apg", "norm": 1.0}},
    "cfg-zero": {"guidance": {"preset": "cfg-zero"}},
    "tcfg": {"guidance": {"preset": "tcfg"}},
    "pag": {"guidance": {"preset": "pag"}},
    "seg": {"guidance": {"preset": "seg"}},
    "excite": {"excite": {"words": "fox", "tries": 2}},
    "autoguidance": {"concepts": (WEIGHTS,), "guidance": {"preset": "autoguidance"}},
}
"""The fields that ask for each."""
GUIDANCES = {name for name, fields in FEATURES.items() if "preset" in fields.get("guidance", {})}
ONE_OF = (GUIDANCES, {"picture", "mask"}, {"boxes", "boxes' scale"}, {"learned weights", "autoguidance"})
"""Of these one is asked for at most, or one includes the other."""


def pairs():
    return [pair for pair in itertools.combinations(FEATURES, 2) if not any(set(pair) <= group for group in ONE_OF)]


@cache
def base(family):
    return BASES[family]()


@cache
def concepts(family):
    own = base(family)
    rows = tuple(row + torch.linspace(-1, 1, row.shape[1]) for row in single_rows(own, "fox"))
    word = Concept(ConceptCard(token="<w>", init="fox", family=own.family.name, vectors=1), rows)
    return {"word": word, "weights": weights(own)}


def weights(own):
    """A low-rank change of all attention of the denoiser, without a word."""
    generator, changes = torch.Generator().manual_seed(1), {}
    for name, parameter in own.denoiser.named_parameters():
        if name.endswith(("to_v.weight", "to_out.0.weight")) and "fuser" not in name:
            down, up = (torch.randn(2, n, generator=generator) for n in reversed(parameter.shape))
            changes[f"{own.family.network}.{name}"] = LowRank(down, up.T.contiguous(), 1.0)
    return Concept(ConceptCard(token="lora", family=own.family.name, method="lora"), (), changes)


@cache
def files():
    """A picture and a mask."""
    folder = Path(tempfile.mkdtemp())
    picture, mask = Image.new("RGB", (32, 32), (200, 90, 40)), Image.new("L", (32, 32))
    ImageDraw.Draw(picture).rectangle((0, 0, 15, 15), fill=(20, 60, 220))
    ImageDraw.Draw(mask).rectangle((8, 0, 31, 31), fill=255)
    for name, one in (("picture", picture), ("mask", mask)):
        one.save(folder / f"{name}.png")
    return folder


def fields_of(*names):
    """The fields of a request for all of these, on one prompt."""
    fields = {"prompt": "a fox", "steps": 3, "width": 32, "height": 32}
    guidance, concepts = {"scale": 4.0, "rescale": 0.0}, []
    for name in names:
        fields |= FEATURES[name]
        guidance |= FEATURES[name].get("guidance", {})
        concepts += FEATURES[name].get("concepts", ())
    if {"excite", "learned word"} <= set(names):
        fields["excite"] = {**fields["excite"], "words": "<w>"}
    if painting := ONE_OF[1] & set(names):
        mask = {"mask": str(files() / "mask.png")} if "mask" in painting else {}
        fields["inpaint"] = {"image": str(files() / "picture.png"), "strength": 0.7, **mask}
    return fields | {"guidance": guidance, "concepts": concepts}


@cache
def drawn(family, *names):
    """Return the latents, or the sentence that refuses them."""
    try:
        return generate(base(family), Request.read(fields_of(*names)), concepts=concepts(family)).latents
    except StudioError as error:
        return str(error)


def together(family, one, other):
    """Return "yes", or "no" for what is refused.

    Raises:
        AssertionError: if one of the two is silently without effect.
    """
    both = drawn(family, one, other)
    if isinstance(both, str):
        return "no"
    assert torch.isfinite(both).all()
    for name in (one, other):
        alone = drawn(family, name)
        assert not isinstance(alone, str), f"{name} is refused alone ({alone}) and not with the other"
        if alone.shape == both.shape:
            assert (alone - both).abs().max() > 1e-5, f"{family}: {one} and {other} draw what {name} draws alone"
    return "yes"


def row(name):
    """A line of the table: the bases that can do it, and what it is refused beside though both can be done alone."""
    able = [family for family in BASES if not isinstance(drawn(family, name), str)]
    apart = {}
    for pair in (pair for pair in pairs() if name in pair):
        (other,) = set(pair) - {name}
        for family in able:
            if not isinstance(drawn(family, other), str) and together(family, *pair) == "no":
                apart.setdefault(other, []).append(family)
    groups = [group - {name} for group in ONE_OF if name in group]
    instead = sorted(set().union(*groups), key=list(FEATURES).index)
    beside = [other if families == able else f"{other} ({', '.join(families)})" for other, families in apart.items()]
    return f"| {name} | {', '.join(able)} | {', '.join(beside)} | {', '.join(instead)} |"


def lines():
    return ["| | on | refused beside | one of |", "|---|---|---|---|", *map(row, FEATURES)]


@pytest.mark.parametrize("family", list(BASES))
def test_what_goes_together_does_something_together(family):
    wrong = []
    for one, other in pairs():
        try:
            together(family, one, other)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


def test_the_page_says_what_goes_together():
    text = PAGE.read_text(encoding="utf-8")
    assert "\n".join(lines()) in text


if __name__ == "__main__":
    print("\n".join(lines()))
