"""Gated layers of a file: any base of the family gets grounding, and loses it again."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.weight_deltas import Difference
from pipelines.errors import ModelError, RequestError
from pipelines.generation import generate
from pipelines.gligen.layers import with_adapter
from pipelines.gligen.tokens import gated_parameters, has_grounding, save_adapter
from pipelines.models.components import Components
from pipelines.models.loading import from_pipeline, load
from pipelines.request.request import Box, ConceptUse, Grounding, Guidance, Request
from tests import tiny

FOX = Box(phrase="a fox", box=(0.1, 0.2, 0.5, 0.6))


def asked(adapter=None, **fields):
    return Request(
        prompt="a fox",
        boxes=(FOX,),
        grounding=Grounding(beta=1.0, adapter=adapter),
        guidance=Guidance(scale=4.0, rescale=0.0),
        **{"scheduler": "ddim", "steps": 4, "width": 16, "height": 16} | fields,
    )


def layers(components):
    return {name: parameter.detach().clone() for name, parameter in gated_parameters(components.unet)}


def without(components: Components) -> Components:
    """The same base with its gated layers taken out."""
    for module in components.unet.modules():
        if "fuser" in module._modules:
            del module.fuser
    del components.unet.position_net
    return components


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "gates.safetensors"
    save_adapter(layers(tiny.gated()), path, {"base": "tiny"})
    return path


def test_an_adapter_draws_what_the_gated_base_draws(adapter):
    """Its numbers are stored as float16, so the gated base is given the same ones."""
    whole = tiny.gated()
    for _, parameter in gated_parameters(whole.unet):
        parameter.data = parameter.data.half().float()
    plain = without(tiny.sd())
    before = tiny.snapshot(plain)
    drawn = generate(plain, asked(str(adapter))).latents
    torch.testing.assert_close(drawn, generate(whole, asked()).latents, atol=1e-5, rtol=0)
    assert tiny.same(before, plain) and not has_grounding(plain.unet)
    assert not any("fuser" in name for name, _ in plain.unet.named_modules())
    with pytest.raises(RequestError, match="no grounding"):
        generate(plain, asked())


def test_an_adapter_takes_the_place_of_the_layers_of_a_gated_base_for_a_while(adapter):
    closed = tiny.sd()
    before, own = tiny.snapshot(closed), closed.unet.position_net
    with_it = generate(closed, asked(str(adapter))).latents
    without_it = generate(closed, asked()).latents
    assert (with_it - without_it).abs().max() > 1e-2
    assert tiny.same(before, closed) and closed.unet.position_net is own
    with pytest.raises(RuntimeError, match="on purpose"), with_adapter(closed, adapter):
        raise RuntimeError("on purpose")
    assert tiny.same(before, closed)


def test_a_whole_gated_model_in_the_diffusers_layout_loads_and_serves_as_adapter(tmp_path):
    """As the official GLIGEN checkpoints are given: a pipeline's folder, its UNet gated."""
    pipeline = tiny.sd_pipeline()
    tiny.open_gates(from_pipeline(pipeline, "tiny"))
    pipeline.save_pretrained(tmp_path / "gligen")
    loaded = load(str(tmp_path / "gligen"))
    expected = generate(loaded, asked()).latents
    torch.testing.assert_close(expected, generate(tiny.gated(), asked()).latents, atol=1e-5, rtol=0)
    unet = tmp_path / "gligen" / "unet" / "diffusion_pytorch_model.safetensors"
    drawn = generate(without(tiny.sd()), asked(str(unet))).latents
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)


def test_a_base_changed_by_a_concept_is_grounded_as_well(adapter):
    plain = without(tiny.sd())
    key = next(name for name, _ in plain.unet.named_parameters() if name.endswith("attn1.to_q.weight"))
    difference = torch.randn(plain.unet.get_parameter(key).shape, generator=torch.Generator().manual_seed(1))
    card = ConceptCard(token="zwx fox", vectors=0, method="dreambooth", family=plain.family.name)
    concept = Concept(card, (), {f"unet.{key}": Difference(difference)})
    before = tiny.snapshot(plain)
    request = asked(str(adapter), concepts=(ConceptUse(source="x"),))
    changed = generate(plain, request, concepts={"x": concept}).latents
    assert tiny.same(before, plain)
    for other in (asked(str(adapter)), request.model_copy(update={"boxes": ()})):
        uses = {"x": concept} if other.concepts else {}
        assert (generate(plain, other, concepts=uses).latents - changed).abs().max() > 1e-2


def test_layers_that_do_not_fit_are_refused_in_words(tmp_path, adapter):
    base = tiny.gated()
    good = layers(base)
    first = next(name for name in good if name.endswith("fuser.linear.weight"))
    cases = {
        "half": {name: tensor for name, tensor in good.items() if name.startswith("position_net.")},
        "blind": {name: tensor for name, tensor in good.items() if not name.startswith("position_net.")},
        "lacking": {name: tensor for name, tensor in good.items() if name != first},
        "narrow": good | {first: good[first][:, :5].clone()},
    }
    for name, tensors in cases.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        before = tiny.snapshot(base)
        with pytest.raises(ModelError, match=name):
            generate(base, asked(str(path)))
        assert tiny.same(before, base)
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        generate(base, asked(str(tmp_path / "gone.safetensors")))
    with pytest.raises(ModelError, match="tiny-xl"):
        generate(tiny.sdxl(), asked(str(adapter)))
