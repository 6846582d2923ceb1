"""What pictures of AUTOMATIC1111, InvokeAI and ComfyUI say of how they were made, as fields of a request.

Prompts, seed, steps, sampler, size and scale are taken; what else they tell (models, LoRA, upscaling) is left out. Only
JSON and plain text are parsed, of a limited length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

LIMIT = 1 << 20  # letters that are read
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_TAG = re.compile(r"\s*<(?:lora|lyco|hypernet):[^>]*>")
_SAMPLERS = {
    "ddim": "ddim",
    "dpm++ 2m": "dpm++2m",
    "dpmpp_2m": "dpm++2m",
    "unipc": "unipc",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "euler": "euler",
    "euler a": "euler-a",
    "euler_ancestral": "euler-a",
    "euler_a": "euler-a",
    "lcm": "lcm",
}
_SPACINGS = {"karras": "karras", "sgm uniform": "sgm", "sgm_uniform": "sgm"}

Fields = dict[str, Any]
"""Fields of a `Request`."""


def read_fields(chunks: Mapping[str, Any]) -> Fields | None:
    """The fields that the text chunks of a picture tell; None if they are of no program that is known.

    Args:
        chunks: name -> text of the picture's chunks.
    """
    readers = (("parameters", _of_a1111), ("invokeai_metadata", _of_invokeai), ("prompt", _of_comfyui))
    for name, reader in readers:
        text = chunks.get(name)
        if not isinstance(text, str) or len(text) > LIMIT:
            continue
        try:
            fields = reader(text)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            continue
        if fields:
            return {key: value for key, value in fields.items() if value is not None}
    return None


def _sampled(sampler: str, spacing: str = "") -> Fields:
    """Sampler and spacing by the names of other programs; those that are unknown are left to the base."""
    plain = sampler.strip().lower()
    for end in (" karras", "_k"):
        if plain.endswith(end):
            plain, spacing = plain.removesuffix(end), spacing or "karras"
    known, spaced = _SAMPLERS.get(plain), _SPACINGS.get(spacing.strip().lower())
    able = known in ("dpm++2m", "unipc", "euler") or (spaced == "sgm" and known not in (None, "lcm"))
    return {"scheduler": known, "spacing": spaced if able else None}


def _of_a1111(text: str) -> Fields | None:
    """The infotext: prompt, `Negative prompt: ...`, and a last line of `Name: value` pairs."""
    *lines, last = text.strip().split("\n")
    pairs = dict(_PAIR.findall(last))
    if len(pairs) < 3 or "Steps" not in pairs:
        return None
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    width, _, height = pairs.get("Size", "").partition("x")
    return {
        "prompt": _TAG.sub("", prompt).strip(),
        "negative_prompt": _TAG.sub("", negative).strip(),
        "steps": int(pairs["Steps"]),
        "seed": int(pairs["Seed"]) if "Seed" in pairs else None,
        "guidance": {"scale": float(pairs["CFG scale"])} if "CFG scale" in pairs else None,
        "width": int(width) if width else None,
        "height": int(height) if height else None,
        "clip_skip": int(pairs["Clip skip"]) if "Clip skip" in pairs else None,
        **_sampled(pairs.get("Sampler", ""), pairs.get("Schedule type", "")),
    }


def _of_invokeai(text: str) -> Fields | None:
    told = json.loads(text)
    if "positive_prompt" not in told:
        return None
    return {
        "prompt": str(told["positive_prompt"]),
        "negative_prompt": str(told.get("negative_prompt") or ""),
        "guidance": {"scale": float(told["cfg_scale"])} if told.get("cfg_scale") else None,
        "clip_skip": 1 + int(told.get("clip_skip") or 0),
        **{name: told.get(name) for name in ("seed", "steps", "width", "height")},
        **_sampled(str(told.get("scheduler", ""))),
    }


def _of_comfyui(text: str) -> Fields | None:
    """The graph as it was sent: the sampler, what is wired to it, and the empty picture it starts from."""
    graph = json.loads(text)
    nodes = [node for node in graph.values() if str(node.get("class_type", "")).startswith("KSampler")]
    if not nodes:
        return None
    told = nodes[0]["inputs"]
    size = _inputs(graph, told.get("latent_image"))
    return {
        "prompt": _text(graph, told["positive"]),
        "negative_prompt": _text(graph, told["negative"]),
        "seed": told.get("seed", told.get("noise_seed")),
        "steps": told.get("steps"),
        "guidance": {"scale": float(told["cfg"])} if "cfg" in told else None,
        "width": size.get("width"),
        "height": size.get("height"),
        **_sampled(str(told.get("sampler_name", "")), str(told.get("scheduler", ""))),
    }


def _inputs(graph: Mapping[str, Any], wire: Any) -> Mapping[str, Any]:
    """The inputs of the node at the other end of a wire."""
    return graph[str(wire[0])]["inputs"] if isinstance(wire, list) else {}


def _text(graph: Mapping[str, Any], wire: Any, depth: int = 0) -> str:
    """The text that reaches a wire, through nodes that pass conditioning on."""
    inputs = _inputs(graph, wire)
    text = inputs.get("text", inputs.get("text_g"))
    if isinstance(text, str):
        return text
    onward = text if isinstance(text, list) else inputs.get("conditioning")
    return _text(graph, onward, depth + 1) if onward is not None and depth < 8 else ""
