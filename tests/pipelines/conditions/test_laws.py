"""Laws every condition obeys; a new one is under them by its line in `CONDITIONS`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

import pipelines.conditions
from pipelines.condition import Branch, Canvas, Step, merge, stack
from pipelines.conditions.analogist import Analogist
from pipelines.conditions.attention_maps import AttentionMaps
from pipelines.conditions.boxes import Boxes
from pipelines.conditions.distilled import DistilledGuidance
from pipelines.conditions.excite import Excitation
from pipelines.conditions.grid import Canvases
from pipelines.conditions.inpaint import Inpainting
from pipelines.conditions.preview import Watch
from pipelines.conditions.regions import Regions
from pipelines.conditions.text import Text
from pipelines.denoising import denoise
from pipelines.models.components import CONCAT
from pipelines.models.loading import from_pipeline
from pipelines.pictures.grids import Grid
from pipelines.request.excite import Excite
from pipelines.request.request import Box, Guidance, Request
from tests import tiny

CANVAS, CELL = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
CONDITIONS = {
    "text": lambda: Text("a fox", "a dog", (16, 16)),
    "inpaint": lambda: Inpainting(Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 255), strength=0.5),
    "boxes": lambda: Boxes([[Box(phrase="a fox", box=(0.1, 0.2, 0.5, 0.6))]], 1.0),
    "distilled": lambda: DistilledGuidance(Guidance(scale=8.0)),
    "preview": lambda: Watch(lambda event: None),
    "attention_maps": lambda: AttentionMaps("a fox"),
    "excite": lambda: Excitation(Excite(words="fox"), "a fox"),
    "grid": lambda count=1: Canvases(CANVAS.expand(count, -1, -1, -1), CELL.expand(count, -1, -1, -1)),
    "analogist": lambda: Analogist(Grid()),
    "regions": lambda: Regions([Box(phrase="a fox", box=(0.1, 0.2, 0.5, 0.6))], "a fox", "a dog", (16, 16)),
}
LCM = {"lcm": lambda: tiny.frozen(from_pipeline(tiny.lcm_pipeline(), "tiny-lcm"))}
ANY = {"sd": tiny.sd, "sdxl": tiny.sdxl, "inpainting": tiny.sd_inpaint}
BASES = {"text": ANY, "inpaint": ANY, "boxes": {"gated": tiny.gated}, "regions": ANY, "preview": ANY,
         "attention_maps": ANY, "excite": ANY, "grid": {"inpainting": tiny.sd_inpaint}, "analogist": ANY,
         "distilled": LCM | ANY}  # fmt: skip
"""For each condition, the bases it is for."""
SAMPLE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
STEP = Step(0, 4, torch.tensor(900), torch.tensor(600), lambda: SAMPLE)


@pytest.fixture(params=[(condition, base) for condition, bases in BASES.items() for base in bases], ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def condition(case):
    return CONDITIONS[case[0]]()


@pytest.fixture
def base(case):
    return BASES[case[0]][case[1]]()


@contextmanager
def running(condition, base, count=1):
    """The condition attached, and begun if a picture is painted on."""
    with condition.attach(base, count):
        if isinstance(condition, Canvas):
            scheduler = DDIMScheduler.from_config(base.scheduler_config)
            scheduler.set_timesteps(4)
            condition.begin(torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0)), scheduler)
        yield


def test_every_file_of_conditions_is_listed_here():
    from pathlib import Path

    folder = Path(pipelines.conditions.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(CONDITIONS) == set(BASES)


def test_the_null_form_has_the_same_keys_and_shapes(case, base):
    condition = CONDITIONS[case[0]](*([2] if case[0] == "grid" else []))  # it holds the canvas of each picture
    with running(condition, base, 2):
        stacked = stack([condition.conditioning(branch, STEP) for branch in Branch])
    rows = {tensor.shape[0] for tensor in leaves(stacked)}
    assert rows == ({4} if stacked else set())


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


def test_arguments_fit_the_unet_and_the_branches_of_a_prompt_differ(condition, base):
    """A condition alone where it is the text; else beside it, and beside a picture where the UNet reads one."""
    named = ("text",) if isinstance(condition, Canvas) else ("text", "inpaint")
    others = [CONDITIONS[name]() for name in named if not isinstance(condition, type(CONDITIONS[name]()))]
    together = [condition, *others]
    with ExitStack() as stack, torch.no_grad():
        for one in together:
            stack.enter_context(running(one, base))
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        guesses = []
        for branch in Branch:
            given = merge([one.conditioning(branch, STEP) for one in together])
            joined = torch.cat([sample, given.pop(CONCAT, sample[:, :0])], dim=1)
            guesses.append(base.unet(joined, STEP.timestep, **given).sample)
    assert guesses[0].shape == sample.shape
    assert not torch.equal(*guesses)


def test_constraining_keeps_shape_and_type(condition, base):
    latents = torch.randn(1, 4, 8, 8)
    with running(condition, base):
        constrained = condition.constrain(latents, STEP)
    assert constrained.shape == latents.shape and constrained.dtype == latents.dtype


def test_text_asks_nothing_of_the_latents():
    latents = torch.randn(1, 4, 8, 8)
    assert Text("a fox").constrain(latents, STEP) is latents


def test_a_condition_can_be_used_again(condition, base):
    given = []
    for _ in range(2):
        with running(condition, base):
            given.append([*leaves(condition.conditioning(Branch.POSITIVE, STEP)), condition.constrain(SAMPLE, STEP)])
    assert all(torch.equal(*pair) for pair in zip(*given, strict=True))


# -- laws of several conditions, run by the loop ------------------------------------------------------------------

WHOLE = (0.0, 0.0, 1.0, 1.0)
NEUTRAL = {
    "text": None,  # there is no picture without it
    "grid": None,  # its UNet reads nothing without it
    "inpaint": lambda: Inpainting(Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 255), strength=1.0),
    "boxes": lambda: Boxes([[Box(phrase="a fox", box=(0.1, 0.2, 0.5, 0.6))]], 0.0),
    "distilled": lambda: DistilledGuidance(Guidance(scale=8.0)),
    "preview": lambda: Watch(lambda event: None),
    "attention_maps": lambda: AttentionMaps("a fox"),
    "excite": lambda: Excitation(Excite(words="fox", strength=0.0), "a fox"),
    "analogist": lambda: Analogist(Grid(), within=(0.0, 0.0)),
    "regions": lambda: Regions([Box(phrase="a fox", box=WHOLE)], "a fox", "a dog", (16, 16)),
}
"""Each condition with settings that ask for nothing, or None with the reason. A new condition adds its line."""
ALONE = ("sd", "sdxl", "gated")
"""Bases that draw from text alone and were not distilled."""


def drawn(base, *conditions):
    """Return latents of three steps with these conditions, attached and asked in this order."""
    request = Request(prompt="a fox", steps=3, guidance=Guidance(scale=3.0)).resolved(base.defaults)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with ExitStack() as stack, torch.no_grad():
        for one in conditions:
            stack.enter_context(one.attach(base, 1))
        return denoise(base, request, list(conditions), (noise, [torch.Generator()]), lambda event: None, lambda: False)


def text():
    return CONDITIONS["text"]()


def test_every_condition_has_a_neutral_form_or_none():
    assert set(NEUTRAL) == set(CONDITIONS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name, make in NEUTRAL.items() if make for kind in BASES[name] if kind in ALONE],
)
def test_the_neutral_form_changes_nothing_and_the_other_does(name, kind):
    base = BASES[name][kind]()
    plain = drawn(base, text())
    torch.testing.assert_close(drawn(base, text(), NEUTRAL[name]()), plain, atol=1e-5, rtol=1e-4)
    if name in ("inpaint", "analogist", "regions"):  # closed gates of boxes let nothing through; the others ask nothing
        assert (drawn(base, text(), CONDITIONS[name]()) - plain).abs().max() > 1e-4


def test_the_order_of_conditions_does_not_matter(case, base):
    name, kind = case
    if kind == "inpainting" and name not in ("inpaint", "grid"):
        made = [text(), CONDITIONS["inpaint"](), *([CONDITIONS[name]()] if name != "text" else [])]
    else:
        made = [text(), *([CONDITIONS[name]()] if name != "text" else []), CONDITIONS["preview"]()]
    torch.testing.assert_close(drawn(base, *made), drawn(base, *reversed(made)), atol=1e-5, rtol=1e-4)
