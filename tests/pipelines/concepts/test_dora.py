"""DoRA at any strength and beside other changes, against peft as diffusers drives it."""

from __future__ import annotations

import pytest
import torch

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference, LowRank, applied
from pipelines.generation import generate
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny

ENDS = (".to_q", ".to_k", ".to_v", ".to_out.0")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def concept(base, token, dora, seed, ends=ENDS, rank=2, scale=1.5):
    """Low-rank changes of visible size, with magnitudes that are not those of the base."""
    changes = {}
    for name, layer in base.unet.named_modules():
        if name.endswith(ends) and "fuser" not in name:
            out, into, *kernel = layer.weight.shape
            down = 0.3 * torch.randn(rank, into, *kernel, generator=seeded(seed + len(changes)))
            up = 0.3 * torch.randn(out, rank, *[1 for _ in kernel], generator=seeded(seed + 100 + len(changes)))
            length = layer.weight.detach().flatten(1).norm(dim=1)
            magnitude = length * (0.7 + 0.6 * torch.rand(out, generator=seeded(seed + 200 + len(changes))))
            changes[f"unet.{name}.weight"] = LowRank(down, up, scale, magnitude if dora else None)
    return Concept(ConceptCard(token=token, family="sd1", kind="subject", vectors=0), (), changes)


REQUEST = Request(prompt="a fox", steps=2, seed=2, scheduler="ddim", guidance=Guidance(scale=4.0), width=16, height=16)


def ours(base, uses, concepts):
    asked = tuple(ConceptUse(source=name, strength=strength) for name, strength in uses)
    return generate(base, REQUEST.model_copy(update={"concepts": asked}), concepts=concepts).latents


def theirs(tmp_path, uses, concepts):
    pipeline = tiny.sd_pipeline()
    for name, _ in uses:
        path = concepts[name].save(tmp_path / f"{name}.safetensors")
        pipeline.load_lora_weights(str(path), adapter_name=name)
    pipeline.set_adapters([name for name, _ in uses], [strength for _, strength in uses])
    return pipeline("a fox", num_inference_steps=2, guidance_scale=4.0, height=16, width=16,
                    generator=seeded(2), output_type="latent").images  # fmt: skip


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_at_any_strength_it_is_what_peft_makes_of_it(tmp_path, strength):
    base = tiny.sd()
    concepts = {"d": concept(base, "d", True, 0)}
    drawn = ours(base, [("d", strength)], concepts)
    torch.testing.assert_close(drawn, theirs(tmp_path, [("d", strength)], concepts), atol=1e-4, rtol=0)
    assert not torch.allclose(drawn, generate(base, REQUEST).latents, atol=1e-2)


def test_beside_another_lora_it_is_what_peft_makes_of_both_whatever_the_order(tmp_path):
    base = tiny.sd()
    concepts = {"d": concept(base, "d", True, 0), "l": concept(base, "l", False, 50)}
    uses = [("d", 0.7), ("l", 0.5)]
    drawn = ours(base, uses, concepts)
    torch.testing.assert_close(drawn, theirs(tmp_path, uses, concepts), atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn, ours(base, uses[::-1], concepts), atol=1e-4, rtol=0)


def test_two_of_them_and_a_difference_are_added_to_the_bases_own_weight():
    base = tiny.sd()
    before = tiny.snapshot(base)
    one, other = concept(base, "a", True, 0).changes, concept(base, "b", True, 50).changes
    key = next(iter(one))
    weight = base.unet.get_parameter(key.removeprefix("unet."))
    whole = {key: Difference(torch.full(weight.shape, 0.25))}
    seen = []
    for first, second, third in ((one, other, whole), (whole, other, one), (other, one, whole)):
        with applied(base, first), applied(base, second), applied(base, third):
            seen.append(base.unet.get_parameter(key.removeprefix("unet.")).detach().clone())
    wanted = one[key].changed(weight, 1.0) + other[key].changed(weight, 1.0) - weight + 0.25
    for each in seen:
        torch.testing.assert_close(each, wanted.detach(), atol=1e-5, rtol=0)
    assert tiny.same(before, base)


def test_strength_nought_is_the_base():
    base = tiny.sd()
    concepts = {"d": concept(base, "d", True, 0)}
    assert torch.equal(ours(base, [("d", 0.0)], concepts), generate(base, REQUEST).latents)
