"""Folders of PEFT, and ranks and alphas by layer, each against the library that reads or writes them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.lora_keys import kohya, parsed
from pipelines.concepts.weight_deltas import Difference, LowRank
from pipelines.concepts.writers import export_as
from pipelines.errors import ConceptError
from studio.cli import main
from tests import tiny
from tests.pipelines.concepts.test_writers import card, low_rank, ours, seeded, theirs


def uneven(base, text):
    """Changes with ranks and alphas that differ from layer to layer."""
    changes = low_rank(base, text=text)
    for number, (key, change) in enumerate(changes.items()):
        if number % 3 == 1:
            changes[key] = LowRank(change.down[:1], change.up[:, :1], 2.5)
        elif number % 3 == 2:
            changes[key] = LowRank(change.down, change.up, 0.5)
    return changes


@pytest.mark.parametrize("text", [False, True])
def test_peft_draws_the_same_with_an_exported_folder(tmp_path, text):
    base = tiny.sd()
    concept = Concept(card(), (), uneven(base, text))
    paths = export_as(concept, tmp_path, "peft")
    folders = [tmp_path / "z" / part for part in (("unet", "text_encoder") if text else ("",))]
    assert [path.parent for path in paths] == folders
    pipeline = tiny.sd_pipeline()
    for part, folder in zip(("unet", "text_encoder"), folders, strict=False):
        assert all(name.startswith("base_model.model.") for name in load_file(folder / "adapter_model.safetensors"))
        PeftModel.from_pretrained(getattr(pipeline, part), str(folder))  # puts its layers into the network itself
    drawn = ours(base, concept)
    torch.testing.assert_close(drawn, theirs(pipeline), atol=1e-4, rtol=0)
    back = Concept.load_adapter(tmp_path / "z")
    assert set(back.changes) == set(concept.changes) and (back.token, back.card.base) == ("z", "tiny")
    torch.testing.assert_close(ours(base, back), drawn, atol=1e-6, rtol=0)
    with pytest.raises(ConceptError, match="there already"):
        export_as(concept, tmp_path, "peft")


@pytest.mark.parametrize("dialect", ["diffusers", "a1111"])
def test_diffusers_draws_the_same_with_ranks_and_alphas_by_layer(tmp_path, dialect):
    base = tiny.sd()
    concept = Concept(card(), (), uneven(base, text=dialect == "diffusers"))
    (path,) = export_as(concept, tmp_path, dialect)
    pipeline = tiny.sd_pipeline()
    pipeline.load_lora_weights(str(path))
    drawn = ours(base, concept)
    torch.testing.assert_close(drawn, theirs(pipeline), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours(base, Concept.load(path)), drawn, atol=2e-5, rtol=0)


def taught(network, **settings):
    """A network with peft's layers, as a training would leave them."""
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model = get_peft_model(network, LoraConfig(target_modules=targets, **({"r": 2, "lora_alpha": 6} | settings)))
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if "lora_B" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=seeded(number)))
    return model


SETTINGS = {
    "alpha": {},
    "patterns": {"rank_pattern": {"to_q": 3, "attn2.to_k": 1}, "alpha_pattern": {"to_v": 1, "attn1.to_out.0": 9}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_folder_that_peft_wrote_draws_the_same_here(tmp_path, name):
    pipeline = tiny.sd_pipeline()
    taught(pipeline.unet, **SETTINGS[name]).save_pretrained(tmp_path / "mine")
    drawn = theirs(pipeline)
    read = Concept.load_adapter(tmp_path / "mine")
    torch.testing.assert_close(ours(tiny.sd(), read), drawn, atol=1e-4, rtol=0)
    library = ["--library", str(tmp_path / "library")]
    for source, token in ((tmp_path / "mine", "one"), (tmp_path / "mine" / "adapter_model.safetensors", "two")):
        assert main(["concepts", "import", str(source), "--token", token, *library]) == 0
        assert Concept.load(tmp_path / "library" / f"{token}.safetensors").changes.keys() == read.changes.keys()
    two = Concept.load(tmp_path / "library" / "two.safetensors")
    torch.testing.assert_close(ours(tiny.sd(), two), drawn, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_file_that_diffusers_wrote_with_its_metadata_draws_the_same_here(tmp_path, name):
    pipeline = tiny.sd_pipeline()
    config = LoraConfig(target_modules=["to_q", "to_k", "to_v"], r=2, lora_alpha=6, **SETTINGS[name])
    pipeline.unet.add_adapter(config)
    with torch.no_grad():
        for number, (key, weight) in enumerate(pipeline.unet.named_parameters()):
            if "lora_B" in key:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=seeded(number)))
    pipeline.unet.save_lora_adapter(tmp_path, weight_name="unet.safetensors")
    assert "lora_adapter_metadata" in (tmp_path / "unet.safetensors").read_bytes()[:20_000].decode(errors="ignore")
    from safetensors import safe_open

    with safe_open(tmp_path / "unet.safetensors", "pt") as stored:
        said = json.loads(stored.metadata()["lora_adapter_metadata"])
    named = {f"unet.{key}": tensor for key, tensor in load_file(tmp_path / "unet.safetensors").items()}
    told = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in said.items()})}
    save_file(named, tmp_path / "x.safetensors", metadata=told)
    torch.testing.assert_close(ours(tiny.sd(), Concept.load(tmp_path / "x.safetensors")), theirs(pipeline),
                               atol=1e-4, rtol=0)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A good folder, to be spoilt."""
    concept = Concept(card(), (), low_rank(tiny.sd(), text=False))
    export_as(concept, tmp_path, "peft")
    return tmp_path / "z"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("no json", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (" " * (2 << 20), "cannot be read"),
        ("[1]", "kind None"),
        ('{"peft_type": "IA3"}', "kind 'IA3'"),
        ('{"peft_type": "LORA", "modules_to_save": ["x"]}', "more than low-rank"),
        ('{"peft_type": "LORA", "lora_alpha": "many"}', "impossible alpha"),
        ('{"peft_type": "LORA", "alpha_pattern": 3, "lora_alpha": 0}', "impossible alpha"),
    ],
)
def test_a_damaged_configuration_is_one_sentence(folder, config, said):
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(ConceptError, match=said) as error:
        Concept.load_adapter(folder)
    assert "\n" not in error.value.message


def test_a_folder_without_tensors_or_of_something_else_is_one_sentence(folder, tmp_path, capsys):
    library = ["--library", str(tmp_path / "library")]
    (tmp_path / "empty").mkdir()
    assert main(["concepts", "import", str(tmp_path / "empty"), *library]) == 2
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert main(["concepts", "import", str(folder), *library]) == 2
    (folder / "adapter_model.bin").unlink()
    assert main(["concepts", "import", str(folder), *library]) == 2
    save_file(
        {"base_model.model.h.0.attn.c_attn.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors"
    )
    assert main(["concepts", "import", str(folder), *library]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and not (tmp_path / "library").exists()
    for line, what in zip(told, ("adapter_config.json", "pickle", "no concept file", "broken"), strict=True):
        assert what in line


def test_a_word_goes_beside_the_folder(tmp_path):
    base = tiny.sd()
    both = Concept(card(token="<cat>", vectors=1), (torch.randn(1, 32),), low_rank(base, text=False))
    weights, word = export_as(both, tmp_path, "peft", half=True)
    assert weights == tmp_path / "cat-lora" / "adapter_model.safetensors" and word == tmp_path / "cat.safetensors"
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}
    assert Concept.load(word).token == "<cat>" and Concept.load_adapter(tmp_path / "cat-lora").card.vectors == 0


# -- whole differences behind kohya's names (LyCORIS) -------------------------------------------------------------


def test_whole_differences_of_weights_biases_and_norms_draw_the_same(tmp_path):
    base, pipeline = tiny.sd(), tiny.sd_pipeline()
    tensors = {}
    for number, (part, network) in enumerate((("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder))):
        for name, parameter in network.named_parameters():
            layer, _, leaf = name.rpartition(".")
            if "fuser" in name or not any(end in name for end in ("attn2", "self_attn", "norm1", "resnets.0.conv1")):
                continue
            end = {"weight": ".diff", "bias": ".diff_b"}[leaf]
            if parameter.ndim == 1 and "norm" in name:
                end = {"weight": ".w_norm", "bias": ".b_norm"}[leaf]
            change = 0.1 * torch.randn(parameter.shape, generator=seeded(len(tensors) + number))
            tensors[kohya(f"{part}.{layer}", sdxl=False) + end] = change
            parameter.data += change
    assert {name[name.rindex(".") :] for name in tensors} == {".diff", ".diff_b", ".w_norm", ".b_norm"}
    save_file(tensors, tmp_path / "x.safetensors")
    read = Concept.load(tmp_path / "x.safetensors")
    assert read.card.method == "full" and len(read.changes) == len(tensors)
    torch.testing.assert_close(ours(base, read), theirs(pipeline), atol=1e-4, rtol=0)
    read.save(tmp_path / "own.safetensors")
    assert Concept.load(tmp_path / "own.safetensors").changes.keys() == read.changes.keys()


def test_a_bias_may_be_whole_beside_low_rank_and_the_family_is_told():
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert parsed(f"{name}.diff_b") == (parsed(f"{name}.alpha").layer + ".bias", "difference")
    assert parsed(f"{name}.w_norm").layer.endswith("attn2.to_k.weight") and parsed("lora_unet_x.diff") is None
    from pipelines.concepts.headers import described

    entry = {"dtype": "F32", "shape": [8, 1024]}
    assert described("x.safetensors", {f"{name}.diff": entry})["family"] == "sd2"
    pair = {
        f"{name}.lora_down.weight": entry | {"shape": [2, 768]},
        f"{name}.lora_up.weight": entry | {"shape": [8, 2]},
    }
    mixed = described("x.safetensors", {**pair, f"{name}.diff_b": entry | {"shape": [8]}})
    assert (mixed["method"], mixed["family"]) == ("lora", "sd1")


def test_a_difference_that_does_not_fit_is_refused_by_name(tmp_path):
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({kohya(layer, sdxl=False) + ".diff": torch.ones(3, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(ConceptError, match=r"attn2\.to_k\.weight as a weight of \(3, 3\)"):
        Concept.load(tmp_path / "x.safetensors").check_fits(tiny.sd())
    whole = Concept(ConceptCard(token="z", vectors=0), (), {f"{layer}.weight": Difference(torch.zeros(3, 3))})
    with pytest.raises(ConceptError, match="peft has no layout"):
        export_as(whole, tmp_path / "b", "peft")
    shutil.rmtree(tmp_path / "b", ignore_errors=True)
