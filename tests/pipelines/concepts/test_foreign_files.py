"""Files of other programs, made here in their layouts: read as they read them, or refused by what they are."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import save_file

from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError
from studio.library.import_export import import_concept
from tests import tiny

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
POINT = "down_blocks.0.attentions.0.proj_in"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def underscored(layer):
    return "lora_unet_" + layer.replace(".", "_")


def pair(weight, rank=2):
    out, into, *kernel = weight.shape
    return randn(rank, into, *kernel, seed=1), randn(out, rank, *[1 for _ in kernel], seed=2)


def product(down, up):
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def loha(weight):
    out, into = len(weight), weight[0].numel()
    parts = {f"hada_w{k}_{end}": randn(*shape, seed=ord(end) + k)
             for k in (1, 2) for end, shape in (("a", (out, 2)), ("b", (2, into)))}  # fmt: skip
    parts["alpha"] = torch.tensor(1.0)
    change = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]) / 2
    return parts, change.reshape(weight.shape)


def loha_with_core(weight):
    out, into, *kernel = weight.shape
    parts = {"alpha": torch.tensor(4.0)}
    made = []
    for k in (1, 2):
        core, a, b = randn(2, 2, *kernel, seed=k), randn(2, out, seed=k + 5), randn(2, into, seed=k + 9)
        parts |= {f"hada_t{k}": core, f"hada_w{k}_a": a, f"hada_w{k}_b": b}
        made.append(torch.einsum("ijkl,jr,ip->prkl", core, b, a))
    return parts, made[0] * made[1] * 4 / 2


def lokr(weight, whole):
    """w1 (4, 2) whole; w2 whole or of rank 2."""
    rows, columns = len(weight) // 4, weight.shape[1] // 2
    one = randn(4, 2, seed=1)
    if whole:
        two = randn(rows, columns, *weight.shape[2:], seed=2)
        parts, scale = {"lokr_w1": one, "lokr_w2": two, "alpha": torch.tensor(99.0)}, 1.0
    else:
        a, b = randn(rows, 2, seed=2), randn(2, columns, seed=3)
        two, scale = a @ b, 3 / 2
        parts = {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(3.0)}
    if two.ndim == 4:
        one = one[:, :, None, None]
    return parts, torch.kron(one, two) * scale


def core_of_locon(weight):
    out, into, *kernel = weight.shape
    down, mid, up = randn(2, into, 1, 1, seed=1), randn(2, 2, *kernel, seed=2), randn(out, 2, 1, 1, seed=3)
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    wanted = torch.einsum("nmkl,in,mj->ijkl", mid, up.flatten(1), down.flatten(1)) / 2  # AUTOMATIC1111's rebuild
    return parts, wanted


def with_scalar(weight):
    down, up = pair(weight)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "scalar": torch.tensor(0.25), "alpha": torch.tensor(2.0)}
    return parts, 0.25 * product(down, up)


def flat_pair(weight):
    down, up = pair(weight)
    return {"lora_down.weight": down.flatten(1), "lora_up.weight": up.flatten(1)}, product(down, up)


def eight_bits(weight):
    down, up = (part.to(torch.float8_e4m3fn) for part in pair(weight))
    return {"lora_down.weight": down, "lora_up.weight": up}, product(down.float(), up.float())


KOHYA = {
    "LoHa": (LINEAR, loha),
    "LoHa of a convolution": (CONV, loha),
    "LoHa with cores": (CONV, loha_with_core),
    "LoKr": (LINEAR, lambda weight: lokr(weight, False)),
    "LoKr, whole": (LINEAR, lambda weight: lokr(weight, True)),
    "LoKr of a convolution": (CONV, lambda weight: lokr(weight, True)),
    "LoCon with a core": (CONV, core_of_locon),
    "scalar": (LINEAR, with_scalar),
    "a pair of two dimensions on a convolution of one pixel": (POINT, flat_pair),
    "eight bits": (LINEAR, eight_bits),
}


@pytest.mark.parametrize("kind", list(KOHYA))
def test_lycoris_is_read_as_what_it_amounts_to(base, tmp_path, kind):
    layer, make = KOHYA[kind]
    weight = base.unet.get_parameter(f"{layer}.weight")
    parts, wanted = make(weight.detach())
    save_file({f"{underscored(layer)}.{end}": part for end, part in parts.items()}, tmp_path / "z.safetensors")
    concept = Concept.load(tmp_path / "z.safetensors")
    with concept.attach(base, 0.5):
        changed = base.unet.get_parameter(f"{layer}.weight").detach().clone()
    torch.testing.assert_close(changed, weight + 0.5 * wanted, atol=1e-5, rtol=1e-5)
    again = Concept.load(concept.save(tmp_path / "again.safetensors"))
    with again.attach(base, 0.5):
        torch.testing.assert_close(base.unet.get_parameter(f"{layer}.weight").detach(), changed, atol=1e-5, rtol=1e-5)


SPELLINGS = {
    "unet": "unet.{}.lora_A.weight unet.{}.lora_B.weight",
    "attention processors without a prefix": "{p}_lora.down.weight {p}_lora.up.weight",
    "PEFT in memory": "unet.{}.lora_A.default.weight unet.{}.lora_B.default.weight",
    "PEFT in one file": "base_model.model.{}.lora_A.weight base_model.model.{}.lora_B.weight",
    "ComfyUI": "diffusion_model.{s}.lora_up.weight diffusion_model.{s}.lora_down.weight",
    "ComfyUI, PEFT's ends": "diffusion_model.{s}.lora_A.weight diffusion_model.{s}.lora_B.weight",
    "SimpleTuner": "lycoris_{u}.lora_down.weight lycoris_{u}.lora_up.weight",
}


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_a_lora_is_read_in_every_spelling(base, tmp_path, spelling):
    weight = base.unet.get_parameter(f"{LINEAR}.weight").detach()
    down, up = pair(weight)
    processor = LINEAR.replace(".to_k", ".processor.to_k")
    named = [
        name.format(
            LINEAR, p=processor, s="input_blocks.1.1.transformer_blocks.0.attn2.to_k", u=LINEAR.replace(".", "_")
        )
        for name in SPELLINGS[spelling].split()
    ]
    tensors = {name: up if "up" in name.rsplit("lora", 1)[1] or "lora_B" in name else down for name in named}
    save_file(tensors, tmp_path / "z.safetensors")
    concept = Concept.load(tmp_path / "z.safetensors")
    assert list(concept.changes) == [f"unet.{LINEAR}.weight"]
    torch.testing.assert_close(
        concept.changes[f"unet.{LINEAR}.weight"].changed(weight, 1.0), weight + product(down, up)
    )


def test_text_encoders_in_comfyuis_names(tmp_path):
    down, up = randn(2, 32), randn(32, 2)
    names = [f"text_encoders.clip_l.transformer.{TEXT}.lora_{end}.weight" for end in ("down", "up")]
    save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "z.safetensors")
    assert list(Concept.load(tmp_path / "z.safetensors").changes) == [
        "text_encoder.encoder.layers.0.self_attn.q_proj.weight"
    ]


def test_whole_differences_in_comfyuis_names(base, tmp_path):
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.diff"
    save_file({name: torch.ones(base.unet.get_parameter(f"{LINEAR}.weight").shape)}, tmp_path / "z.safetensors")
    assert list(Concept.load(tmp_path / "z.safetensors").changes) == [f"unet.{LINEAR}.weight"]


def test_several_words_of_a_lora_are_several_concepts_with_its_weights(base, tmp_path):
    weight = base.unet.get_parameter(f"{LINEAR}.weight").detach()
    down, up = pair(weight)
    tensors = {f"{underscored(LINEAR)}.lora_down.weight": down, f"{underscored(LINEAR)}.lora_up.weight": up}
    tensors |= {"bundle_emb.dog.emb_params": randn(2, 32, seed=7), "bundle_emb.cat.string_to_param.*": randn(1, 32)}
    save_file(tensors, tmp_path / "pets.safetensors")
    read = Concept.load(tmp_path / "pets.safetensors")
    assert (read.token, [one.token for one in read.partners]) == ("cat", ["dog"])
    assert import_concept(tmp_path / "pets.safetensors", None, tmp_path / "library").name == "cat.safetensors"
    cat, dog = (Concept.load(tmp_path / "library" / f"{name}.safetensors") for name in ("cat", "dog"))
    assert torch.equal(cat.rows[0], tensors["bundle_emb.cat.string_to_param.*"]) and dog.card.vectors == 2
    assert torch.equal(dog.rows[0], tensors["bundle_emb.dog.emb_params"])
    assert set(cat.changes) == set(dog.changes) == set(read.changes)


@pytest.mark.parametrize(
    "file", ["pytorch_lora_weights.safetensors", "learned_embeds.safetensors", "learned_embeds.bin"]
)
def test_the_output_folder_of_a_script_is_read(base, tmp_path, file):
    folder = tmp_path / "output"
    folder.mkdir()
    down, up = pair(base.unet.get_parameter(f"{LINEAR}.weight").detach())
    lora = {f"unet.{LINEAR}.lora.down.weight": down, f"unet.{LINEAR}.lora.up.weight": up}
    tensors = lora if "lora" in file else {"<cat>": randn(2, 32)}
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file)
    (folder / "checkpoint-500").mkdir()
    concept = Concept.load(import_concept(folder, "<tom>", tmp_path / "library"))
    assert concept.token == "<tom>" and bool(concept.changes) == ("lora" in file)


def test_the_two_files_of_the_sdxl_script_are_one_word(tmp_path):
    save_file({"<cat>": randn(1, 768)}, tmp_path / "learned_embeds.safetensors")
    save_file({"<cat>": randn(1, 1280)}, tmp_path / "learned_embeds_2.safetensors")
    concept = Concept.load(import_concept(tmp_path, None, tmp_path / "library"))
    assert (concept.token, concept.card.family) == ("<cat>", "sdxl")
    assert [row.shape[1] for row in concept.rows] == [768, 1280]


def test_a_folder_with_nothing_of_the_kind_says_what_it_looked_for(tmp_path):
    with pytest.raises(ConceptError, match="nor pytorch_lora_weights"):
        import_concept(tmp_path, None, tmp_path / "library")


# -- weights that are changes only beside their base ----------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
def test_whole_weights_of_the_custom_diffusion_script_and_its_words(base, tmp_path, binary):
    """Its folder, with the names of diffusers' own attention processor; the word is in a file of its name."""
    layer = LINEAR.removesuffix(".to_k")
    theirs = CustomDiffusionAttnProcessor(True, True, 32, 32).state_dict()
    learned = {name: randn(*base.unet.get_parameter(f"{layer}.{plain(name)}").shape, seed=len(name)) for name in theirs}
    tensors = {f"{layer}.processor.{name}": tensor for name, tensor in learned.items()}
    folder = tmp_path / "output"
    base_folder = tmp_path / "base"
    tiny.sd_pipeline().save_pretrained(base_folder)
    folder.mkdir()
    words = {word: randn(1, 32, seed=len(word)) for word in ("<new1>", "<other>")}
    for name, content in {"pytorch_custom_diffusion_weights": tensors, **{w: {w: r} for w, r in words.items()}}.items():
        torch.save(content, folder / f"{name}.bin") if binary else save_file(content, folder / f"{name}.safetensors")
    with pytest.raises(ConceptError, match="Custom Diffusion script") as refused:
        import_concept(folder, None, tmp_path / "library")
    assert "--base BASE" in refused.value.hint
    paths = import_concept(folder, None, tmp_path / "library", bases=["pocket", str(base_folder)])
    assert paths.name == "new1.safetensors"
    for word, row in words.items():
        concept = Concept.load(tmp_path / "library" / f"{word.strip('<>')}.safetensors")
        assert torch.equal(concept.rows[0], row) and concept.card.method == "custom-diffusion"
        with concept.attach(base):
            for name, tensor in learned.items():
                torch.testing.assert_close(base.unet.get_parameter(f"{layer}.{plain(name)}").data, tensor)


def plain(name):
    return name.replace("_custom_diffusion", "")


@pytest.mark.parametrize(("layer", "of_columns"), [(LINEAR, True), (LINEAR, False), (CONV, True), (CONV, False)])
def test_an_ia3_is_read_as_whole_differences(base, tmp_path, layer, of_columns):
    """W + W * factor, as AUTOMATIC1111's `network_ia3` has it."""
    weight = base.unet.get_parameter(f"{layer}.weight").detach().clone()
    count = weight.shape[1 if of_columns else 0]
    factors = randn(1, count, *[1] * (weight.ndim - 2))
    name = underscored(layer)
    tensors = {f"{name}.weight": factors, f"{name}.on_input": torch.tensor(of_columns)}
    save_file(tensors, tmp_path / "z.safetensors")
    tiny.sd_pipeline().save_pretrained(tmp_path / "base")
    path = import_concept(tmp_path / "z.safetensors", "zed", tmp_path / "library", bases=[str(tmp_path / "base")])
    concept = Concept.load(path)
    with concept.attach(base, 0.5):
        after = base.unet.get_parameter(f"{layer}.weight").detach().clone()
    along = (1, -1) if of_columns else (-1, 1)
    torch.testing.assert_close(after, weight * (1 + 0.5 * factors.reshape(*along, *[1] * (weight.ndim - 2))))
    save_file(tensors | {f"{name}.weight": torch.ones(1, count + 1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ConceptError, match=f"with {count + 1} {'columns' if of_columns else 'rows'}"):
        import_concept(tmp_path / "odd.safetensors", None, tmp_path / "library", bases=[str(tmp_path / "base")])


def test_what_needs_no_base_is_read_with_one_as_without(base, tmp_path):
    down, up = pair(base.unet.get_parameter(f"{LINEAR}.weight").detach())
    tensors = {f"{underscored(LINEAR)}.lora_down.weight": down, f"{underscored(LINEAR)}.lora_up.weight": up}
    save_file(tensors, tmp_path / "z.safetensors")
    concept = Concept.load(import_concept(tmp_path / "z.safetensors", None, tmp_path / "library", bases=["nowhere"]))
    assert torch.equal(concept.changes[f"unet.{LINEAR}.weight"].up, up)


PAIR = (".lora_A.weight", ".lora_B.weight")
REFUSED = {
    "a LoRA for another transformer": [f"transformer.transformer_blocks.0.attn1.to_q{end}" for end in PAIR],
    "a LoRA for Wan": ["diffusion_model.blocks.0.self_attn.q.lora_A.weight"],
    "a LoRA for Stable Cascade": ["lora_prior_unet_x.lora_down.weight"],
    "a model for FLUX": ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
    "a model for Stable Diffusion 3": ["joint_blocks.0.x_block.attn.qkv.weight"],
    "a whole checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"],
    "an autoencoder": ["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"],
    "an autoencoder (VAE)": ["first_stage_model.encoder.conv_in.weight"],
    "a ControlNet": ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "an IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "a T2I-Adapter": ["adapter.body.0.resnets.0.block1.weight"],
    "a UNet": ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "a text encoder": ["text_model.encoder.layers.0.self_attn.q_proj.weight"],
    "a GLoRA": [f"{underscored(LINEAR)}.{part}.weight" for part in ("a1", "a2", "b1", "b2")],
    "an IA3": [f"{underscored(LINEAR)}.weight", f"{underscored(LINEAR)}.on_input"],
    "an OFT": [f"{underscored(LINEAR)}.oft_blocks"],
    "Custom Diffusion script": [f"{LINEAR.replace('.to_k', '.processor.to_k')}_custom_diffusion.weight"],
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
def test_a_refusal_says_what_the_file_is(tmp_path, what):
    save_file({name: torch.zeros(4, 4) for name in REFUSED[what]}, tmp_path / "z.safetensors")
    with pytest.raises(ConceptError, match=re.escape(what)) as refused:
        Concept.load(tmp_path / "z.safetensors")
    assert "Stable Diffusion XL, Stable Diffusion 3, FLUX.1" in refused.value.message and refused.value.hint


def test_the_architecture_in_the_header_tells(tmp_path):
    said = {"modelspec.architecture": "flux-1-dev/lora"}
    save_file({f"anything{end}": torch.zeros(2, 2) for end in PAIR}, tmp_path / "z.safetensors", metadata=said)
    with pytest.raises(ConceptError, match=r"a LoRA for FLUX\.1"):
        Concept.load(tmp_path / "z.safetensors")
