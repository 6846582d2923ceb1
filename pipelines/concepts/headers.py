"""Headers of concepts and of other programs' files: their layout, family and word. Needs no torch.

Layouts that are read: embeddings of diffusers ({token: rows}), kohya (`emb_params`), SDXL (`clip_l` and `clip_g`,
or `text_encoders_0` and `_1`); LoRA of PEFT, of diffusers' own writers past and present, and of kohya, and whole
differences behind kohya's names; with words beside it as the studio (`word_lora.N`) or others (`bundle_emb.NAME. ...`)
write them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from pipelines.concepts.foreign_files import KNOWN, foreign
from pipelines.concepts.lora_keys import Key, parsed
from pipelines.concepts.registry import by_prefix, vectors_of
from pipelines.errors import ConceptError
from pipelines.models.families.known import KNOWN as FAMILIES
from pipelines.models.families.original_layers import family_of_layers

VECTOR_LIMIT = 256
WORD = "word_lora."
"""Prefix of a new word's rows beside changed weights; programs that look for "lora" in every key pass over them."""

FLOATS = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")
PAIRS = (
    ("clip_l", "clip_g"),
    ("text_encoders_0", "text_encoders_1"),
    ("clip_l", "t5xxl"),
    ("clip_l", "clip_g", "t5xxl"),
)
"""Names of a word's rows for several text encoders, in their order."""

_UNNAMED = ("emb_params", "clip_l", "clip_g")
_BUNDLE = re.compile(r"bundle_emb\.([^.]{1,100})\.(?:string_to_param\.[^.]{1,100}|emb_params|clip_l|clip_g)")

FAMILY_NAMES = {name: one.title for name, one in FAMILIES.items()}
_BY_EMBEDDING = {768: "sd1", 1024: "sd2"}
_BY_CONTEXT = {768: "sd1", 1024: "sd2", 2048: "sdxl"}

Fields = dict[str, Any]
"""Fields of a `ConceptCard`."""


class Words(NamedTuple):
    """The places of a word's rows in a file: the names of its tensors, one for each text encoder."""

    names: tuple[str, ...]
    token: str | None
    others: tuple[Words, ...] = ()
    """Further words of the file, learned together with it."""


def words(names: list[str]) -> Words:
    """The tensors that hold a word's rows, among all names of a file."""
    own = sorted(name for name in names if name.startswith(WORD))
    if own:
        return Words(tuple(own), None)
    bundled: dict[str, list[str]] = {}
    # The largest suffix first: clip_l before clip_g, which is the order of the text encoders.
    for name in sorted(names, reverse=True):
        if found := _BUNDLE.fullmatch(name):
            bundled.setdefault(found[1], []).append(name)
    if bundled:
        first, *others = (Words(tuple(own), token) for token, own in sorted(bundled.items()))
        return first._replace(others=tuple(others))
    for pair in PAIRS:
        if set(names) == set(pair):
            return Words(pair, None)
    if len(names) == 1:
        return Words((names[0],), None if names[0] in _UNNAMED else names[0])
    return Words((), None)


def described(file: str, header: dict[str, Any]) -> Fields:
    """Return the fields of a card that the header of a file tells.

    Args:
        file: name of the file, for messages and for the word if there is no other.
        header: as `card.read_header` gives it.

    Raises:
        ConceptError: if it is no concept of a known layout.
    """
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    said: dict[str, str] = header.get("__metadata__", {})
    stem = file.rpartition(".")[0] or file
    ours = any(parsed(name) for name in tensors)
    if found := foreign({name: one for name, one in tensors.items() if not by_prefix([name])}, said, ours):
        raise ConceptError(f"{file} is {found[0]}; {KNOWN}.", found[1])
    if any(entry["dtype"] not in FLOATS for name, entry in tensors.items() if not name.endswith(".alpha")):
        what = "change of weights" if ours else "embedding"
        raise ConceptError(f"{file} holds whole numbers, which no {what} does.", "Check the file.")
    held = {name for names in by_prefix(tensors).values() for name in names}
    rest = {name: entry for name, entry in tensors.items() if name not in held}
    read = _changes if ours else _embedding
    fields: Fields = read(file, rest) if rest or not held else {"vectors": 0}
    if held:
        fields |= _further(file, {name: tensors[name]["shape"] for name in held}, fields["vectors"])
    token = fields.pop("token", None) or _trigger(said) or stem
    family = said_family(said) or fields.pop("family", "")
    return {**fields, "family": family, "token": token[:100] or "concept"}


def _trigger(said: dict[str, str]) -> str:
    """The word to use by what is said of it: the first, where several are listed."""
    return said.get("modelspec.trigger_phrase", "").split(",")[0].strip()


def said_family(said: dict[str, str]) -> str:
    """The family by what other programs write into a header; empty if they say nothing of it."""
    architecture = said.get("modelspec.architecture", "").partition("/")[0].lower()
    version = said.get("ss_base_model_version", "")
    for start, family in _ARCHITECTURES:
        if architecture.startswith(start):
            return family
    for start, family in _VERSIONS:
        if version.startswith(start):
            return family
    return {"True": "sd2", "False": "sd1"}.get(said.get("ss_v2", ""), "")


_ARCHITECTURES = (
    ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-v1", "sd1"),
    ("stable-diffusion-v2", "sd2"),
    ("promptstudio-pocket", "pocket"),
    ("stable-diffusion-v3", "sd3"),
    ("stable-diffusion-3", "sd3"),
    ("sd3", "sd3"),
    ("flux-2", "flux2"),
    ("flux.2", "flux2"),
    ("flux", "flux1"),
    ("z-image", "z-image"),
    ("zimage", "z-image"),
    ("qwen-image", "qwen-image"),
    ("krea", "krea2"),
)
_VERSIONS = (
    ("sdxl", "sdxl"),
    ("sd_v1", "sd1"),
    ("sd_v2", "sd2"),
    ("sd_1", "sd1"),
    ("sd_2", "sd2"),
    ("sd3", "sd3"),
    ("flux2", "flux2"),
    ("flux1", "flux1"),
)


def _changes(file: str, tensors: dict[str, Any]) -> Fields:
    """Return the fields that changed weights tell; refuse tensors that are neither these nor a word."""
    beside = words([name for name in tensors if parsed(name) is None])
    known = {name for one in (beside, *beside.others) for name in one.names}
    unknown = [name for name in tensors if parsed(name) is None and name not in known]
    if unknown or (beside.names and not beside.names[0].startswith((WORD, "bundle_emb."))):
        named = unknown[0] if unknown else beside.names[0]
        count = len(unknown) or len(beside.names)
        raise ConceptError(f"{file} holds {count} tensors that are no changed weights, such as {named!r:.80}.", _NEXT)
    if any(not entry["shape"] for name, entry in tensors.items() if not name.endswith((".alpha", ".scalar"))):
        raise ConceptError(f"{file} holds single numbers in the place of weights.", "Check the file.")
    shapes = [tensors[name]["shape"] for one in (beside, *beside.others) for name in one.names]
    if any(len(shape) not in (1, 2) or 0 in shape or _count(shape) > VECTOR_LIMIT for shape in shapes):
        raise ConceptError(f"{file} holds a word of the shapes {shapes}, which no word has.", "Check the file.")
    whole = all(name.endswith((".alpha", ".scalar")) or _role(name) in (None, "difference") for name in tensors)
    fields: Fields = {"kind": "subject", "method": "full" if whole else "lora"}
    fields["vectors"] = _count(shapes[0]) if shapes else 0
    return {**fields, "token": beside.token, "family": _family_of_changes(tensors)}


_NEXT = (
    "Give a LoRA in the PEFT layout of diffusers (unet.….lora_A.weight) or in kohya's (lora_unet_….lora_down.weight); "
    "LyCORIS's LoCon, LoHa, LoKr and whole differences are read too, IA3 with its base, OFT and GLoRA are not."
)


def _role(name: str) -> str | None:
    key = parsed(name)
    return None if key is None else key.role


def _family_of_changes(tensors: dict[str, Any]) -> str:
    """The family of the base by what a LoRA changes."""
    widths: set[int] = set()
    layers: dict[str, tuple[int, int]] = {}
    for name, entry in tensors.items():
        key = parsed(name)
        if key is None:
            continue
        if key.layer.startswith("transformer."):
            _sized(layers, key, entry["shape"])
            continue
        if key.layer.startswith("text_encoder_2."):
            return "sdxl"
        layer, reads = key.layer.removesuffix(".weight"), key.role in ("down", "difference", "hada_w1_b")
        if reads and layer.endswith(("attn2.to_k", "attn2.to_v")) and len(entry["shape"]) == 2:
            widths.add(entry["shape"][1])
    if layers:
        return family_of_layers(layers)
    return _BY_CONTEXT.get(widths.pop(), "") if len(widths) == 1 else ""


def _sized(layers: dict[str, tuple[int, int]], key: Key, shape: list[int]) -> None:
    """Note what a tensor tells of the outputs and inputs of a transformer's layer."""
    name = key.layer.removeprefix("transformer.")
    if key.role == "difference":
        name = name.rpartition(".")[0]
    outputs, inputs = layers.get(name, (0, 0))
    if key.role in ("up", "difference") and shape:
        outputs = shape[0]
    if key.role in ("down", "difference") and len(shape) > 1:
        inputs = shape[1]
    layers[name] = outputs, inputs


def _embedding(file: str, tensors: dict[str, Any]) -> Fields:
    """Return the fields that an embedding tells; refuse tensors that are none."""
    found = words(list(tensors))
    if not found.names or len(found.names) != len(tensors):
        raise ConceptError(
            f"{file} holds {len(tensors)} tensors, which no embedding does.",
            "Give an embedding in the diffusers, kohya (emb_params) or SDXL (clip_l, clip_g) layout, "
            "or a LoRA in the PEFT layout of diffusers (unet.….lora_A.weight) or in kohya's.",
        )
    shapes = [tensors[name]["shape"] for name in found.names]
    if any(len(shape) not in (1, 2) or 0 in shape or _count(shape) > VECTOR_LIMIT for shape in shapes):
        raise ConceptError(f"{file} has the shapes {shapes}, which no embedding has.", "Check the file.")
    several = "sd3" if len(shapes) == 3 else "flux1" if "t5xxl" in found.names else "sdxl"
    family = several if len(shapes) > 1 else _BY_EMBEDDING.get(shapes[0][-1], "")
    return {"vectors": _count(shapes[0]), "family": family, "token": found.token}


def _further(file: str, shapes: dict[str, list[int]], vectors: int) -> Fields:
    """Return the vectors of a word in registered parts, beside a word of so many `vectors` in the rest of the file."""
    try:
        found = vectors_of(shapes)
    except ValueError as error:
        raise ConceptError(f"{file} is damaged: {error}.", "Get the file again.") from None
    if found > VECTOR_LIMIT or (found and vectors):
        raise ConceptError(f"{file} holds a word of {found} vectors, which no word has.", "Check the file.")
    return {"vectors": found or vectors}


def _count(shape: list[int]) -> int:
    """Vectors of rows of a shape (n, dim) or (dim,)."""
    return 1 if len(shape) == 1 else shape[0]


def misfit(token: str, made: str, base: str, made_name: str = "", base_name: str = "") -> str:
    """Return why a concept does not fit a base, in words; empty if it fits, or if nothing is known of either.

    Args:
        token: of the concept.
        made: family it was made for.
        base: family of the base.
        made_name: name of the base it was made on.
        base_name: name of the base.
    """
    if not made or not base or made == base:
        return ""
    on = f" ({made_name})" if made_name and made_name != made else ""
    which = f" ({base_name})" if base_name and base_name != base else ""
    return f"{token} was made for {FAMILY_NAMES.get(made, made)}{on}, and this base{which} is {FAMILY_NAMES[base]}."
