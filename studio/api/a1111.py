"""The part of AUTOMATIC1111's interface that scripts and other front ends use, thin, on the same jobs.

`a1111_asked` reads requests, `a1111_lists` answers lists.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from starlette.concurrency import run_in_threadpool

from pipelines.errors import RequestError, StudioError
from pipelines.pictures.metadata import Made, own_version, read_made
from pipelines.pictures.png import texts
from pipelines.request.samplers import SAMPLERS
from pipelines.request.settings import FileContent
from studio.api.a1111_asked import (
    CHECKPOINT,
    ImageToImage,
    Lenient,
    TextToImage,
    base_of,
    content,
    inpaint_of,
    not_understood,
    request_of,
)
from studio.api.a1111_lists import InUse, add_lists
from studio.api.forms import ROOT, Answer
from studio.jobs.jobs import Jobs
from studio.jobs.store import Job
from studio.library.uploads import at_a_time, cleaned

LOOK = 0.1
PATIENCE = 3600.0
"""Seconds that a script waits for its pictures at most, the queue before them included."""


class Pictures(Answer):
    """Generated pictures: PNG files in base64, the settings, and `info`, JSON as text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(Lenient):
    """A picture with settings in it, in base64."""

    image: Annotated[str, FileContent()]


def routes(jobs: Jobs, base: str, patience: float = PATIENCE) -> APIRouter:
    """Return the routes; `base` is in use at first, `patience` is the longest wait for pictures in seconds."""
    use = InUse(base)
    router = APIRouter(tags=["AUTOMATIC1111"])
    begun: list[str] = []
    """Jobs asked for here, the newest last."""

    async def drawn(fields: dict[str, Any], asked: TextToImage) -> Pictures:
        named = asked.override_settings.get(CHECKPOINT)
        wanted = base_of(named, jobs.bases, use.base)
        if not asked.override_settings_restore_afterwards:
            use.base = wanted
        job = await run_in_threadpool(jobs.submit_generation, fields, wanted)
        begun.append(job.id)
        del begun[:-100]
        late = time.monotonic() + patience
        while not (now := await run_in_threadpool(jobs.get, job.id)).ended:
            if time.monotonic() > late:
                raise HTTPException(504, _waited(now, patience))
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
    _add_reading(router)
    add_lists(router, jobs, use)
    return router


def _add_steering(router: APIRouter, jobs: Jobs, begun: list[str]) -> None:
    @router.get("/progress")
    def progress() -> dict[str, Any]:
        """Return the progress of the newest pictures that were asked for here."""
        return _progress(jobs, begun)

    @router.post("/interrupt")
    @router.post("/skip")
    def interrupt() -> dict[str, Any]:
        """Stop the running work that was asked for here."""
        for job in jobs.list("generation", ("running",), 1000):
            if job.id in begun:
                _stop(jobs, job)
        return {}


def _add_reading(router: APIRouter) -> None:
    @router.post("/png-info")
    def png_info(asked: PngInfo) -> dict[str, Any]:
        """Return the settings in a picture."""
        return _texts(content(asked.image))


def _answer(jobs: Jobs, job: Job, asked: TextToImage) -> Pictures:
    paths = list(jobs.results(job.id))
    files = [path.read_bytes() for path in paths]
    info = _told(job, asked, [read_made(path) for path in paths]) | {
        "infotexts": [_texts(one)["info"] for one in files],
        "job": job.id,
        "notes": [event.data["text"] for event in jobs.events(job.id, kinds=("note",))],
        "ignored": not_understood(asked),
    }
    known = set(type(asked).model_fields) - {"init_images", "mask"}
    settings = asked.model_dump(include=known)
    return Pictures(
        images=[base64.b64encode(one).decode() for one in files], parameters=settings, info=json.dumps(info)
    )


def _told(job: Job, asked: TextToImage, made: list[Made]) -> dict[str, Any]:
    """Return the settings of pictures as AUTOMATIC1111's `Processed.js` has them, defaults included."""
    count, seed = len(made), job.spec["request"]["seed"]
    told: dict[str, Any] = {
        "prompt": asked.prompt,
        "all_prompts": [asked.prompt] * count,
        "negative_prompt": asked.negative_prompt,
        "all_negative_prompts": [asked.negative_prompt] * count,
        "seed": seed,
        "all_seeds": [seed + number for number in range(count)],
        "subseed": seed,
        "all_subseeds": [seed + number for number in range(count)],
        "subseed_strength": 0,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "batch_size": asked.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.spec["base"],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "denoising_strength": asked.denoising_strength if isinstance(asked, ImageToImage) or asked.larger else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "is_using_inpainting_conditioning": False,
        "version": f"Prompt Studio {own_version()}",
    }
    if made:
        request = made[0].request
        told |= {
            "width": request.width,
            "height": request.height,
            "sampler_name": SAMPLERS[request.scheduler or "ddim"],
            "cfg_scale": request.guidance.scale,
            "steps": request.steps,
            "clip_skip": request.clip_skip,
            "sd_model_hash": made[0].fingerprint[:10],
        }
    return told


def _waited(job: Job, seconds: float) -> str:
    """Return the error of a wait that took too long, and how to continue."""
    state = f"is at step {job.step} of {job.steps}" if job.state == "running" else f"is {job.state}"
    return (
        f"The pictures are not there after {seconds / 60:.3g} minutes: job {job.id} {state}. "
        f"GET {ROOT}/generations/{job.id} tells when they are; POST /sdapi/v1/interrupt stops it."
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


@at_a_time
def _texts(data: bytes) -> dict[str, Any]:
    """Return the texts of a picture; nothing of them is evaluated."""
    cleaned(data)  # it is a picture, and no larger than allowed
    items = texts(data)
    return {"info": items.get("parameters", ""), "items": items, "parameters": {}}
