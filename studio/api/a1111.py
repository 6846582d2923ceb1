"""The part of AUTOMATIC1111's interface that scripts and other front ends use, thin, on the same jobs.

A concept is used by its word in the prompt, or as `<lora:name:strength>`. Fields that mean nothing here are ignored.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from pipelines.card import ConceptCard
from pipelines.errors import DataError, RequestError, StudioError
from pipelines.frozen import Encoded, Sound
from pipelines.metadata import SAMPLERS
from pipelines.png import texts
from studio import catalogue
from studio.api.forms import Answer
from studio.jobs import Jobs
from studio.ledger import Job
from studio.uploads import at_a_time, cleaned

LORA = re.compile(r"<lora:([^:<>]{1,100}):(-?[0-9.]{1,8})(?::[^<>]{0,50})?>")
LOOK = 0.1


class _Lenient(Sound):
    """Base of what other programs send, who send more than is understood."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TextToImage(_Lenient):
    """Pictures that are asked for."""

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = Field(default=-1, ge=-1, lt=2**63)
    steps: int | None = Field(default=None, ge=1, le=1000)
    cfg_scale: float | None = Field(default=None, ge=0, le=50)
    width: int | None = Field(default=None, ge=16, le=4096)
    height: int | None = Field(default=None, ge=16, le=4096)
    sampler_name: str | None = Field(default=None, max_length=100)
    batch_size: int = Field(default=1, ge=1, le=64)
    n_iter: int = Field(default=1, ge=1, le=64)


class ImageToImage(TextToImage):
    """A picture that is to be changed."""

    init_images: Annotated[list[str], Encoded()] = Field(min_length=1, max_length=1)
    mask: Annotated[str | None, Encoded()] = None
    denoising_strength: float = Field(default=0.75, gt=0, le=1)


class Pictures(Answer):
    """What was made: PNG files in base64, the settings, and `info`, JSON as text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(_Lenient):
    """A picture that may tell how it was made, in base64."""

    image: Annotated[str, Encoded()]


def _bytes(text: str) -> bytes:
    """Base64, also as data URL, to bytes."""
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("A picture is not in base64.", "Send the content of the file in base64.") from None


def _sampler(name: str | None) -> str | None:
    """Our name of a sampler; None for the base's own."""
    if name is None or name.lower() in ("", "automatic"):
        return None
    wanted = name.lower().removesuffix(" karras")
    known = {theirs.lower(): ours for ours, theirs in SAMPLERS.items()} | {ours: ours for ours in SAMPLERS}
    if wanted not in known:
        raise RequestError(f"There is no sampler {name!r:.60}.", f"There are: {', '.join(SAMPLERS.values())}.")
    return known[wanted]


def request_of(asked: TextToImage, jobs: Jobs) -> dict[str, Any]:
    """The fields of a request for what another program asks."""
    uses: dict[str, float] = {}
    for name, strength in LORA.findall(asked.prompt):
        try:
            uses[name] = float(strength)
        except ValueError:
            raise RequestError(f"The strength {strength!r} of {name} is no number.", "Write <lora:name:0.8>.") from None
    prompt = LORA.sub("", asked.prompt).strip()
    for entry in catalogue.scan(jobs.learned):
        if entry.card is not None and _said(entry.card, prompt + " " + asked.negative_prompt):
            uses.setdefault(entry.name, 1.0)
    fields: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": secrets.randbelow(2**32) if asked.seed < 0 else asked.seed,
        "count": asked.batch_size * asked.n_iter,
        "concepts": [{"source": name, "strength": strength} for name, strength in uses.items()],
    }
    more = {
        "steps": asked.steps,
        "width": asked.width,
        "height": asked.height,
        "scheduler": _sampler(asked.sampler_name),
    }
    fields |= {name: value for name, value in more.items() if value is not None}
    return fields | ({"guidance": {"scale": asked.cfg_scale}} if asked.cfg_scale is not None else {})


def _said(card: ConceptCard, prompt: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(card.token)}(?!\w)", prompt, re.IGNORECASE) is not None


def routes(jobs: Jobs, base: str) -> APIRouter:
    """The routes, on one base."""
    router = APIRouter(tags=["AUTOMATIC1111"])
    begun: list[str] = []
    """Jobs asked for here, the newest last."""

    async def drawn(fields: dict[str, Any], asked: TextToImage) -> Pictures:
        job = await run_in_threadpool(jobs.submit_generation, fields, base)
        begun.append(job.id)
        del begun[:-100]
        while not (now := await run_in_threadpool(jobs.get, job.id)).ended:
            await asyncio.sleep(LOOK)
        if now.state == "failed":
            raise RequestError(now.error, now.hint)
        return await run_in_threadpool(_answer, jobs, now, asked)

    @router.post("/txt2img")
    async def text_to_image(asked: TextToImage) -> Pictures:
        """Draw pictures; answered once they are there."""
        return await drawn(await run_in_threadpool(request_of, asked, jobs), asked)

    @router.post("/img2img")
    async def image_to_image(asked: ImageToImage) -> Pictures:
        """Change a picture, within the white of a mask if one is given; answered once it is there."""
        fields = await run_in_threadpool(request_of, asked, jobs)
        image = await run_in_threadpool(lambda: jobs.pictures.add(_bytes(asked.init_images[0])))
        mask = asked.mask and await run_in_threadpool(lambda: jobs.pictures.add(_bytes(asked.mask or "")))
        inpaint = {"image": image, "strength": asked.denoising_strength} | ({"mask": mask} if mask else {})
        return await drawn(fields | {"inpaint": inpaint}, asked)

    _add_steering(router, jobs, begun)
    _add_lists(router, jobs, base)
    return router


def _add_steering(router: APIRouter, jobs: Jobs, begun: list[str]) -> None:
    @router.get("/progress")
    def progress() -> dict[str, Any]:
        """How far the newest picture is that was asked for here."""
        return _progress(jobs, begun)

    @router.post("/interrupt")
    @router.post("/skip")
    def interrupt() -> dict[str, Any]:
        """Stop what was asked for here and is running."""
        for job in jobs.list("generation", ("running",), 1000):
            if job.id in begun:
                _stop(jobs, job)
        return {}


def _add_lists(router: APIRouter, jobs: Jobs, base: str) -> None:
    @router.get("/embeddings")
    def embeddings() -> dict[str, Any]:
        """Concepts that are words."""
        return _embeddings(jobs)

    @router.post("/png-info")
    def png_info(asked: PngInfo) -> dict[str, Any]:
        """What a picture says about how it was made."""
        return _texts(_bytes(asked.image))

    @router.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        """Names of samplers."""
        return [{"name": name, "aliases": [ours], "options": {}} for ours, name in SAMPLERS.items()]

    @router.get("/sd-models")
    def models() -> list[dict[str, Any]]:
        """Bases."""
        return [{"title": name, "model_name": name, "hash": None, "filename": name} for name in jobs.bases]

    @router.get("/options")
    def options() -> dict[str, Any]:
        """The base in use."""
        return {"sd_model_checkpoint": base}


def _answer(jobs: Jobs, job: Job, asked: TextToImage) -> Pictures:
    files = [path.read_bytes() for path in jobs.results(job.id)]
    texts = [_texts(one)["info"] for one in files]
    seed = job.spec["request"]["seed"]
    info = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": seed,
        "all_seeds": [seed + number for number in range(len(files))],
        "infotexts": texts,
        "job": job.id,
    }
    settings = asked.model_dump(exclude={"init_images", "mask"})
    return Pictures(
        images=[base64.b64encode(one).decode() for one in files], parameters=settings, info=json.dumps(info)
    )


def _progress(jobs: Jobs, begun: list[str]) -> dict[str, Any]:
    running = [job for job in jobs.list("generation", ("running", "queued"), 1000) if job.id in begun]
    job = next((job for job in running if job.state == "running"), None)
    state = {"job_count": len(running), "sampling_step": 0, "sampling_steps": 0, "interrupted": False}
    answer: dict[str, Any] = {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": state,
        "current_image": None,
        "textinfo": None,
    }
    if job is not None and job.steps:
        state |= {"job": job.id, "sampling_step": job.step, "sampling_steps": job.steps, "interrupted": bool(job.wish)}
        spent = time.time() - (job.started or time.time())
        share = job.step / job.steps
        answer |= {"progress": share, "eta_relative": spent / share * (1 - share) if share else 0.0}
        if (shown := jobs.previews(job.id)[-1:]) and shown[0][1].is_file():
            answer["current_image"] = base64.b64encode(shown[0][1].read_bytes()).decode()
    return answer | {"state": state}


def _stop(jobs: Jobs, job: Job) -> None:
    try:
        jobs.cancel(job.id)
    except StudioError:  # it has just ended
        return


def _embeddings(jobs: Jobs) -> dict[str, Any]:
    loaded: dict[str, Any] = {}
    skipped: dict[str, Any] = {}
    for entry in catalogue.scan(jobs.learned):
        if entry.card is None or not entry.card.vectors:
            skipped[entry.name] = {}
        else:
            card = entry.card
            loaded[card.token] = {
                "step": None,
                "sd_checkpoint": card.base_fingerprint or None,
                "sd_checkpoint_name": card.base or None,
                "shape": None,
                "vectors": card.vectors,
            }
    return {"loaded": loaded, "skipped": skipped}


@at_a_time
def _texts(data: bytes) -> dict[str, Any]:
    """The texts of a picture; nothing of them is evaluated."""
    cleaned(data)  # it is a picture, and no larger than allowed
    items = texts(data)
    return {"info": items.get("parameters", ""), "items": items, "parameters": {}}
