"""Layers of transformers in the names of their first implementations, which ComfyUI and kohya's scripts keep.

There queries, keys and values are often one layer: of several layers' low-rank changes that becomes one of a larger
rank, whose blocks lie on a diagonal, and such a one is taken apart again without loss. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple


class Rule(NamedTuple):
    """One layer of the original and those that diffusers has in its place; `{}` stands for a number.

    Attributes:
        original: name in the first implementation.
        ours: names in diffusers, in the order of the original's rows.
    """

    original: str
    ours: tuple[str, ...]


def _qkv(original: str, ours: str, names: str = "to_q to_k to_v") -> Rule:
    return Rule(original, tuple(f"{ours}.{name}" for name in names.split()))


_ADDED = "add_q_proj add_k_proj add_v_proj"
_DOUBLE = (
    _qkv("double_blocks.{}.img_attn.qkv", "transformer_blocks.{}.attn"),
    _qkv("double_blocks.{}.txt_attn.qkv", "transformer_blocks.{}.attn", _ADDED),
    Rule("double_blocks.{}.img_attn.proj", ("transformer_blocks.{}.attn.to_out.0",)),
    Rule("double_blocks.{}.txt_attn.proj", ("transformer_blocks.{}.attn.to_add_out",)),
)
_FLUX1 = (
    *_DOUBLE,
    Rule("double_blocks.{}.img_mlp.0", ("transformer_blocks.{}.ff.net.0.proj",)),
    Rule("double_blocks.{}.img_mlp.2", ("transformer_blocks.{}.ff.net.2",)),
    Rule("double_blocks.{}.txt_mlp.0", ("transformer_blocks.{}.ff_context.net.0.proj",)),
    Rule("double_blocks.{}.txt_mlp.2", ("transformer_blocks.{}.ff_context.net.2",)),
    Rule("double_blocks.{}.img_mod.lin", ("transformer_blocks.{}.norm1.linear",)),
    Rule("double_blocks.{}.txt_mod.lin", ("transformer_blocks.{}.norm1_context.linear",)),
    Rule(
        "single_blocks.{}.linear1",
        (
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
            "single_transformer_blocks.{}.proj_mlp",
        ),
    ),
    Rule("single_blocks.{}.linear2", ("single_transformer_blocks.{}.proj_out",)),
    Rule("single_blocks.{}.modulation.lin", ("single_transformer_blocks.{}.norm.linear",)),
    Rule("img_in", ("x_embedder",)),
    Rule("txt_in", ("context_embedder",)),
)
_FLUX2 = (
    *_DOUBLE,
    Rule("double_blocks.{}.img_mlp.0", ("transformer_blocks.{}.ff.linear_in",)),
    Rule("double_blocks.{}.img_mlp.2", ("transformer_blocks.{}.ff.linear_out",)),
    Rule("double_blocks.{}.txt_mlp.0", ("transformer_blocks.{}.ff_context.linear_in",)),
    Rule("double_blocks.{}.txt_mlp.2", ("transformer_blocks.{}.ff_context.linear_out",)),
    Rule("single_blocks.{}.linear1", ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj",)),
    Rule("single_blocks.{}.linear2", ("single_transformer_blocks.{}.attn.to_out",)),
    Rule("double_stream_modulation_img.lin", ("double_stream_modulation_img.linear",)),
    Rule("double_stream_modulation_txt.lin", ("double_stream_modulation_txt.linear",)),
    Rule("single_stream_modulation.lin", ("single_stream_modulation.linear",)),
    Rule("img_in", ("x_embedder",)),
    Rule("txt_in", ("context_embedder",)),
)
_SD3 = (
    _qkv("joint_blocks.{}.x_block.attn.qkv", "transformer_blocks.{}.attn"),
    _qkv("joint_blocks.{}.context_block.attn.qkv", "transformer_blocks.{}.attn", _ADDED),
    _qkv("joint_blocks.{}.x_block.attn2.qkv", "transformer_blocks.{}.attn2"),
    Rule("joint_blocks.{}.x_block.attn.proj", ("transformer_blocks.{}.attn.to_out.0",)),
    Rule("joint_blocks.{}.context_block.attn.proj", ("transformer_blocks.{}.attn.to_add_out",)),
    Rule("joint_blocks.{}.x_block.attn2.proj", ("transformer_blocks.{}.attn2.to_out.0",)),
    Rule("joint_blocks.{}.x_block.mlp.fc1", ("transformer_blocks.{}.ff.net.0.proj",)),
    Rule("joint_blocks.{}.x_block.mlp.fc2", ("transformer_blocks.{}.ff.net.2",)),
    Rule("joint_blocks.{}.context_block.mlp.fc1", ("transformer_blocks.{}.ff_context.net.0.proj",)),
    Rule("joint_blocks.{}.context_block.mlp.fc2", ("transformer_blocks.{}.ff_context.net.2",)),
    Rule("joint_blocks.{}.x_block.adaLN_modulation.1", ("transformer_blocks.{}.norm1.linear",)),
    Rule("joint_blocks.{}.context_block.adaLN_modulation.1", ("transformer_blocks.{}.norm1_context.linear",)),
)


def _krea_attention(original: str, ours: str) -> tuple[Rule, ...]:
    attention = {"wq": "to_q", "wk": "to_k", "wv": "to_v", "wo": "to_out.0", "gate": "to_gate"}
    return (
        *(Rule(f"{original}.attn.{name}", (f"{ours}.attn.{own}",)) for name, own in attention.items()),
        *(Rule(f"{original}.mlp.{name}", (f"{ours}.ff.{name}",)) for name in ("gate", "up", "down")),
    )


_KREA2 = (
    *_krea_attention("blocks.{}", "transformer_blocks.{}"),
    *_krea_attention("txtfusion.layerwise_blocks.{}", "text_fusion.layerwise_blocks.{}"),
    *_krea_attention("txtfusion.refiner_blocks.{}", "text_fusion.refiner_blocks.{}"),
    Rule("txtfusion.projector", ("text_fusion.projector",)),
    Rule("first", ("img_in",)),
    Rule("last.linear", ("final_layer.linear",)),
    Rule("tmlp.0", ("time_embed.linear_1",)),
    Rule("tmlp.2", ("time_embed.linear_2",)),
    Rule("tproj.1", ("time_mod_proj",)),
    Rule("txtmlp.1", ("txt_in.linear_1",)),
    Rule("txtmlp.3", ("txt_in.linear_2",)),
)
_Z_IMAGE_PARTS = ("layers", "noise_refiner", "context_refiner")
_Z_IMAGE = (
    *(_qkv(f"{part}.{{}}.attention.qkv", f"{part}.{{}}.attention") for part in _Z_IMAGE_PARTS),
    *(Rule(f"{part}.{{}}.attention.out", (f"{part}.{{}}.attention.to_out.0",)) for part in _Z_IMAGE_PARTS),
)

RULES: Mapping[str, tuple[Rule, ...]] = {
    "sd3": _SD3,
    "flux1": _FLUX1,
    "flux2": _FLUX2,
    "krea2": _KREA2,
    "z-image": _Z_IMAGE,
}
"""Families whose layers have other names there. Others are called as in diffusers."""

WRITTEN_AS_OURS = ("z-image",)
"""Families of which programs read the names of diffusers too, so that nothing has to be joined."""

_NUMBER = r"(\d+)"

_SIGNS: tuple[tuple[str, str], ...] = (  # the first that is found tells
    (r"^joint_blocks\.", "sd3"),
    (r"^(layers|noise_refiner|context_refiner)\.\d+\.(attention|feed_forward|adaLN)", "z-image"),
    (r"^blocks\.\d+\.(attn\.w[qkvo]|attn\.gate|mlp\.(gate|up|down))$|^(txtfusion|text_fusion)\.", "krea2"),
    (r"^transformer_blocks\.\d+\.(attn\.to_gate|ff\.(gate|up|down))$", "krea2"),
    (r"^transformer_blocks\.\d+\.(img|txt)_(mlp|mod)", "qwen-image"),
    (r"^single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)$", "flux2"),
    (r"^transformer_blocks\.\d+\.ff(_context)?\.linear_(in|out)$", "flux2"),
    (r"^(double|single)_stream_modulation", "flux2"),
    (r"^single_transformer_blocks\.", "flux1"),
    (r"^double_blocks\.\d+\.(img|txt)_mod\.|^single_blocks\.\d+\.modulation", "flux1"),
    (r"^transformer_blocks\.\d+\.attn2\.", "sd3"),
)
_WIDE = re.compile(r"^(double_blocks\.\d+\.(img|txt)_mlp\.0|single_blocks\.\d+\.linear1)$")


def family_of_layers(layers: Mapping[str, tuple[int, int]]) -> str:
    """Return the family of a transformer by the layers that are changed; empty if they do not tell.

    Args:
        layers: name in the transformer -> outputs and inputs, 0 where they are not known.
    """
    for pattern, family in _SIGNS:
        if any(re.search(pattern, name) for name in layers):
            return family
    if not any(name.startswith(("double_blocks.", "single_blocks.")) for name in layers):
        return ""
    # FLUX.2 has gated feed-forwards, which are wider: 6 and 9 times the inputs instead of 4 and 7.
    for name, (outputs, inputs) in layers.items():
        if _WIDE.search(name) and inputs:
            return "flux2" if outputs / inputs > (8 if name.endswith("linear1") else 5) else "flux1"
    return "flux1"


@cache
def _patterns(family: str) -> tuple[tuple[re.Pattern[str], Rule], ...]:
    return tuple(
        (re.compile(re.escape(rule.original).replace(r"\{\}", _NUMBER)), rule) for rule in RULES.get(family, ())
    )


def ours(family: str, layer: str) -> tuple[str, ...]:
    """Return the layers of diffusers for one of the original; the layer itself if it is called so there too.

    >>> ours("flux2", "double_blocks.3.img_attn.proj")
    ('transformer_blocks.3.attn.to_out.0',)
    """
    for pattern, rule in _patterns(family):
        if found := pattern.fullmatch(layer):
            return tuple(one.replace("{}", found[1]) if found.groups() else one for one in rule.ours)
    return (layer,)


def original(family: str, layer: str) -> tuple[str, int, int]:
    """Return the layer of the original that one of diffusers belongs to, its place there and the number of places.

    >>> original("flux1", "transformer_blocks.3.attn.to_k")
    ('double_blocks.3.img_attn.qkv', 1, 3)
    """
    if family in WRITTEN_AS_OURS:
        return layer, 0, 1
    for rule in RULES.get(family, ()):
        for place, one in enumerate(rule.ours):
            if found := re.fullmatch(re.escape(one).replace(r"\{\}", _NUMBER), layer):
                name = rule.original.replace("{}", found[1]) if found.groups() else rule.original
                return name, place, len(rule.ours)
    return layer, 0, 1


def spelled() -> Iterable[str]:
    """Return all words between dots in the names of layers, by which names with underscores are taken apart."""
    names = [one for rules in RULES.values() for rule in rules for one in (rule.original, *rule.ours)]
    return {word for name in names for word in name.split(".") if word != "{}" and not word.isdigit()}
