"""The family of a base model and the concepts that fit it, told from its files before it is loaded. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipelines.concepts.card import ConceptCard, read_header
from pipelines.concepts.headers import FAMILY_NAMES
from pipelines.errors import ConceptError
from pipelines.models import POCKET
from pipelines.models.families.known import family_of
from pipelines.models.fingerprint import SAMPLE, WORDS, Weight, identity


@dataclass(frozen=True)
class BaseFiles:
    """A base as far as its files tell.

    Attributes:
        family: its name; empty if unknown, as for a hub id.
        fingerprint: `Components.fingerprint()`; empty where it does not matter or is unknown.
    """

    family: str = ""
    fingerprint: str = ""

    def misfit(self, card: ConceptCard) -> str:
        """Return why a concept does not fit this base, in some words; empty if it fits or not enough is known."""
        if card.family and self.family and card.family != self.family:
            return f"made for {FAMILY_NAMES.get(card.family, card.family)}"
        if self.fingerprint and card.base_fingerprint not in ("", self.fingerprint):
            return "learned on other weights of pocket"
        return ""


Stamp = tuple[tuple[str, int, int], ...]
"""Path within a base, time of the last change and size of each file: signs that it has not changed."""


def stamp(path: Path) -> Stamp:
    """Return the signs of a file, or of the files of a folder and of the folders in it; empty if nothing is there."""
    try:
        if path.is_file():
            about = path.stat()
            return ((path.name, about.st_mtime_ns, about.st_size),)
        return tuple(sorted(_stamps(path, "", 1)))
    except (OSError, ValueError):  # a name that no file system takes
        return ()


def _stamps(folder: Path, before: str, deeper: int) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_file():
                about = entry.stat()
                yield before + entry.name, about.st_mtime_ns, about.st_size
            elif deeper and entry.is_dir():
                yield from _stamps(Path(entry.path), f"{before}{entry.name}/", deeper - 1)


def base_files(base: str) -> BaseFiles:
    """Read what there is, once until it changes; of a base that cannot be read nothing is known: loading says why."""
    path = POCKET if base == "pocket" else Path(base)
    return _read(path, stamp(path))


@lru_cache(256)
def _read(path: Path, stamp: Stamp) -> BaseFiles:
    try:
        if path.is_dir():
            family = family_of(path, json.loads((path / "model_index.json").read_text(encoding="utf-8")))
            # Concepts of other families go with every fine-tune of theirs.
            return BaseFiles(family, _fingerprint(path) if family == "pocket" else "")
        return BaseFiles(family_of_names(read_header(path))) if path.is_file() else BaseFiles()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, ConceptError):
        return BaseFiles()


def family_of_names(header: Mapping[str, Any]) -> str:
    """Return the family of a single-file checkpoint by the names of its tensors; empty if it is none that is known."""
    for start, family in (
        ("conditioner.embedders.1.", "sdxl"),
        ("cond_stage_model.model.", "sd2"),
        ("cond_stage_model.transformer.", "sd1"),
    ):
        if any(name.startswith(start) for name in header):
            return family
    return ""


def _fingerprint(folder: Path) -> str:
    """`Components.fingerprint()` of a folder of the family `pocket`."""
    from safetensors.numpy import load_file

    networks: list[list[Weight]] = []
    words: list[bytes] = []
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        networks.append([(name, one.shape, _start(one, SAMPLE)) for name, one in tensors.items()])
        words += [_start(one, WORDS) for name, one in tensors.items() if name.endswith("token_embedding.weight")]
    return identity("pocket", networks, words)


def _start(array: Any, count: int) -> bytes:
    """The first numbers of an array as float16."""
    return array.reshape(-1)[:count].astype("float16").tobytes()
