"""Bases in one file: checkpoints of Stable Diffusion 1.x, 2.x and XL in the layout of their first implementation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipelines.errors import ModelError

_NEEDED = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler",
    "tokenizer",
)
_UNREACHABLE = ("offline", "HF_HUB", "Connection", "resolve", "connect", "huggingface", "outgoing traffic", "cached")


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
READER = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
SHIPPED = Path(__file__).parent / "configurations"


def family_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the family of a checkpoint whose configuration is known here, by the shapes of its tensors.

    >>> family_of({FIRST: (320, 4, 3, 3), READER.format(1): (320, 768)})
    'sd1'
    """
    first = shapes.get(FIRST, (0, 0))
    if first[0] != 320:
        return None
    if shapes.get(READER.format(4), (0, 0))[1] == 2048:
        return "sdxl" if any(name.startswith("conditioner.embedders.1") for name in shapes) else None
    return {768: "sd1", 1024: "sd2"}.get(shapes.get(READER.format(1), (0, 0))[1])


def written(family: str, folder: Path, channels: int, said: Mapping[str, str]) -> Path:
    """Write the configuration of a family as diffusers reads it; return the folder.

    Args:
        family: sd1, sd2 or sdxl.
        folder: target folder.
        channels: that the UNet reads, 9 for inpainting.
        said: the header of the checkpoint. Nothing else tells whether a 2.x predicts velocities, as most do, or noise.
    """
    parts: dict[str, Any] = json.loads((SHIPPED / f"{family}.json").read_text(encoding="utf-8"))
    parts["unet"]["in_channels"] = channels
    noise = said.get("modelspec.prediction_type") == "epsilon" or "v2-512" in said.get("modelspec.architecture", "")
    if family == "sd2" and noise:
        parts["scheduler"]["prediction_type"] = "epsilon"
        parts["unet"]["sample_size"] = 64
    files = {
        "model_index": "model_index.json",
        "scheduler": "scheduler/scheduler_config.json",
        **{part: f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")},
    }
    for part, name in files.items():
        if part in parts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(parts[part]), encoding="utf-8")
    for part in ("tokenizer", "tokenizer_2"):
        if part in parts:
            _tokenizer(folder / part, parts[part]["pad_token"])
    return folder


def _merges() -> list[str]:
    return gzip.decompress((SHIPPED / "merges.txt.gz").read_bytes()).decode("utf-8").splitlines()


def clip_vocabulary() -> dict[str, int]:
    """Return the tokens of CLIP, which all of Stable Diffusion 1.x, 2.x and XL have, with their numbers.

    Bytes, bytes that end a word, and what is merged of them, in this order.
    """
    alphabet = list(bytes_to_unicode().values())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair.split()) for pair in _merges())]
    return {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def _tokenizer(folder: Path, pad: str) -> None:
    """Write CLIP's tokenizer."""
    merges, vocabulary = _merges(), clip_vocabulary()
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": pad}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def bytes_to_unicode() -> dict[int, str]:
    """Return the letter for each byte in byte-pair vocabularies of GPT-2 and CLIP: itself if printable."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _missing(pipeline: Any) -> list[str]:
    """Return the tensors that the file did not give; the converter leaves those of text encoders without values."""
    return [
        f"{part}.{name}"
        for part, network in pipeline.components.items()
        if isinstance(network, torch.nn.Module)
        for name, tensor in network.state_dict().items()
        if tensor.is_meta
    ]


def pipeline_of(path: Path, download: bool, config: Path | None = None) -> Any:
    """Read a checkpoint; return it as a pipeline of diffusers.

    Args:
        path: of the file.
        download: whether the configuration of its family may be fetched from the hub.
        config: a folder in the diffusers layout with that configuration and the tokenizer; those of Stable Diffusion
            1.x, 2.x and XL are known without.

    Raises:
        ModelError: if it cannot be read, or its configuration is not at hand.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path.name} is no .safetensors file; other checkpoints are pickles, which can run code.",
            "Convert it to safetensors, or get it in that form.",
        )
    if config is not None and (missing := [name for name in _NEEDED if not (config / name).exists()]):
        raise ModelError(
            f"The folder {config} lacks {', '.join(missing)}.",
            "Give --base-config a folder in the diffusers layout of the checkpoint's family; weights are not needed.",
        )
    try:
        with safe_open(path, "pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            said: dict[str, str] = stored.metadata() or {}
        if not any(name.startswith("model.diffusion_model.") for name in shapes):
            raise ValueError(f"none of its {len(shapes)} tensors is of a UNet (model.diffusion_model.…).")
        family = family_of(shapes)
        kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
        with TemporaryDirectory(prefix="configuration-") as temporary:
            if config is None and family is not None:
                config = written(family, Path(temporary), shapes[FIRST][1], said)
            told: dict[str, Any] = {} if config is None else {"config": str(config)}
            local = config is not None or not download
            pipeline = kind.from_single_file(str(path), torch_dtype=torch.float32, local_files_only=local, **told)
        if missing := _missing(pipeline):
            raise ValueError(f"it lacks {len(missing)} of its tensors, such as {missing[0]}.")
    except Exception as error:  # the converter raises whatever it meets
        lines = str(error).strip().splitlines()
        first = lines[0] if lines else type(error).__name__
        if config is None and any(word in str(error) for word in _UNREACHABLE):
            raise ModelError(
                f"The configuration and tokenizer that {path.name} needs are not on this machine.",
                "Repeat with --download, or give --base-config a folder in the diffusers layout of that family.",
            ) from None
        raise ModelError(
            f"{path.name} cannot be read as a Stable Diffusion checkpoint: {first}",
            "Get it again, or give a diffusers folder.",
        ) from None
    return pipeline
