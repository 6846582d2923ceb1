"""The part of AUTOMATIC1111's interface that scripts and other front ends use, thin, on the same jobs.

What is asked is read in `a1111_asked`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from pipelines.errors import RequestError, StudioError
from pipelines.frozen import Encoded
from pipelines.metadata import SAMPLERS
from pipelines.png import texts
from studio import catalogue
from studio.api.a1111_asked import (
    ImageToImage,
    Lenient,
    TextToImage,
    content,
    inpaint_of,
    not_understood,
    request_of,
)
from studio.api.forms import Answer
from studio.jobs import Jobs
from studio.ledger import Job
from studio.uploads import at_a_time, cleaned

LOOK = 0.1


class Pictures(Answer):
    """What was made: PNG files in base64, the settings, and `info`, JSON as text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(Lenient):
    """A picture that may tell how it was made, in base64."""

    image: Annotated[str, Encoded()]


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
        inpaint = await run_in_threadpool(inpaint_of, asked, jobs)
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
        return _texts(content(asked.image))

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
        "notes": [event.data["text"] for event in jobs.events(job.id, kinds=("note",))],
        "ignored": not_understood(asked),
    }
    known = set(type(asked).model_fields) - {"init_images", "mask"}
    settings = asked.model_dump(include=known)
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
