"""Loading of base models: the shipped one, folders in the diffusers layout, single files, and ids of the hub."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from pipelines.errors import ModelError
from pipelines.models import POCKET
from pipelines.models.components import Components, word_table
from pipelines.models.config_limits import UNREADABLE, require_buildable
from pipelines.models.families.known import KNOWN, Known, kind_of, transformer_family
from pipelines.models.families.registry import FAMILIES
from pipelines.models.fingerprint import weights_identity
from pipelines.models.hub import NEEDED
from pipelines.models.memory import quantised
from pipelines.models.memory.offloading import Offload, offloaded
from pipelines.models.single_files import pipeline_of
from pipelines.request.settings import Quantised

Attention = Literal["sdpa", "xformers", "eager"]


def load(
    base: str | Path = "pocket",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: Attention = "sdpa",
    download: bool = False,
    base_config: str | Path | None = None,
    quantise: Quantised | None = None,
    offload: Offload = "none",
) -> Components:
    """Load a base model in evaluation mode with frozen weights.

    Args:
        base: "pocket", a folder in the diffusers layout, a single-file `.safetensors` checkpoint, or a hub id.
        device: target device.
        dtype: precision; always the one asked for, whatever the files hold.
        attention: implementation used in the denoiser.
        download: whether a hub id may be fetched from the network; otherwise only an earlier download is used.
        base_config: for a single file, a folder in the diffusers layout with the configurations and the tokenizer of
            its family (weights are not needed there); without it they come from the hub, or an earlier download.
        quantise: what denoiser and text encoders are kept in, instead of `dtype`.
        offload: whether networks wait in the machine's memory until they work on the device.

    Raises:
        ModelError: if there is no such model, it is of an unknown kind, or the attention is not available.
    """
    path = POCKET if str(base) == "pocket" else Path(base)
    with without_progress_bars():
        if _is(path, Path.is_dir):
            components = _from_folder(path, str(base))
        elif _is(path, Path.is_file):
            pipeline = pipeline_of(path, download, None if base_config is None else Path(base_config))
            components = replace(from_pipeline(pipeline, path.name), name=str(path))
        else:
            components = _from_hub(str(base), download)
    # Everything is read in a precision that loses nothing and cast last: the fingerprint must not depend on that of
    # use.
    components = replace(components, identity=weights_identity(components))
    for module in components.modules():
        module.eval().requires_grad_(False)
    set_attention(components.denoiser, attention)
    # Narrowed where they are, so that the device never holds them wide.
    components = components.to("cpu", dtype)
    if quantise is not None:
        for network in (components.denoiser, *components.text_encoders):
            quantised.quantise(network, quantise)
    return offloaded(components, device, offload)


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Return `path.is_dir()` or `is_file()`, false for names that no file system takes."""
    try:
        return kind(path)
    except OSError:
        return False


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars while a model is read or written."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def set_attention(denoiser: Any, attention: Attention) -> None:
    """Choose the attention implementation.

    Raises:
        ModelError: if xformers is asked for and not installed, or a transformer is to compute attention itself.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    if attention == "xformers":
        try:
            if isinstance(denoiser, UNet2DConditionModel):
                denoiser.enable_xformers_memory_efficient_attention()
            else:
                denoiser.set_attention_backend("xformers")
        except (ImportError, ModuleNotFoundError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"xformers cannot be used here: {str(error).splitlines()[0]}.",
                "Install it (pip install xformers) on a machine with a GPU, or use --attention sdpa.",
            ) from None
    elif isinstance(denoiser, UNet2DConditionModel):
        denoiser.set_attn_processor(AttnProcessor2_0() if attention == "sdpa" else AttnProcessor())
    elif attention == "eager":
        raise ModelError("Eager attention is for UNets; this base is a transformer.", "Use --attention sdpa.")


_CALLED = {
    "CLIPTokenizerFast": "CLIPTokenizer",
    "T5TokenizerFast": "T5Tokenizer",
    "Qwen2TokenizerFast": "Qwen2Tokenizer",
}
"""Classes of earlier transformers, and what they are called now."""


def known_bases() -> str:
    """Return the families that are known, for messages."""
    *others, last = (one.title for one in KNOWN.values())
    return f"{', '.join(others)} and {last}"


def _from_folder(path: Path, name: str) -> Components:
    index_file = path / "model_index.json"
    if not index_file.exists():
        raise ModelError(
            f"The folder {path} holds no model_index.json.",
            "Give a folder in the diffusers layout (with unet/ or transformer/, vae/, text_encoder/, tokenizer/, "
            "scheduler/).",
        )
    place = "model_index.json"
    parts: dict[str, Any] = {}
    try:
        index = dict(json.loads(index_file.read_text(encoding="utf-8")))
        known = _known(index, name)
        for place, kinds in known.parts.items():
            if kind := kind_of(index, place):
                parts[place] = _part(path / place, kind, kinds, f"{place} of {name}")
        place = "scheduler"
        config = dict(json.loads((path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")))
    except UNREADABLE as error:
        raise ModelError(
            f"The {place} of {name} cannot be read: {_first_line(error)}", "Get the folder anew."
        ) from None
    _require_whole(parts, known, name)
    return _bundle(parts, config, name, index)


def _known(index: Mapping[str, Any], name: str) -> Known:
    """Return the family of a folder, whichever it is of those with a UNet.

    Raises:
        ModelError: if it is none that is known, with those that are.
    """
    if not (kind := kind_of(index, "transformer")):
        return KNOWN["sd1"]
    if family := transformer_family(index):
        return KNOWN[family]
    raise ModelError(f"The transformer of {name} is a {kind}, which is not supported.", f"Known are {known_bases()}.")


def _require_whole(parts: Mapping[str, Any], known: Known, name: str) -> None:
    """Refuse a folder that lacks a part, or whose tokenizer lacks its words.

    Raises:
        ModelError: naming the parts.
    """
    if missing := [part for part in known.parts if part not in parts and part not in known.optional]:
        title = "Stable Diffusion" if "unet" in known.parts else known.title
        raise ModelError(f"{name} has no {', '.join(missing)}.", f"Use a complete {title} folder.")
    for place in parts:
        if not place.startswith("tokenizer"):
            continue
        words = len(word_table(parts[place.replace("tokenizer", "text_encoder")]).weight)
        if len(parts[place]) < words // 2:  # files missing: it would read nonsense without a word
            raise ModelError(
                f"The {place} of {name} has {len(parts[place])} words, its text encoder {words}.",
                "Get the folder anew.",
            )
        if known.chat and not parts[place].chat_template:
            raise ModelError(
                f"The {place} of {name} has no chat template, in which {known.title} reads its prompts.",
                "Get the folder anew, with chat_template.jinja or a tokenizer_config.json that holds it.",
            )


def _part(folder: Path, kind: str, kinds: tuple[str, ...], what: str) -> Any:
    """Load one part without loss: UNets and CLIP in float32, larger ones as their files hold them.

    From safetensors only, and fp16 files if there are no others.
    """
    if kind not in kinds:
        raise ModelError(
            f"The {what} is a {kind}, which is not supported; it would have to be {' or '.join(kinds)}.",
            f"Known are {known_bases()}.",
        )
    kind = _CALLED.get(kind, kind)
    found: Any = getattr(diffusers, kind, None) or getattr(transformers, kind)
    if "Tokenizer" in kind:
        return found.from_pretrained(folder)
    require_buildable(folder, what)
    theirs = not hasattr(diffusers, kind)
    options: dict[str, Any] = {"use_safetensors": True}
    plain = [path for path in folder.glob("*.safetensors") if ".fp16" not in path.name]
    if not plain and any(folder.glob("*.fp16*.safetensors")):
        options["variant"] = "fp16"
    small = kind.startswith("CLIPText") or kind in ("UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny")
    options["dtype" if theirs else "torch_dtype"] = torch.float32 if small else _stored_precision(folder)
    return found.from_pretrained(folder, **options)


def _stored_precision(folder: Path) -> torch.dtype:
    """Return the precision that most of a part's numbers are stored in; float32 for eight bits and fewer."""
    counts: dict[torch.dtype, int] = {}
    spelled = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for path in sorted(folder.glob("*.safetensors"))[:1]:
        with safe_open(path, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                part = stored.get_slice(name)
                dtype = spelled.get(part.get_dtype(), torch.float32)
                counts[dtype] = counts.get(dtype, 0) + math.prod(part.get_shape())
    return max(counts, key=lambda one: counts[one], default=torch.float32)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _bundle(parts: Mapping[str, Any], config: Mapping[str, Any], name: str, index: Mapping[str, Any]) -> Components:
    """Put loaded parts together; the families of UNets are told apart by what they are made of."""
    encoders, tokenizers = (
        tuple(parts[part] for part in (start, f"{start}_2", f"{start}_3") if part in parts)
        for start in ("text_encoder", "tokenizer")
    )
    if "transformer" in parts:
        family = transformer_family({"transformer": ["diffusers", type(parts["transformer"]).__name__]})
    elif len(encoders) == 2:
        family = "sdxl"
    elif isinstance(parts["vae"], AutoencoderTiny) and parts["unet"].config.cross_attention_dim < 768:
        family = "pocket"
    else:
        family = "sd2" if encoders[0].config.hidden_size == 1024 else "sd1"
    denoiser = parts["transformer" if "transformer" in parts else "unet"]
    zero_empty = bool(index.get("force_zeros_for_empty_prompt", True)) and family == "sdxl"
    said = {key: value for key, value in index.items() if not key.startswith("_")}
    options = {key: value for key, value in said.items() if not isinstance(value, list | tuple)}
    options |= {key: tuple(index[key]) for key in ("text_encoder_select_layers",) if index.get(key)}
    return Components(
        denoiser, parts["vae"], encoders, tokenizers, dict(config), name, FAMILIES[family], zero_empty, options=options
    )


def from_pipeline(pipeline: Any, name: str) -> Components:
    """Return the parts of a loaded pipeline of a known family; they are shared, not copied."""
    places = dict.fromkeys(part for known in KNOWN.values() for part in known.parts)
    parts = {part: getattr(pipeline, part) for part in places if getattr(pipeline, part, None) is not None}
    said = {"force_zeros_for_empty_prompt": False, **pipeline.config}
    return _bundle(parts, _given(pipeline.scheduler.config), name, said)


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a scheduler that its file gives, without those that its class added.

    A sampler of another class has defaults of its own (`timestep_spacing`, say), as `from_config` of diffusers has it.
    """
    added = config.get("_use_default_values", ())
    return {key: value for key, value in config.items() if key not in added and key != "_use_default_values"}


def _from_hub(base: str, download: bool) -> Components:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(base, local_files_only=not download, allow_patterns=list(NEEDED))
    except HFValidationError:
        raise ModelError(
            f"There is no model {base!r}.", "Give pocket, a folder, a .safetensors file or a hub id."
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        if not download:
            raise ModelError(
                f"The model {base!r} is neither a path nor downloaded yet.",
                "Check the path, or allow the download with --download.",
            ) from None
        raise ModelError(
            f"The model {base!r} could not be downloaded: {_first_line(error)}", "Check the id and the network."
        ) from None
    return _from_folder(Path(folder), base)
