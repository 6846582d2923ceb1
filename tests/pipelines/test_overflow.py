"""Pictures that are no numbers are an error that names what did it, never a black file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipelines import Concept, ConceptCard, ConceptUse, Request, generate
from pipelines.concepts.weight_deltas import Difference
from pipelines.errors import NotNumbers
from pipelines.overflow import require_numbers
from studio.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def drawn(base, prompt="a <x> fox", *concepts, **fields):
    uses = tuple(ConceptUse(source=one.token) for one in concepts)
    asked = Request(prompt=prompt, concepts=uses, steps=1, width=16, height=16, **fields)
    return generate(base, asked, concepts={one.token: one for one in concepts})


def word(base, size, token="<x>"):
    rows = tuple(torch.full((1, encoder.config.hidden_size), size) for encoder in base.text_encoders)
    return Concept(ConceptCard(token=token, family=base.family.name), rows)


def test_a_weight_that_overflows_is_named(base):
    with pytest.raises(NotNumbers, match=r"^The picture became .*'fox' weighs (inf|1e\+41).*0 to 2"):
        drawn(base, "a (fox:99999999999999999999999999999999999999999)")
    with pytest.raises(NotNumbers, match="'dog' weighs"):
        drawn(base, "a fox", negative_prompt="a (dog:99999999999999999999999999999999999999999)")


def test_a_concept_that_overflows_is_named_among_others(base):
    with pytest.raises(NotNumbers, match=r"the concept <huge> holds numbers up to 1e\+30.*less strength"):
        drawn(base, "a <x> <huge>", word(base, 0.1), word(base, 1e30, "<huge>"))
    weight = dict(base.unet.named_parameters())["conv_in.weight"]
    changed = Concept(
        ConceptCard(token="zz fox", family=base.family.name, vectors=0),
        changes={"unet.conv_in.weight": Difference(torch.full_like(weight, 1e38))},
    )
    with pytest.raises(NotNumbers, match="the concept zz fox holds numbers up to 1e"):
        drawn(base, "a zz fox", changed)
    assert drawn(base, "a <x>", word(base, 0.1)).pictures, "the base is as before"


def test_without_a_culprit_what_may_help_is_told(base):
    broken = torch.tensor([0.0, float("nan")])
    plain = Request(prompt="a fox")
    with pytest.raises(NotNumbers, match="smaller guidance scale"):
        require_numbers(broken, "The picture", base, plain, [])
    used = Request(prompt="a <x>", concepts=(ConceptUse(source="x"),))
    with pytest.raises(NotNumbers, match=r"with <x>.*leave one out"):
        require_numbers(broken, "The picture", base, used, [word(base, 0.1)])
    half = replace(base, vae=base.vae, denoiser=tiny.sd(seed=1).unet.half())
    with pytest.raises(NotNumbers, match=r"in float16.*--dtype float32"):
        require_numbers(broken, "The picture", half, plain, [])


def test_pixels_that_are_no_numbers_are_told_too(base):
    broken = tiny.sd(seed=1)
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NotNumbers, match="The decoded picture"):
        drawn(broken, "a fox")


def test_nothing_is_written_and_the_command_fails(tmp_path, capsys):
    prompt = "a (fox:99999999999999999999999999999999999999999)"
    assert main(["generate", prompt, "--steps", "1", "--output", str(tmp_path / "out")]) == 2
    assert "'fox' weighs" in capsys.readouterr().err and not list(tmp_path.rglob("*.png"))
