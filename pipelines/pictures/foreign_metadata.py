"""Generation settings in pictures of AUTOMATIC1111, InvokeAI and ComfyUI, as fields of a request.

Prompts, seed, steps, sampler, size and scale are taken; what else they tell and would change the picture (models, LoRA,
upscaling) is named. Only JSON and plain text are parsed, of a limited length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.request.samplers import able, sampler_of, spacing_of

LIMIT = 1 << 20  # letters that are read
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_TAG = re.compile(r"\s*(<(?:lora|lyco|hypernet):[^>]*>)")
_TAKEN = frozenset("Steps,Seed,CFG scale,Size,Clip skip,Sampler,Schedule type".split(","))
_HARMLESS = frozenset(
    "Model hash,VAE hash,Hashes,Lora hashes,TI hashes,Version,User,Face restoration strength,RNG".split(",")
)
_NODES = frozenset(  # of ComfyUI, that are read or change nothing
    "EmptyLatentImage CLIPTextEncode CLIPTextEncodeSDXL ConditioningSetArea VAEDecode SaveImage PreviewImage "
    "CLIPSetLastLayer VAELoader".split()
)
NAMES, LETTERS = 20, 80
"""Most settings named as left out, and most letters of each."""

Fields = dict[str, Any]
"""Fields of a `Request`."""


class ForeignSettings(NamedTuple):
    """The settings found in a picture."""

    fields: Fields
    """Of a request."""

    left: tuple[str, ...]
    """Settings that are not used and would change the picture, in words: `Model v1-5`."""


def read_fields(chunks: Mapping[str, Any]) -> ForeignSettings | None:
    """Read the settings in the text chunks of a picture; None if no known program wrote them.

    Args:
        chunks: name -> text of the picture's chunks.
    """
    readers = (("parameters", _of_a1111), ("invokeai_metadata", _of_invokeai), ("prompt", _of_comfyui))
    for name, reader in readers:
        text = chunks.get(name)
        if not isinstance(text, str) or len(text) > LIMIT:
            continue
        try:
            told = reader(text)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            continue
        if told:
            fields = {key: value for key, value in told.fields.items() if value is not None}
            left = dict.fromkeys(one if len(one) <= LETTERS else f"{one[:LETTERS]}…" for one in told.left)
            return ForeignSettings(fields, tuple(left)[:NAMES])
    return None


def not_taken(name: str, left: Sequence[str]) -> str:
    """Return a sentence about the settings of a picture that are not used.

    >>> not_taken("a.png", ["Model v1-5", "<lora:wolf:1>"])
    'Of a.png is not taken: Model v1-5, <lora:wolf:1>.'
    """
    return f"Of {name} is not taken: {', '.join(left)}."


def _sampled(sampler: str, spacing: str = "") -> tuple[Fields, list[str]]:
    """Return sampler and spacing by the names of other programs, and the names that are unknown here."""
    known, wanted = sampler_of(sampler), spacing_of(spacing, sampler)
    left = [f"Sampler {sampler.strip()}"] if sampler.strip() and known is None else []
    spaced = able(known, wanted)
    if wanted and not spaced:
        left.append(f"Schedule type {spacing.strip() or wanted}")
    return {"scheduler": known, "spacing": wanted if spaced else None}, left


def _of_a1111(text: str) -> ForeignSettings | None:
    """Read the infotext: prompt, `Negative prompt: ...`, and a last line of `Name: value` pairs."""
    *lines, last = text.strip().split("\n")
    pairs = dict(_PAIR.findall(last))
    if len(pairs) < 3 or "Steps" not in pairs:
        return None
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    width, _, height = pairs.get("Size", "").partition("x")
    sampled, left = _sampled(pairs.get("Sampler", ""), pairs.get("Schedule type", ""))
    left += [f"{name} {value}" for name, value in pairs.items() if name not in _TAKEN | _HARMLESS]
    left += _TAG.findall(f"{prompt}{negative}")
    fields = {
        "prompt": _TAG.sub("", prompt).strip(),
        "negative_prompt": _TAG.sub("", negative).strip(),
        "steps": int(pairs["Steps"]),
        "seed": int(pairs["Seed"]) if "Seed" in pairs else None,
        "guidance": {"scale": float(pairs["CFG scale"])} if "CFG scale" in pairs else None,
        "width": int(width) if width else None,
        "height": int(height) if height else None,
        "clip_skip": int(pairs["Clip skip"]) if "Clip skip" in pairs else None,
        **sampled,
    }
    return ForeignSettings(fields, tuple(left))


def _of_invokeai(text: str) -> ForeignSettings | None:
    told = json.loads(text)
    if "positive_prompt" not in told:
        return None
    sampled, left = _sampled(str(told.get("scheduler", "")))
    if isinstance(model := told.get("model"), dict):
        left.append(f"Model {model.get('name') or model.get('model_name')}")
    for name in ("loras", "controlnets", "ipAdapters", "t2iAdapters", "refiner_model", "vae"):
        left += [name] if told.get(name) else []
    fields = {
        "prompt": str(told["positive_prompt"]),
        "negative_prompt": str(told.get("negative_prompt") or ""),
        "guidance": {"scale": float(told["cfg_scale"])} if told.get("cfg_scale") else None,
        "clip_skip": 1 + int(told.get("clip_skip") or 0),
        **{name: told.get(name) for name in ("seed", "steps", "width", "height")},
        **sampled,
    }
    return ForeignSettings(fields, tuple(left))


def _of_comfyui(text: str) -> ForeignSettings | None:
    """Read the graph as it was sent: the sampler, its inputs, and the empty picture it starts from."""
    graph = json.loads(text)
    nodes = [node for node in graph.values() if str(node.get("class_type", "")).startswith("KSampler")]
    if not nodes:
        return None
    told = nodes[0]["inputs"]
    size = _inputs(graph, told.get("latent_image"))
    sampled, left = _sampled(str(told.get("sampler_name", "")), str(told.get("scheduler", "")))
    left += [_node(node) for node in graph.values() if node is not nodes[0] and node.get("class_type") not in _NODES]
    left += [f"Denoise {told['denoise']}"] if told.get("denoise", 1) != 1 else []
    fields = {
        "prompt": _text(graph, told["positive"]),
        "negative_prompt": _text(graph, told["negative"]),
        "seed": told.get("seed", told.get("noise_seed")),
        "steps": told.get("steps"),
        "guidance": {"scale": float(told["cfg"])} if "cfg" in told else None,
        "width": size.get("width"),
        "height": size.get("height"),
        **sampled,
    }
    return ForeignSettings(fields, tuple(left))


def _node(node: Mapping[str, Any]) -> str:
    """Return a node in words: its kind, and the file it reads."""
    named = [value for name, value in node.get("inputs", {}).items() if name.endswith("_name") and value]
    return " ".join([str(node.get("class_type", "")), *map(str, named)])


def _inputs(graph: Mapping[str, Any], wire: Any) -> Mapping[str, Any]:
    """Return the inputs of the node at the other end of a wire."""
    return graph[str(wire[0])]["inputs"] if isinstance(wire, list) else {}


def _text(graph: Mapping[str, Any], wire: Any, depth: int = 0) -> str:
    """Return the text that reaches a wire, through nodes that pass conditioning on."""
    inputs = _inputs(graph, wire)
    text = inputs.get("text", inputs.get("text_g"))
    if isinstance(text, str):
        return text
    onward = text if isinstance(text, list) else inputs.get("conditioning")
    return _text(graph, onward, depth + 1) if onward is not None and depth < 8 else ""
