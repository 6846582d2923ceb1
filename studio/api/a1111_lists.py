"""Lists for scripts of AUTOMATIC1111, in its format; empty where there is no such thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter

from pipelines.concepts.card import read_header
from pipelines.request.request import Spacing
from pipelines.request.samplers import SAMPLERS, SPACED, SPACINGS
from pipelines.request.texts import without_paths
from studio.api.a1111_asked import CHECKPOINT, LATENT, PLAIN, base_of, without_effect
from studio.jobs.jobs import Jobs
from studio.library import concepts
from studio.library.index import Stamp

LETTERS = 2000
"""Most letters shown of one field of a header."""

KEPT = 8192
"""Files whose headers are kept."""

NOTHING = (
    "sd-vae",
    "hypernetworks",
    "face-restorers",
    "realesrgan-models",
    "prompt-styles",
    "script-info",
    "extensions",
)
"""Kinds of things that the studio has none of."""


class InUse:
    """The base in use, which options and requests change.

    Attributes:
        base: id of it.
    """

    def __init__(self, base: str) -> None:
        self.base = base


def add_lists(router: APIRouter, jobs: Jobs, use: InUse) -> None:
    """Add the routes of lists."""
    _add_settings(router, jobs, use)
    _add_upscalers(router, jobs)

    @router.get("/embeddings")
    def embeddings() -> dict[str, Any]:
        """Return concepts that are words."""
        return _embeddings(jobs)

    @router.get("/loras")
    def loras() -> list[dict[str, Any]]:
        """Return concepts that change weights, by the names that `<lora:NAME:1>` takes."""
        return _loras(jobs)

    @router.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        """Return names of samplers."""
        return [{"name": name, "aliases": [ours], "options": {}} for ours, name in SAMPLERS.items()]

    @router.get("/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        """Return spacings of the noise levels, with the samplers that have them."""
        named: dict[Spacing, str] = {"own": "Automatic", **SPACINGS}
        return [
            {
                "name": name.lower().replace(" ", "_"),
                "label": name,
                "aliases": [ours],
                "default_rho": -1.0,
                "need_inner_model": False,
                "samplers": [SAMPLERS[one] for one in SPACED[ours]],
            }
            for ours, name in named.items()
        ]

    @router.get("/scripts")
    def scripts() -> dict[str, list[str]]:
        """Return an empty list: a request cannot name scripts."""
        return {"txt2img": [], "img2img": []}

    def nothing() -> list[Any]:
        """Return an empty list."""
        return []

    for name in NOTHING:
        router.add_api_route(f"/{name}", nothing, operation_id=f"no_{name.replace('-', '_')}")

    def refreshed() -> dict[str, Any]:
        """Do nothing: lists are made anew for every request."""
        return {}

    for name in ("checkpoints", "vae", "loras", "embeddings"):
        path = f"/refresh-{name}"
        router.add_api_route(path, refreshed, methods=["POST"], operation_id=f"refresh_{name}")


def _add_upscalers(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/upscalers")
    def upscalers() -> list[dict[str, Any]]:
        """Return what `hr_upscaler` takes for finished pictures."""
        names = [*PLAIN, *(Path(one).stem for one in jobs.places.enlarging.there())]
        return [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in names]

    @router.get("/latent-upscale-modes")
    def latent_modes() -> list[dict[str, Any]]:
        """Return what `hr_upscaler` takes for latents."""
        return [{"name": LATENT}]


def _add_settings(router: APIRouter, jobs: Jobs, use: InUse) -> None:
    @router.get("/sd-models")
    def models() -> list[dict[str, Any]]:
        """Return the bases."""
        return [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
            for name in jobs.bases
        ]

    @router.get("/options")
    def options() -> dict[str, Any]:
        """Return the base in use."""
        return {CHECKPOINT: use.base}

    @router.post("/options")
    def set_options(options: dict[str, Any]) -> dict[str, Any]:
        """Choose another base for later requests; names the options that have no effect."""
        use.base = base_of(options.get(CHECKPOINT), jobs.bases, use.base)
        return {"ignored": without_effect(options)}

    @router.get("/cmd-flags")
    def flags() -> dict[str, Any]:
        """Return how the server was started, as far as scripts ask."""
        return {"api": True, "nowebui": False, "share": False, "ckpt": use.base}

    @router.get("/memory")
    def memory() -> dict[str, Any]:
        """Return the memory of the server's machine in bytes; jobs that use a GPU run in processes of their own."""
        now = psutil.virtual_memory()
        ram = {"free": now.available, "used": now.total - now.available, "total": now.total}
        return {"ram": ram, "cuda": {"error": "not measured by the server's process"}}


def _embeddings(jobs: Jobs) -> dict[str, Any]:
    loaded: dict[str, Any] = {}
    skipped: dict[str, Any] = {}
    for entry in concepts.scan(jobs.learned):
        if entry.card is None or not entry.card.vectors:
            skipped[entry.name] = {}
        else:
            card = entry.card
            loaded[card.token] = {
                "step": None,
                "sd_checkpoint": card.base_fingerprint or None,
                "sd_checkpoint_name": card.base or None,
                "shape": _listed(entry.path, entry.stamp).width,
                "vectors": card.vectors,
            }
    return {"loaded": loaded, "skipped": skipped}


def _loras(jobs: Jobs) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for entry in concepts.scan(jobs.learned):
        if entry.card is None or not (header := _listed(entry.path, entry.stamp)).weights:
            continue
        about = {"name": entry.name, "alias": entry.name, "path": f"{entry.name}.safetensors"}
        listed.append({**about, "metadata": header.metadata})
    return listed


@dataclass(frozen=True)
class _Header:
    """The part of a file's header that lists tell.

    Attributes:
        weights: whether it changes weights.
        width: size of the vectors of its word; None if it has none.
        metadata: fields for other programs.
    """

    weights: bool
    width: int | None
    metadata: Mapping[str, str]


@lru_cache(KEPT)
def _listed(path: Path, stamp: Stamp) -> _Header:
    """Return the header of a file as it was when it had this stamp; clients ask for lists again and again."""
    said: dict[str, str] = read_header(path).get("__metadata__", {})
    told = {name: text for name, text in said.items() if name.startswith(("ss_", "modelspec."))}
    shown = {name: without_paths(text)[:LETTERS] for name, text in told.items()}
    return _Header(concepts.changes_weights(path), concepts.width(path), shown)
