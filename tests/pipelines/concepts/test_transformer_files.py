"""LoRA of transformers in the names of other programs: written, read back, and read by diffusers' own converters."""

from __future__ import annotations

import doctest

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.concepts import writers
from pipelines.concepts.card import ConceptCard, read_card
from pipelines.concepts.concept import Concept
from pipelines.concepts.lora_keys import parsed
from pipelines.concepts.token_embeddings import single_rows
from pipelines.concepts.weight_deltas import LowRank
from pipelines.errors import ConceptError
from pipelines.models.families import original_layers
from pipelines.models.families.known import KNOWN
from studio.library import concepts as library
from tests import tiny, tiny_flows
from trainers.methods.parts.adapters import layers

FAMILIES = list(tiny_flows.PIPELINES)
PARTED = ("sd3", "flux1", "flux2", "krea2")
"""Families that the first implementation names in its own way."""


def learned(family, targets="transformer", rank=2, scale=0.5):
    """A LoRA on every layer of the targets, as a training leaves it."""
    base = tiny_flows.base(family)
    changes = {}
    for number, name in enumerate(layers(base.denoiser, base.family.targets[targets])):
        weight = base.denoiser.get_submodule(name).weight
        generator = torch.Generator().manual_seed(number)
        down = torch.randn(rank, weight.shape[1], generator=generator) / rank
        up = torch.randn(weight.shape[0], rank, generator=generator) / 8
        changes[f"transformer.{name}.weight"] = LowRank(down, up, scale)
    card = ConceptCard(token="zwx fox", kind="subject", method="dreambooth-lora", family=family, vectors=0, base="tiny")
    return base, Concept(card, (), changes)


def effect(change):
    return change.up @ change.down * change.scale


@pytest.mark.parametrize("dialect", ["a1111", "comfyui", "diffusers", "peft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_is_read_back_as_what_was_learned(family, dialect, tmp_path):
    base, concept = learned(family, "all")
    files = writers.export_as(concept, tmp_path / "out", dialect)
    back = Concept.load_adapter(files[0].parent) if dialect == "peft" else Concept.load(files[0])
    assert back.changes.keys() == concept.changes.keys()
    for key, change in concept.changes.items():
        torch.testing.assert_close(effect(back.changes[key]), effect(change), atol=1e-6, rtol=1e-5)
        assert len(back.changes[key].down) == 2, "layers that were joined are parted again without loss"
    back.check_fits(base)
    assert back.card.family == family
    if dialect == "diffusers":
        assert library.dialects(files[0]) == ("a1111", "comfyui", "diffusers", "peft")
        assert "diffusers and ComfyUI read" in library.elsewhere(files[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_headers_tell_the_family_as_other_programs_do(family, tmp_path):
    _, concept = learned(family)
    (path,) = writers.export_as(concept, tmp_path, "a1111")
    from pipelines.concepts.card import read_header

    said = read_header(path)["__metadata__"]
    assert said["modelspec.architecture"] == f"{KNOWN[family].architecture}/lora"
    assert said["ss_network_dim"] == "2" or family in PARTED
    assert said["ss_network_module"] == "networks.lora"
    stripped = {name: tensor.contiguous() for name, tensor in load_file(path).items()}
    save_file(stripped, tmp_path / "bare.safetensors")
    assert read_card(tmp_path / "bare.safetensors").family == family, "also without a header"


NAMES = {
    "sd3": ("joint_blocks.0.x_block.attn.qkv", (96, 6), "joint_blocks.0.context_block.mlp.fc1"),
    "flux1": ("single_blocks.1.linear1", (224, 8), "double_blocks.0.txt_mlp.2"),
    "flux2": ("single_blocks.1.linear1", (288, 2), "double_blocks.1.img_mlp.0"),
    "z-image": ("layers.1.feed_forward.w3", (85, 2), "noise_refiner.0.attention.to_out.0"),
    "qwen-image": ("transformer_blocks.1.attn.add_k_proj", (48, 2), "transformer_blocks.0.img_mlp.net.0.proj"),
    "krea2": ("blocks.0.attn.wk", (16, 2), "txtfusion.refiner_blocks.0.mlp.gate"),
}
"""Family -> a layer of the file, the shape of its up-projection, and another layer."""


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_first_implementations(family, tmp_path):
    _, concept = learned(family)
    layer, shape, other = NAMES[family]
    (comfy,) = writers.export_as(concept, tmp_path / "c", "comfyui")
    tensors = load_file(comfy)
    assert tuple(tensors[f"diffusion_model.{layer}.lora_B.weight"].shape) == shape
    assert f"diffusion_model.{other}.lora_A.weight" in tensors
    assert all(name.startswith("diffusion_model.") and name.endswith(".weight") for name in tensors)
    (kohya,) = writers.export_as(concept, tmp_path / "k", "a1111")
    tensors = load_file(kohya)
    name = f"lora_unet_{layer.replace('.', '_')}"
    assert tuple(tensors[f"{name}.lora_up.weight"].shape) == shape
    assert float(tensors[f"{name}.alpha"]) / len(tensors[f"{name}.lora_down.weight"]) == pytest.approx(
        0.5 if family not in ("sd3", "flux1", "flux2") else float(tensors[f"{name}.alpha"]) / shape[1]
    )
    assert {name.partition(".")[2] for name in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}


READ_BY_DIFFUSERS = [
    ("flux2", "comfyui"),
    ("flux2", "a1111"),
    ("z-image", "comfyui"),
    ("z-image", "a1111"),
    ("qwen-image", "comfyui"),
    ("qwen-image", "a1111"),
    ("krea2", "comfyui"),
]
"""Layouts that diffusers converts whatever the sizes; its converter for FLUX.1 knows the published widths alone."""


@pytest.mark.parametrize(("family", "dialect"), READ_BY_DIFFUSERS)
def test_plain_diffusers_makes_the_same_of_exported_files(family, dialect, tmp_path):
    _, concept = learned(family)
    (path,) = writers.export_as(concept, tmp_path, dialect)
    pipe = tiny_flows.pipeline(family)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    pipe.fuse_lora()
    weights = tiny_flows.pipeline(family).transformer
    for key, change in concept.changes.items():
        name = key.removeprefix("transformer.").removesuffix(".weight")
        found = pipe.transformer.get_submodule(name)
        theirs = getattr(found, "base_layer", found).weight - weights.get_submodule(name).weight
        torch.testing.assert_close(theirs, effect(change), atol=1e-5, rtol=1e-4)


def test_a_published_lora_of_flux_is_read_as_diffusers_reads_it():
    """Fused layers of sd-scripts, at the width its converter in diffusers knows."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    from pipelines.concepts.parts.changed_weights import ChangedWeights

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, outputs in (("double_blocks_0_img_attn_qkv", 9216), ("single_blocks_3_linear1", 21504)):
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, 3072, generator=generator)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(outputs, 2, generator=generator)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    ours = ChangedWeights.read(tensors, {}).changes
    theirs = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    assert {key.removesuffix(".weight") for key in ours} == {name.rpartition(".lora_")[0] for name in theirs}
    for key, change in ours.items():
        layer = key.removesuffix(".weight")
        expected = theirs[f"{layer}.lora_B.weight"][:4] @ theirs[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(effect(change)[:4], expected)


# -- refusals ---------------------------------------------------------------------------------------------------


def test_a_lora_that_changes_nothing_is_refused_by_the_name_of_its_keys(tmp_path):
    name = "diffusion_model.layers.0.attention.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.zeros(32, 2)}
    save_file(tensors, tmp_path / "nothing.safetensors")
    with pytest.raises(ConceptError, match=r"changes are zero, such as those of transformer\.layers\.0"):
        Concept.load(tmp_path / "nothing.safetensors")


def test_a_lora_of_which_no_key_is_one_of_the_base_is_refused_by_its_name(tmp_path):
    base, _ = learned("z-image")
    name = "transformer.layers.9.attention.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    save_file(tensors, tmp_path / "deep.safetensors")
    with pytest.raises(ConceptError, match=r"layers\.9\.attention\.to_q\.weight, which tiny-z-image does not have"):
        Concept.load(tmp_path / "deep.safetensors").check_fits(base)


@pytest.mark.parametrize(("made", "used"), [("z-image", "flux1"), ("flux1", "flux2"), ("krea2", "z-image")])
def test_a_lora_of_another_family_is_refused_with_both_names(made, used):
    _, concept = learned(made)
    said = rf"{KNOWN[made].title.replace('.', '[.]')} .*{KNOWN[used].title.replace('.', '[.]')}"
    with pytest.raises(ConceptError, match=said):
        concept.check_fits(tiny_flows.base(used))
    with pytest.raises(ConceptError, match=r"Stable Diffusion 1\.x"):
        concept.check_fits(tiny.sd())


@pytest.mark.parametrize("family", ["flux2", "z-image", "qwen-image", "krea2"])
def test_a_word_of_a_language_model_stays_in_the_studio_and_says_so(family, tmp_path):
    base = tiny_flows.base(family)
    concept = Concept(ConceptCard(token="<thing>", family=family, init="fox"), single_rows(base, "fox"))
    back = Concept.load(concept.save(tmp_path / "w.safetensors"))
    assert torch.equal(back.rows[0], concept.rows[0]) and back.card.family == family
    for dialect in ("a1111", "comfyui", "diffusers"):
        assert library.dialects(tmp_path / "w.safetensors") == ()
        assert "no other program gives" in library.elsewhere(tmp_path / "w.safetensors")
        with pytest.raises(ConceptError, match=r"no other program gives new words.*plain trigger"):
            writers.export_as(concept, tmp_path / dialect, dialect)


@pytest.mark.parametrize(("family", "names"), [("flux1", ["clip_l", "t5xxl"]), ("sd3", ["clip_g", "clip_l", "t5xxl"])])
def test_words_for_several_text_encoders_have_the_names_of_comfyui(family, names, tmp_path):
    base = tiny_flows.base(family)
    concept = Concept(ConceptCard(token="<thing>", family=family, init="fox"), single_rows(base, "fox"))
    path = concept.save(tmp_path / "w.safetensors")
    assert sorted(load_file(path)) == names
    (exported,) = writers.export_as(concept, tmp_path / "out", "comfyui")
    for file in (path, exported):
        back = Concept.load(file)
        assert all(torch.equal(a, b) for a, b in zip(back.rows, concept.rows, strict=True))
        assert back.card.family == family
    save_file(load_file(path), tmp_path / "bare.safetensors")
    assert read_card(tmp_path / "bare.safetensors").family == family


def test_names_with_underscores_are_taken_apart_for_every_layer_of_every_family():
    for family in FAMILIES:
        base = tiny_flows.base(family)
        for name in layers(base.denoiser, base.family.targets["all"]):
            theirs, _, _ = original_layers.original(family, name)
            key = parsed(f"lora_unet_{theirs.replace('.', '_')}.lora_up.weight")
            assert key is not None and key.layer == f"transformer.{theirs}", name


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(original_layers).failed == 0
