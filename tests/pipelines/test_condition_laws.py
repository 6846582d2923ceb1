"""Laws every condition obeys; a new one is under them by its line in `CONDITIONS`."""

from __future__ import annotations

import pytest
import torch

from pipelines import conditions
from pipelines.conditions import Branch, Step
from pipelines.conditions.boxes import Boxes
from pipelines.conditions.regions import Regions
from pipelines.conditions.text import Text
from pipelines.request import Box
from tests import tiny

CONDITIONS = {
    "text": lambda: Text("a fox", "a dog", (16, 16)),
    "boxes": lambda: Boxes([[Box(phrase="a fox", box=(0.1, 0.2, 0.5, 0.6))]], 1.0),
    "regions": lambda: Regions([Box(phrase="a cat", box=(0.1, 0.2, 0.5, 0.6))], "a cat", "", (16, 16)),
}
BASES = {
    "text": {"sd": tiny.sd, "sdxl": tiny.sdxl},
    "boxes": {"gated": tiny.gated},
    "regions": {"sd": tiny.sd, "sdxl": tiny.sdxl},
}
"""For each condition, the bases it is for."""
STEP = Step(0, 4, torch.tensor(900), torch.tensor(600))


@pytest.fixture(params=[(condition, base) for condition, bases in BASES.items() for base in bases], ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def condition(case):
    return CONDITIONS[case[0]]()


@pytest.fixture
def base(case):
    return BASES[case[0]][case[1]]()


def test_every_file_of_conditions_is_listed_here():
    from pathlib import Path

    folder = Path(conditions.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(CONDITIONS) == set(BASES)


def test_the_null_form_has_the_same_keys_and_shapes(condition, base):
    with condition.attach(base, 2):
        stacked = conditions.stack([condition.unet_kwargs(branch, STEP) for branch in Branch])
    rows = {tensor.shape[0] for tensor in leaves(stacked)}
    assert rows == {4}


def leaves(tree):
    for value in tree.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


def test_no_residue_is_left_also_after_an_error(condition, base):
    before = tiny.snapshot(base)
    with pytest.raises(RuntimeError, match="on purpose"), condition.attach(base, 1):
        raise RuntimeError("on purpose")
    assert tiny.same(before, base)


def test_arguments_fit_the_unet_and_the_branches_differ(condition, base):
    # Every UNet call needs text: the same for both branches, so that it is the condition that tells them apart.
    text = Text("a cat", "a cat", (16, 16))
    others = [] if isinstance(condition, Text) else [text]
    with condition.attach(base, 1), text.attach(base, 1), torch.no_grad():
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        asked = [conditions.merge([c.unet_kwargs(b, STEP) for c in (condition, *others)]) for b in Branch]
        guesses = [base.unet(sample, STEP.timestep, **arguments).sample for arguments in asked]
    assert guesses[0].shape == sample.shape
    assert not torch.equal(*guesses)


def test_constraining_keeps_shape_and_type(condition, base):
    latents = torch.randn(1, 4, 8, 8)
    with condition.attach(base, 1):
        constrained = condition.constrain(latents, STEP)
    assert constrained.shape == latents.shape and constrained.dtype == latents.dtype


def test_text_asks_nothing_of_the_latents():
    latents = torch.randn(1, 4, 8, 8)
    assert Text("a fox").constrain(latents, STEP) is latents


def test_a_condition_can_be_used_again(condition, base):
    given = []
    for _ in range(2):
        with condition.attach(base, 1):
            given.append(next(leaves(condition.unet_kwargs(Branch.POSITIVE, STEP))))
    assert torch.equal(*given)
