"""Names of low-rank tensors in the spellings of diffusers, PEFT and kohya, and their one normal form. Needs no torch.

The normal form is the name of the layer in the installed diffusers and transformers, behind its network:
`unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k`, `text_encoder.encoder.layers.0.self_attn.q_proj`,
`text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj` (the second text encoder still nests).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipelines.models.families.original_layers import spelled

Role = str
"""down, up, mid, alpha, scalar, magnitude, dora, difference, or a tensor of LoHa or LoKr by its own name."""

_LYCORIS = (
    *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)

_ENDS: tuple[tuple[str, Role], ...] = (
    (".lora_A.weight", "down"),
    (".lora_B.weight", "up"),
    (".lora_down.weight", "down"),
    (".lora_up.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    (".lora_linear_layer.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    ("_lora.down.weight", "down"),  # attention processors of early diffusers: attn1.processor.to_q_lora.down.weight
    ("_lora.up.weight", "up"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".lora_magnitude_vector", "magnitude"),
    (".dora_scale", "dora"),
    (".alpha", "alpha"),
    (".lora_mid.weight", "mid"),
    (".scalar", "scalar"),
    (".diff", "difference"),
    *((f".{name}", name) for name in _LYCORIS),
)

_WHOLE = {".diff": "weight", ".diff_b": "bias", ".w_norm": "weight", ".b_norm": "bias"}
"""Endings of whole differences behind kohya's names (LyCORIS: full, and norms), and the parameter each is of."""

_KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_transformer_": "transformer",
    "lycoris_": "unet",  # SimpleTuner
}
_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "conv_norm_out", "time_embedding.")
_GENERIC = (  # ComfyUI's own names
    ("diffusion_model.", "unet"),
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2"),
    ("clip_l.transformer.", "text_encoder"),
    ("clip_g.transformer.", "text_encoder_2"),
)
_ADAPTER = "base_model.model."
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")

_UNET_ORIGINAL = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_TRANSFORMER_WORDS = """attn add_q_proj add_k_proj add_v_proj to_add_out img_mlp txt_mlp img_mod txt_mod lin
    feed_forward w1 w2 w3 adaLN_modulation to_gate""".split()

_UNET_WORDS = """
    down_blocks mid_block up_blocks attentions resnets downsamplers upsamplers transformer_blocks attn1 attn2 to_q
    to_k to_v to_out ff net proj proj_in proj_out conv conv1 conv2 conv_in conv_out conv_norm_out conv_shortcut norm
    norm1 norm2 norm3 time_emb_proj time_embedding add_embedding linear_1 linear_2 fuser linear attn position_net
    linears input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection op time_embed
    label_emb out text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 layer_norm1
    layer_norm2 cond_proj class_embedding final_layer_norm embeddings token_embedding position_embedding
    text_projection
""".split()
_WORDS = sorted([*_UNET_WORDS, *spelled(), *_TRANSFORMER_WORDS], key=len, reverse=True)
_PIECE = re.compile(rf"({'|'.join(_WORDS)}|\d+)(?:_|$)")

LAYERS_PER_BLOCK = 2  # of the UNets of all Stable Diffusion models


class Key(NamedTuple):
    """A tensor of a LoRA file."""

    layer: str
    """The layer's name in normal form; of a whole difference, the parameter's."""
    role: Role


def parsed(name: str) -> Key | None:
    """Return the meaning of a tensor's name; None if it is no change of a layer of a UNet or text encoder."""
    name = name.removeprefix(_ADAPTER).replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
    stem, dot, end = name.rpartition(".")
    kohyas = stem.startswith(tuple(_KOHYA))
    if (leaf := _WHOLE.get(dot + end)) and not _is_parameter(stem):
        layer = _from_kohya(stem) if kohyas else _from_diffusers(stem, False)
        return None if layer is None else Key(f"{layer}.{leaf}", "difference")
    for end, role in _ENDS:
        if name.endswith(end):
            stem = name.removesuffix(end)
            layer = _from_kohya(stem) if kohyas else _from_diffusers(stem, end.startswith("_lora"))
            return None if layer is None else Key(layer, role)
    return None


def _is_parameter(stem: str) -> bool:
    """Return whether a name is that of a parameter: as diffusers has it in a transformer, or any weight or bias."""
    return stem.startswith("transformer.") or stem.rpartition(".")[2] in ("weight", "bias")


def _from_diffusers(stem: str, processor: bool) -> str | None:
    for prefix, part in _GENERIC:
        if stem.startswith(prefix):
            path = stem.removeprefix(prefix)
            return _of_network(path) if part == "unet" else _normal(part, path)
    if stem.startswith(_UNET):  # attention processors of early diffusers, and PEFT's folders
        stem = f"unet.{stem}"
    part, _, path = stem.partition(".")
    if part not in _PARTS or not path:
        return None
    if processor:
        owner, _, leaf = path.replace(".processor.", ".").rpartition(".")
        text = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
        names = text if part != "unet" else {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
        if leaf not in names:
            return None
        path = f"{owner}.{names[leaf]}"
    return _normal(part, path)


def _from_kohya(stem: str) -> str | None:
    for prefix, part in _KOHYA.items():
        if stem.startswith(prefix):
            path = dotted(stem.removeprefix(prefix))
            if path is None:
                return None
            return _of_network(path) if part == "unet" else _normal(part, path)
    return None


def _of_network(path: str) -> str:
    """The name of a layer of a UNet or of a transformer, which programs put behind the same prefix."""
    return _normal("unet", from_sgm(path)) if in_unet(path) else _normal("transformer", path)


def in_unet(path: str) -> bool:
    """Return whether a layer, in the names of diffusers or of the first implementation, is one of a UNet."""
    return path.startswith((*_UNET, *_UNET_ORIGINAL, "add_embedding.", "position_net.", "cond_proj", "class_embedding"))


def dotted(name: str) -> str | None:
    """`down_blocks_0_attentions_0_proj_in` with dots between the names of modules; None if one is unknown."""
    pieces: list[str] = []
    at = 0
    while at < len(name):
        found = _PIECE.match(name, at)
        if found is None:
            return None
        pieces.append(found[1])
        at = found.end()
    return ".".join(pieces) if pieces and not name.endswith("_") else None


def _normal(part: str, path: str) -> str:
    """The first text encoder is flat in the installed transformers, the second is not; files are either."""
    if part == "text_encoder":
        path = path.removeprefix("text_model.")
    elif part == "text_encoder_2" and not path.startswith(("text_model.", "text_projection")):
        path = f"text_model.{path}"
    return f"{part}.{path}"


# -- SDXL in the names of its first implementation (sgm), which kohya's scripts keep --------------------------------

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_SGM = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)|middle_block\.([012])\.(.+)")


def from_sgm(path: str) -> str:
    """The diffusers name of a layer of the UNet in sgm's names; other names stay as they are."""
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    found = _SGM.fullmatch(path)
    if found is None:
        return path
    side, number, inner, rest, middle, middle_rest = found.groups()
    if middle is not None:
        return f"mid_block.{_MIDDLE[int(middle)]}.{_RESNET.get(middle_rest, middle_rest)}"
    blocks = "down_blocks" if side == "input_blocks" else "up_blocks"
    block, layer = divmod(int(number) - (side == "input_blocks"), LAYERS_PER_BLOCK + 1)
    if rest == "op":
        return f"{blocks}.{block}.downsamplers.0.conv"
    if rest == "conv" and int(inner) > 0:
        return f"{blocks}.{block}.upsamplers.0.conv"
    kind = "attentions" if int(inner) == 1 else "resnets"
    return f"{blocks}.{block}.{kind}.{layer}.{_RESNET.get(rest, rest)}"


def to_sgm(path: str) -> str:
    """A layer of SDXL's UNet in sgm's names."""
    outside = {there: here for here, there in _OUTSIDE.items()}
    resnet = {there: here for here, there in _RESNET.items()}
    if path in outside:
        return outside[path]
    if found := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", path):
        rest = resnet.get(found[2], found[2]) if found[1].startswith("resnets") else found[2]
        return f"middle_block.{_MIDDLE.index(found[1])}.{rest}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path):
        down, block, kind = found[1] == "down", int(found[2]), found[3]
        first = block * (LAYERS_PER_BLOCK + 1) + down
        side = "input_blocks" if down else "output_blocks"
        if kind == "downsamplers":
            return f"{side}.{first + LAYERS_PER_BLOCK}.0.op"
        if kind == "upsamplers":  # behind a resnet and an attention
            return f"{side}.{first + LAYERS_PER_BLOCK}.2.conv"
        rest = resnet.get(found[5], found[5]) if kind == "resnets" else found[5]
        return f"{side}.{first + int(found[4])}.{int(kind == 'attentions')}.{rest}"
    return path


def kohya(layer: str, sdxl: bool) -> str:
    """The name kohya's scripts give to a layer in normal form, without its ending."""
    part, _, path = layer.partition(".")
    if part == "unet":
        return "lora_unet_" + (to_sgm(path) if sdxl else path).replace(".", "_")
    if part == "transformer":
        return "lora_unet_" + path.replace(".", "_")
    prefix = {"text_encoder": "lora_te1_" if sdxl else "lora_te_", "text_encoder_2": "lora_te2_"}[part]
    nested = path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
    return prefix + nested.replace(".", "_")
