"""Files that are no concepts of the known bases, recognised by the names of their tensors and their headers.

Needs no torch. A refusal that says what a file is saves a search; the list is of what people have beside their LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pipelines.models.families.known import KNOWN as FAMILIES

_ARCHITECTURES = (  # `modelspec.architecture`, of families that are not known
    ("stable-cascade", "Stable Cascade"),
    ("hunyuan", "Hunyuan"),
    ("wan", "Wan"),
    ("lumina", "Lumina"),
    ("auraflow", "AuraFlow"),
    ("chroma", "Chroma"),
)
_LAYERS = (  # of the networks of other families; the first that is found tells
    (r"lora_prior_|lora_stage_c|(^|\.)(down|up)_blocks\.\d+\.\d+\.(attention|kv_mapper)", "Stable Cascade"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn)[._]", "Wan"),
    (r"^(base_model\.model\.)?(transformer|diffusion_model)\.transformer_blocks\.\d+\.attn1\.", "another transformer"),
)
_PARTS = (  # of known families, which are told where a file is no change of them
    (r"double_blocks[._]|single_blocks[._]|single_transformer_blocks[._]", "FLUX"),
    (r"joint_blocks[._]", "Stable Diffusion 3"),
    (r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)", "Qwen-Image"),
    (r"(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN)", "Z-Image"),
)
_CHANGE = re.compile(r"lora|lycoris|lokr|hada|dora|oft|glora|\.diff|\.alpha$")
_WITH_BASE = "name it, as in studio concepts import FILE --base BASE."
_PART = "It is part of a base: put it into the folder of one."
_FILES = (  # kinds of files that are no concept; the first that is found tells
    (
        r"(\.processor\.to_[kqv]|to_out)_custom_diffusion",
        "of diffusers' Custom Diffusion script",
        "It holds whole weights, whose change is that from their base: " + _WITH_BASE,
    ),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter", "The studio has no use for one."),
    (r"^(control_model\.|controlnet_|lllite_|input_hint_block)", "a ControlNet", "Say where things stand with boxes."),
    (
        r"^(adapter\.)?body\.\d+\.(resnets|in_conv|block\d|skep|down_opt)",
        "a T2I-Adapter",
        "The studio has no use for one.",
    ),
    (r"^model\.diffusion_model\.", "a whole checkpoint", "Give it as the base: --base FILE."),
    (r"^(first_stage_model\.|(en|de)coder\.(conv_in|(down|up)(_blocks)?\.|mid))", "an autoencoder (VAE)", _PART),
    (r"^(down|up)_blocks\.\d+\.(?!.*lora)[\w.]+\.(weight|bias)$", "a UNet", _PART),
    (r"^(text_model\.)?(encoder\.layers|embeddings)\.(?!.*lora)[\w.]+\.(weight|bias)$", "a text encoder", _PART),
    (r"\.(oft_blocks|oft_diag|oft_R)", "an OFT", ""),
    (r"\.on_input$", "an IA3", "It holds factors of the weights of its base: " + _WITH_BASE),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA", ""),
)
KNOWN = f"this studio knows embeddings and LoRA for {', '.join(one.title for one in FAMILIES.values())}"
READ = "LoRA, LoCon, LoHa, LoKr, DoRA and whole differences are read."


def foreign(names: Iterable[str], said: Mapping[str, str], ours: bool) -> tuple[str, str] | None:
    """Return the kind of a file and the next step, as two pieces of a message; None if it may be a concept.

    Args:
        names: of its tensors.
        said: what its header says.
        ours: whether it holds changed layers of a known network; then only the layers of other ones beside them tell.
    """
    listed = list(names)
    if not ours and (found := _first(_FILES, listed)):
        return found[1], found[2] or READ
    family = _family(listed, said) or (None if ours else _known(listed, said))
    if family is None:
        return None
    if not any("." in name or "lora" in name for name in listed):
        what = "an embedding"
    else:
        what = "a LoRA" if any(_CHANGE.search(name) for name in listed) else "a model"
    return f"{what} for {family}", "Use it in a program for that model, or get one made for these."


def _family(names: list[str], said: Mapping[str, str]) -> str | None:
    architecture = said.get("modelspec.architecture", "").lower()
    for start, family in _ARCHITECTURES:
        if architecture.startswith(start):
            return family
    found = _first(_LAYERS, names)
    return found[1] if found else None


def _known(names: list[str], said: Mapping[str, str]) -> str | None:
    """Return the family of a file of parts of a known one that are no change of it."""
    if not any("." in name or "lora" in name for name in names):
        return None
    architecture = said.get("modelspec.architecture", "").lower()
    named = (one.title for one in FAMILIES.values() if architecture.startswith(one.architecture))
    found = _first(_PARTS, names)
    return next(named, found[1] if found else None)


def _first(kinds: Iterable[tuple[str, ...]], names: list[str]) -> tuple[str, ...] | None:
    for kind in kinds:
        pattern = re.compile(kind[0])
        if any(pattern.search(name) for name in names):
            return kind
    return None
