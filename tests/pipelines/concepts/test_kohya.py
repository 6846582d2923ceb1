"""Changes of weights in kohya's names, by the formulas of the programs that read them.

`read_as_others_do` does what ComfyUI (`comfy/lora.py`, `weight_adapter/lora.py`) and AUTOMATIC1111 1.10
do with a file: names of layers are made from the UNet's own, and every tensor must be understood.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.concepts.card import ConceptCard, read_card
from pipelines.concepts.concept import Concept
from pipelines.concepts.formats.kohya import named, to_kohya
from pipelines.concepts.lora_keys import kohya, parsed
from pipelines.concepts.weight_deltas import Difference, LowRank
from pipelines.concepts.writers import export_as
from pipelines.errors import ConceptError
from pipelines.generation import generate
from pipelines.models.families.sd import StableDiffusion
from pipelines.request.request import ConceptUse, Guidance, Request
from studio.library import concepts
from tests import tiny
from trainers.methods.parts.adapters import layers

ALL = StableDiffusion.targets["all"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def low_rank(weight, seed, magnitude="", rank=2, scale=1.5):
    out, into, *kernel = weight.shape
    down = 0.2 * torch.randn(rank, into, *kernel, generator=seeded(seed))
    up = 0.2 * torch.randn(out, rank, *[1 for _ in kernel], generator=seeded(seed + 1))
    if not magnitude:
        return LowRank(down, up, scale)
    lengths = weight.detach().transpose(0, 1 if magnitude == "columns" else 0).flatten(1).norm(dim=1)
    lengths = lengths * (0.7 + 0.6 * torch.rand(len(lengths), generator=seeded(seed + 2)))
    return LowRank(down, up, scale, lengths, magnitude == "columns")


def changes_of(base, kind):
    """Changes of every layer that can be trained, of one kind."""
    if kind == "full":
        names = [n for n, _ in base.unet.named_parameters() if "fuser" not in n and "position_net" not in n]
        return {
            f"unet.{name}": Difference(0.1 * torch.randn(base.unet.get_parameter(name).shape, generator=seeded(i)))
            for i, name in enumerate(names)
        }
    return {
        f"unet.{name}.weight": low_rank(base.unet.get_submodule(name).weight, 3 * i, "" if kind == "lora" else kind)
        for i, name in enumerate(layers(base.unet, ALL))
    }


def concept_of(base, kind, rows=(), token="z"):
    card = ConceptCard(token=token, family=base.family.name, kind="subject", vectors=len(rows[0]) if rows else 0)
    return Concept(card, tuple(rows), changes_of(base, kind))


def read_as_others_do(base, path):
    """Return the UNet's parameters with a file at strength 1, as ComfyUI and AUTOMATIC1111 do, and the names left."""
    tensors = load_file(path)
    weights = {name: parameter.detach() for name, parameter in base.unet.named_parameters()}
    found = {}
    for name, weight in weights.items():
        layer, _, leaf = name.rpartition(".")
        key = "lora_unet_" + layer.replace(".", "_")
        if leaf == "bias":
            for end in (".diff_b", ".b_norm"):
                if key + end in tensors:
                    found[name] = weight + tensors.pop(key + end)
            continue
        if key + ".lora_up.weight" in tensors:
            up, down = tensors.pop(key + ".lora_up.weight"), tensors.pop(key + ".lora_down.weight")
            alpha = float(tensors.pop(key + ".alpha")) / len(down)
            merged = weight + alpha * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            if key + ".dora_scale" in tensors:  # AUTOMATIC1111's `apply_weight_decompose`
                scale = tensors.pop(key + ".dora_scale")
                norm = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
                merged = merged * (scale / norm.reshape(merged.shape[1], *[1] * (merged.ndim - 1)).transpose(0, 1))
            found[name] = merged
        for end in (".diff", ".w_norm"):
            if key + end in tensors:
                found[name] = weight + tensors.pop(key + end)
    return found, set(tensors)


@pytest.mark.parametrize("kind", ["lora", "columns", "full"])
def test_a_saved_file_is_read_in_full_by_others(tmp_path, kind):
    base = tiny.sd()
    concept = concept_of(base, kind)
    path = concept.save(tmp_path / "z.safetensors")
    found, left = read_as_others_do(base, path)
    assert not left and len(found) == len(concept.changes)
    for key, change in concept.changes.items():
        name = key.removeprefix("unet.")
        wanted = change.changed(base.unet.get_parameter(name), 1.0)
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=0)
    assert "as it is" in concepts.elsewhere(path) and Concept.load(path).digest() == concept.digest()


def test_a_dora_of_rows_is_written_whole_with_its_base_and_refused_without(tmp_path):
    base = tiny.sd()
    concept = concept_of(base, "rows")
    with pytest.raises(ConceptError, match="--base"):
        export_as(concept, tmp_path, "a1111")
    (path,) = export_as(concept, tmp_path, "a1111", base=base)
    found, left = read_as_others_do(base, path)
    assert not left and len(found) == len(concept.changes)
    for key, change in concept.changes.items():
        name = key.removeprefix("unet.")
        wanted = change.changed(base.unet.get_parameter(name), 1.0)
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=0)
    with pytest.raises(ConceptError, match="made for"):
        export_as(concept, tmp_path / "b", "a1111", base=tiny.sdxl())
    saved = concept.save(tmp_path / "z2.safetensors")
    assert concepts.dialects(saved) == ("diffusers", "peft") and "export it" in concepts.elsewhere(saved)


REQUEST = Request(
    prompt="a z fox", steps=2, seed=2, scheduler="ddim", guidance=Guidance(scale=4.0), width=16, height=16
)


@pytest.mark.parametrize("kind", ["lora", "rows"])
def test_plain_diffusers_reads_the_saved_file_of_all_layers(tmp_path, kind):
    """Convolutions too, whose magnitudes PEFT has in four dimensions."""
    base = tiny.sd()
    concept = concept_of(base, kind)
    path = concept.save(tmp_path / "z.safetensors")
    pipeline = tiny.sd_pipeline()
    pipeline.load_lora_weights(str(path))
    theirs = pipeline("a z fox", num_inference_steps=2, guidance_scale=4.0, height=16, width=16,
                      generator=seeded(2), output_type="latent").images  # fmt: skip
    use = REQUEST.model_copy(update={"concepts": (ConceptUse(source="c"),)})
    ours = generate(base, use, concepts={"c": Concept.load(path)}).latents
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert not torch.allclose(ours, generate(base, REQUEST).latents, atol=1e-2)


def test_lengths_of_columns_are_lycoris_own_also_where_a_weight_is_square(tmp_path):
    """Foreign files: (1, in) and (1, in, 1, 1) are columns, (out, 1) rows."""
    base = tiny.sd()
    square = next(n for n in layers(base.unet, (".to_q", "to_q")))
    name = f"unet.{square}.weight"
    change = low_rank(base.unet.get_submodule(square).weight, 0, "columns")
    tensors = to_kohya({name: change}, False)
    key = kohya(name.removesuffix(".weight"), False)
    assert tensors[f"{key}.dora_scale"].shape == (1, change.down.shape[1])
    save_file(tensors, tmp_path / "a.safetensors")
    read = Concept.load(tmp_path / "a.safetensors").changes[name]
    assert read.columns and torch.equal(read.magnitude, change.magnitude)
    tensors[f"{key}.dora_scale"] = tensors[f"{key}.dora_scale"].T.contiguous()
    save_file(tensors, tmp_path / "b.safetensors")
    assert not Concept.load(tmp_path / "b.safetensors").changes[name].columns
    tensors[f"{key}.dora_scale"] = torch.ones(1, 7)
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(ConceptError, match=r"shape \(1, 7\); its weight has"):
        Concept.load(tmp_path / "c.safetensors")


def test_a_dora_of_columns_scales_as_comfyui_scales_it():
    weight = torch.randn(6, 5, generator=seeded(4))
    change = low_rank(weight, 0, "columns")
    whole = change.changed(weight, 1.0)
    torch.testing.assert_close(whole.norm(dim=0), change.magnitude)
    torch.testing.assert_close(change.changed(weight, 0.3), weight + 0.3 * (whole - weight))


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
def test_a_word_beside_whole_weights_is_bundled_as_others_read_it(tmp_path, make):
    base = make()
    rows = [torch.randn(2, encoder.config.hidden_size, generator=seeded()) for encoder in base.text_encoders]
    whole = {
        k: c for k, c in changes_of(base, "full").items() if ".attn2.to_" in k and k.endswith(("k.weight", "v.weight"))
    }
    concept = replace(concept_of(base, "full", rows, "<my cat>"), changes=whole)
    path = concept.save(tmp_path / "c.safetensors")
    with safe_open(path, "pt") as stored:
        words = sorted(name for name in stored.keys() if name.startswith("bundle_emb."))  # noqa: SIM118
    ends = ["emb_params"] if len(rows) == 1 else ["clip_g", "clip_l"]
    assert words == [f"bundle_emb.my-cat.{end}" for end in ends]
    back = Concept.load(path)
    assert back.token == "<my cat>" and back.digest() == concept.digest() and read_card(path).vectors == 2


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
def test_every_parameter_of_a_network_has_a_name_and_is_found_by_it(make):
    base = make()
    parts = {"unet": base.unet} | dict(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False))
    keys = [f"{part}.{name}" for part, network in parts.items() for name, _ in network.named_parameters()]
    changes = {key: Difference(torch.zeros(1)) for key in keys if "fuser.alpha" not in key and ".null_" not in key}
    xl = base.family.name == "sdxl"
    assert named(changes, xl) and len(to_kohya(changes, xl)) == len(changes)
    assert not named({"unet.another_kind.of_layer.weight": Difference(torch.zeros(1))}, False)
    assert parsed("lora_unet_mid_block_resnets_0_norm1.w_norm").layer == "unet.mid_block.resnets.0.norm1.weight"
