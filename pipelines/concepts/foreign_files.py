"""Files that are no concepts of the known bases, recognised by the names of their tensors and their headers.

Needs no torch. A refusal that says what a file is saves a search; the list is of what people have beside their LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_ARCHITECTURES = (  # `modelspec.architecture`
    ("flux-1", "FLUX.1"),
    ("flux-2", "FLUX.2"),
    ("flux.1", "FLUX.1"),
    ("flux", "FLUX.1"),
    ("stable-diffusion-v3", "Stable Diffusion 3"),
    ("stable-diffusion-3", "Stable Diffusion 3"),
    ("sd3", "Stable Diffusion 3"),
    ("stable-cascade", "Stable Cascade"),
    ("qwen-image", "Qwen-Image"),
    ("z-image", "Z-Image"),
    ("hunyuan", "Hunyuan"),
    ("wan", "Wan"),
    ("lumina", "Lumina"),
    ("auraflow", "AuraFlow"),
    ("chroma", "Chroma"),
)
_LAYERS = (  # of the networks of other families; the first that is found tells
    (r"lora_prior_|lora_stage_c|(^|\.)(down|up)_blocks\.\d+\.\d+\.(attention|kv_mapper)", "Stable Cascade"),
    (r"double_blocks[._]|single_blocks[._]|single_transformer_blocks[._]", "FLUX.1"),
    (r"joint_blocks[._]", "Stable Diffusion 3"),
    (r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)", "Qwen-Image"),
    (r"(^|[._])transformer_blocks[._]\d+[._](attn[._](add_|to_add)|ff_context|norm1_context)", "Stable Diffusion 3"),
    (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn)[._]", "Wan"),
    (r"(^|[._])layers[._]\d+[._](attention|feed_forward|adaLN)", "Z-Image"),
    (r"^t5xxl$|(^|[._])t5xxl[._]", "Stable Diffusion 3 or FLUX.1"),
    (r"^(base_model\.model\.)?transformer\.", "a diffusion transformer"),
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
    (r"^(adapter\.)?body\.\d+\.", "a T2I-Adapter", "The studio has no use for one."),
    (r"^model\.diffusion_model\.", "a whole checkpoint", "Give it as the base: --base FILE."),
    (r"^(first_stage_model\.|(en|de)coder\.(conv_in|(down|up)(_blocks)?\.|mid))", "an autoencoder (VAE)", _PART),
    (r"^(down|up)_blocks\.\d+\.(?!.*lora)[\w.]+\.(weight|bias)$", "a UNet", _PART),
    (r"^(text_model\.)?(encoder\.layers|embeddings)\.(?!.*lora)[\w.]+\.(weight|bias)$", "a text encoder", _PART),
    (r"\.(oft_blocks|oft_diag|oft_R)", "an OFT", ""),
    (r"\.on_input$", "an IA3", "It holds factors of the weights of its base: " + _WITH_BASE),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA", ""),
)
KNOWN = "this studio knows embeddings and LoRA for Stable Diffusion 1.x, 2.x and XL"
READ = "LoRA, LoCon, LoHa, LoKr, DoRA and whole differences are read."


def foreign(names: Iterable[str], said: Mapping[str, str], ours: bool) -> tuple[str, str] | None:
    """Return the kind of a file and the next step, as two pieces of a message; None if it may be a concept.

    Args:
        names: of its tensors.
        said: what its header says.
        ours: whether it holds changed layers of a known UNet or text encoder; then only the layers of other networks
            beside them tell.
    """
    listed = list(names)
    if not ours and (found := _first(_FILES, listed)):
        return found[1], found[2] or READ
    family = _family(listed, said)
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


def _first(kinds: Iterable[tuple[str, ...]], names: list[str]) -> tuple[str, ...] | None:
    for kind in kinds:
        pattern = re.compile(kind[0])
        if any(pattern.search(name) for name in names):
            return kind
    return None
