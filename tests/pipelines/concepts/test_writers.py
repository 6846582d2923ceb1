"""Concepts in the layouts of other programs, each against the library that reads or writes it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.formats.delta_tensors import stored
from pipelines.concepts.lora_keys import from_sgm, parsed, to_sgm
from pipelines.concepts.weight_deltas import Difference, LowRank
from pipelines.concepts.writers import export_as
from pipelines.errors import ConceptError
from pipelines.generation import generate
from pipelines.models.loading import from_pipeline
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def low_rank(components, scale=1.5, rank=2, text=True):
    """A change of every attention layer, alpha not the rank."""
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj")
    parts = {"unet": components.unet} | (
        dict(zip(("text_encoder", "text_encoder_2"), components.text_encoders, strict=False)) if text else {}
    )
    changes = {}
    for part, network in parts.items():
        for name, layer in network.named_modules():
            if name.endswith(ends) and "fuser" not in name:
                out, into = layer.weight.shape
                down, up = (0.2 * torch.randn(s, generator=seeded(len(changes))) for s in ((rank, into), (out, rank)))
                changes[f"{part}.{name}.weight"] = LowRank(down, up, scale)
    return changes


def request(concept="", prompt="a z fox"):
    uses = (ConceptUse(source=concept),) if concept else ()
    return Request(prompt=prompt, concepts=uses, steps=2, seed=2, scheduler="ddim",
                   guidance=Guidance(scale=4.0), width=16, height=16)  # fmt: skip


def theirs(pipeline, prompt="a z fox"):
    return pipeline(prompt, num_inference_steps=2, guidance_scale=4.0, height=16, width=16,
                    generator=seeded(2), output_type="latent").images  # fmt: skip


def ours(base, concept, prompt="a z fox"):
    return generate(base, request("c", prompt), concepts={"c": concept}).latents


def card(**fields):
    return ConceptCard(**({"token": "z", "family": "sd1", "kind": "subject", "vectors": 0, "base": "tiny"} | fields))


@pytest.mark.parametrize("dialect", ["a1111", "diffusers"])
def test_plain_diffusers_draws_the_same_with_an_exported_lora(tmp_path, dialect):
    base = tiny.sd()
    concept = Concept(card(), (), low_rank(base))
    (path,) = export_as(concept, tmp_path, dialect)
    pipeline = tiny.sd_pipeline()
    pipeline.load_lora_weights(str(path))
    drawn = ours(base, concept)
    torch.testing.assert_close(drawn, theirs(pipeline), atol=1e-4, rtol=0)
    assert not torch.allclose(drawn, generate(base, request()).latents, atol=1e-3)
    back = Concept.load(path)
    assert set(back.changes) == set(concept.changes) and back.card.kind == "subject"
    torch.testing.assert_close(ours(base, back), drawn, atol=1e-6, rtol=0)


def test_plain_sdxl_draws_the_same_with_a_lora_in_kohyas_names(tmp_path):
    pipeline = tiny.sdxl_with_real_blocks()
    base = tiny.frozen(from_pipeline(pipeline, "tiny-xl"))
    concept = Concept(card(family="sdxl"), (), low_rank(base))
    (path,) = export_as(concept, tmp_path, "a1111")
    names = list(load_file(path))
    assert any(name.startswith("lora_unet_input_blocks_4_1_transformer_blocks_0") for name in names)
    assert {name.split("_")[1] for name in names} == {"unet", "te1", "te2"}
    drawn = ours(base, concept)
    assert set(Concept.load(path).changes) == set(concept.changes)
    pipeline.load_lora_weights(str(path))
    torch.testing.assert_close(drawn, theirs(pipeline), atol=1e-4, rtol=0)


def test_names_of_sgm_there_and_back():
    names = [name for name, _ in tiny.sdxl_with_real_blocks().unet.named_modules() if name.count(".") > 2]
    changed = [name for name in names if to_sgm(name) != name]
    assert len(changed) > 50 and all(from_sgm(to_sgm(name)) == name for name in changed)


def test_a_header_in_kohyas_dialect_tells_other_programs_what_it_is(tmp_path):
    base = tiny.sd()
    (path,) = export_as(Concept(card(), (), low_rank(base)), tmp_path, "a1111", half=True)
    with safe_open(path, "pt") as stored:
        said = stored.metadata()
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("2", "3")
    assert (said["ss_base_model_version"], said["ss_v2"], said["ss_output_name"]) == ("sd_v1", "False", "z")
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(said["ss_tag_frequency"]) == {"z": {"z": 1}} and said["modelspec.trigger_phrase"] == "z"
    # With a word of its own, which there is called by its file: the tag is what people type in that program.
    both = Concept(card(token="<猫 z>", vectors=1), (torch.ones(1, 32),), low_rank(base))
    weights, word = sorted(export_as(both, tmp_path / "both", "a1111"), key=lambda path: "lora" not in path.name)
    with safe_open(weights, "pt") as stored:
        said = stored.metadata()
    (tags,) = json.loads(said["ss_tag_frequency"]).values()
    assert list(tags) == [word.stem] == [said["modelspec.trigger_phrase"]]


def test_what_diffusers_itself_writes_is_read_with_its_strength(tmp_path):
    """As it was before PEFT's names, and with alpha in the header."""
    pipeline = tiny.sd_pipeline()
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    with torch.no_grad():
        for number, (name, weight) in enumerate(pipeline.unet.named_parameters()):
            if "lora_B" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=seeded(number)))
    layers = get_peft_model_state_dict(pipeline.unet)
    said = {"unet.r": 2, "unet.lora_alpha": 6}
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata={"r": 2, "lora_alpha": 6})
    read = Concept.load(tmp_path / "pytorch_lora_weights.safetensors")
    old = {
        f"unet.{name}".replace(".lora_A.weight", ".lora.down.weight").replace(".lora_B.weight", ".lora.up.weight"): t
        for name, t in layers.items()
    }
    save_file(old, tmp_path / "old.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    torch.save(old, tmp_path / "old.bin")
    drawn = theirs(pipeline)
    for concept in (read, Concept.load(tmp_path / "old.safetensors")):
        torch.testing.assert_close(ours(tiny.sd(), concept), drawn, atol=1e-4, rtol=0)
    assert set(Concept.load_pickle(tmp_path / "old.bin").changes) == set(read.changes)


def test_peft_reads_the_changes_of_the_unet(tmp_path):
    """PEFT's own folder from our tensors: the same prediction."""
    base = tiny.sd()
    concept = Concept(card(), (), low_rank(base, text=False))
    layers = [key.removeprefix("unet.").removesuffix(".weight") for key in concept.changes]
    LoraConfig(r=2, lora_alpha=3, target_modules=layers).save_pretrained(tmp_path)
    tensors = {f"base_model.model.{k.removeprefix('unet.')}": v for k, v in stored(concept.changes).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    text = torch.randn(1, 5, 32, generator=seeded(1))
    with concept.attach(base) as changed, torch.no_grad():
        mine = changed.unet(noise, 10, text).sample
    with torch.no_grad():
        other = PeftModel.from_pretrained(tiny.sd_pipeline().unet, str(tmp_path))(noise, 10, text).sample
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dialect", ["a1111", "diffusers"])
@pytest.mark.parametrize("vectors", [1, 2])
def test_plain_diffusers_draws_the_same_with_an_exported_word(tmp_path, dialect, vectors):
    base = tiny.sd()
    concept = Concept(card(token="<cat>", kind="object", vectors=vectors), (torch.randn(vectors, 32),))
    (path,) = export_as(concept, tmp_path, dialect)
    assert path.name == "cat.safetensors" and Concept.load(path).token == "<cat>"
    assert list(load_file(path)) == ["emb_params" if dialect == "a1111" else "<cat>"]
    pipeline = tiny.sd_pipeline()
    pipeline.load_textual_inversion(str(path), token="<cat>")
    torch.testing.assert_close(ours(base, concept, "a <cat>"), theirs(pipeline, "a <cat>"), atol=1e-4, rtol=0)


def test_plain_sdxl_draws_the_same_with_the_two_files_of_a_word(tmp_path):
    base = tiny.sdxl()
    concept = Concept(card(token="<cat>", family="sdxl", vectors=2), (torch.randn(2, 32), torch.randn(2, 48)))
    first, second = export_as(concept, tmp_path, "diffusers")
    pipeline = tiny.sdxl_pipeline()
    for path, which in ((first, ""), (second, "_2")):
        encoder, tokenizer = (getattr(pipeline, f"{part}{which}") for part in ("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion(str(path), token="<cat>", text_encoder=encoder, tokenizer=tokenizer)
    torch.testing.assert_close(ours(base, concept, "a <cat>"), theirs(pipeline, "a <cat>"), atol=1e-4, rtol=0)
    (pair,) = export_as(concept, tmp_path / "a", "a1111")
    assert set(load_file(pair)) == {"clip_l", "clip_g"} and Concept.load(pair).digest() == concept.digest()


def test_a_word_with_weights_becomes_two_files_and_nothing_is_overwritten(tmp_path):
    base = tiny.sd()
    concept = Concept(card(token="<cat>", vectors=1), (torch.randn(1, 32),), low_rank(base, text=False))
    weights, word = export_as(concept, tmp_path, "a1111")
    assert (weights.name, word.name) == ("cat-lora.safetensors", "cat.safetensors")
    assert Concept.load(weights).rows == () and torch.equal(Concept.load(word).rows[0], concept.rows[0])
    with pytest.raises(ConceptError, match="there already"):
        export_as(concept, tmp_path, "a1111")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "cat.json").write_text("mine")
    with pytest.raises(ConceptError, match=r"cat\.json is there already"):
        export_as(concept, tmp_path / "c", "a1111")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["cat.json"]
    whole = Concept(card(), (), {"unet.conv_in.weight": Difference(torch.zeros(16, 4, 3, 3))})
    with pytest.raises(ConceptError, match="studio export"):
        export_as(whole, tmp_path / "b", "diffusers")


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.oft_blocks",
        "lora_unet_blocks_of_another_model.lora_down.weight",
        "lora_unet_.alpha",
    ],
)
def test_names_of_other_things_are_none(name):
    assert parsed(name) is None
