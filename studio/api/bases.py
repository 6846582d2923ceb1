"""Routes of base models and upscalers: what there is, and downloads where they are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from fastapi import APIRouter, Response, status

from pipelines.errors import Unknown
from studio.api.forms import ROOT, BaseAnswer, DownloadOrder, Work, work
from studio.api.work import Key, Paged, keyed
from studio.jobs.jobs import Jobs
from studio.library.bases import FoundBase


def routes(jobs: Jobs) -> APIRouter:
    """Return the routes of base models."""
    router = APIRouter(tags=["bases"])

    @router.get("/bases")
    def everything(paging: Paged) -> list[BaseAnswer]:
        """Return all base models, also those that cannot be used, with the reason."""
        return [_answer(one) for one in paging.take(jobs.bases.found(), jobs.bases.place)]

    @router.get("/bases/{base}")
    def one(base: str) -> BaseAnswer:
        """Return what a base model says of itself."""
        for found in jobs.bases.found():
            if found.name == base:
                return _answer(found)
        raise Unknown(f"There is no base {base!r:.60}.", "GET /api/v1/bases lists them.")

    @router.post("/downloads", status_code=status.HTTP_202_ACCEPTED)
    def fetch(order: DownloadOrder, response: Response, key: Key = None) -> Work:
        """Order a base model from the hub, if the server was started with `--download`."""
        answer = work(jobs.downloads.submit(order.model, keyed("download", key)))
        response.headers["location"] = answer.links["self"]
        return answer

    @router.get("/upscalers")
    def upscalers(paging: Paged) -> Sequence[str]:
        """Return the ids of the upscalers, the names of their files."""
        return paging.take(list(jobs.places.enlarging.there()), lambda name: (name,))

    return router


def _answer(one: FoundBase) -> BaseAnswer:
    half, full = one.card.memory
    told = {name: getattr(one.card, name) for name in BaseAnswer.model_fields if hasattr(one.card, name)}
    told |= {"memory_gpu": half, "memory_cpu": full, "href": f"{ROOT}/bases/{quote(one.name)}"}
    return BaseAnswer(id=one.name, **told)
