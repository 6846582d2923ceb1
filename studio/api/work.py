"""Routes of trainings, generations and measurements."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response, status
from fastapi.responses import FileResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from pipelines.captions.wording import Wording
from pipelines.errors import RequestError, Unknown
from studio.api.forms import (
    PLACE,
    AttentionOrder,
    CaptionOrder,
    GenerationOrder,
    RunOrder,
    ScoreOrder,
    Work,
    settings_of,
    work,
)
from studio.api.paging import USUAL, Paging
from studio.api.zips import zipped
from studio.jobs.jobs import Jobs
from studio.jobs.store import Job, Kind, State
from trainers.methods import configs

LOOK = 0.2
"""Seconds between two looks for new events."""

SIGN = 15.0
"""Seconds after which a silent stream says that it is still there."""

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Paged = Annotated[Paging, Depends(Paging)]


def routes(jobs: Jobs) -> APIRouter:
    """Return the routes of all kinds of work."""
    router = APIRouter()

    @router.post("/generations", status_code=status.HTTP_202_ACCEPTED, tags=["generations"])
    def ask_for_pictures(order: GenerationOrder, response: Response, key: Key = None) -> Work:
        """Order pictures."""
        with _asked():
            fields = order.request.model_dump(mode="json", exclude_unset=True)
            job = jobs.submit_generation(fields, order.base, keyed("generation", key), order.compare, order.best_of)
            return _accepted(job, response)

    @router.post("/runs", status_code=status.HTTP_202_ACCEPTED, tags=["runs"])
    def ask_for_a_training(
        order: RunOrder,  # pyright: ignore[reportInvalidTypeForm]
        response: Response,
        key: Key = None,
    ) -> Work:
        """Order a training."""
        with _asked():
            settings = order.settings.model_dump(mode="json", exclude_unset=True)
            parts = (order.method, settings, order.dataset, order.base, order.dry_run)
            return _accepted(jobs.submit_training(*parts, keyed("training", key)), response)

    @router.post("/scores", status_code=status.HTTP_202_ACCEPTED, tags=["scores"])
    def ask_for_scores(order: ScoreOrder, response: Response, key: Key = None) -> Work:
        """Order a measurement; its event `scores` has the figures of each step, the proposed one, and the reason."""
        with _asked():
            return _accepted(jobs.submit_score(order.concept, order.dataset, order.base, keyed("score", key)), response)

    @router.get("/methods", tags=["runs"])
    def methods(paging: Paged) -> Sequence[str]:
        """Return the methods of learning."""
        places = {name: place for place, name in enumerate(configs())}
        return paging.take(list(places), lambda name: (places[name], name))

    @router.get("/methods/{method}", tags=["runs"])
    def method(method: str) -> dict[str, Any]:
        """Return the settings of a method, as JSON Schema."""
        if method not in configs():
            raise Unknown(f"There is no method {method!r:.60}.", f"There are: {', '.join(configs())}.")
        return settings_of(method).model_json_schema()

    _add_looking(router, jobs)
    for kind in PLACE:
        _add_routes(router, jobs, kind)
    _add_queue(router, jobs)
    return router


def _accepted(job: Job, response: Response) -> Work:
    """Return a job as an answer that tells where it is."""
    answer = work(job)
    response.headers["location"] = answer.links["self"]
    return answer


def _add_looking(router: APIRouter, jobs: Jobs) -> None:
    @router.post("/captions", status_code=status.HTTP_202_ACCEPTED, tags=["captions"])
    def ask_for_captions(order: CaptionOrder, response: Response, key: Key = None) -> Work:
        """Order captions of the pictures of a dataset that have none; they stand beside the pictures then."""
        with _asked():
            wording = Wording.model_validate(order.model_dump(exclude={"dataset"}))
            return _accepted(jobs.captioning.submit(order.dataset, wording, keyed("caption", key)), response)

    @router.post("/attentions", status_code=status.HTTP_202_ACCEPTED, tags=["attentions"])
    def ask_where_words_look(order: AttentionOrder, response: Response, key: Key = None) -> Work:
        """Order a picture with the attention of each word over it; the event `words` names them in that order."""
        with _asked():
            job = jobs.submit_attention(order.generation, order.picture, keyed("attention", key))
            return _accepted(job, response)


def _add_queue(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/queue", tags=["queue"])
    def queue(paging: Paged) -> list[Work]:
        """Return jobs that are at work, those that wait in their order, and paused ones."""
        listed, places = jobs.waiting.list(), jobs.waiting.places()
        there = [job for job in listed if job.id in places]  # not what has ended a moment ago
        return [work(job) for job in paging.take(there, lambda job: (*places[job.id], job.id))]

    @router.post("/queue/{job}/first", tags=["queue"], name="put_first")
    def first(job: str) -> Work:
        """Put a waiting job before all others that wait."""
        return work(jobs.waiting.put(job, True))

    @router.post("/queue/{job}/last", tags=["queue"], name="put_last")
    def last(job: str) -> Work:
        """Put a waiting job behind all others that wait."""
        return work(jobs.waiting.put(job, False))


def keyed(kind: Kind, key: str | None) -> str | None:
    """Return the key of an order among those of all kinds."""
    return None if key is None else f"{kind}:{key}"


@contextmanager
def _asked() -> Iterator[None]:
    """Turn a missing thing that an order names into an error of the order, not of its address."""
    try:
        yield
    except Unknown as error:
        raise RequestError(error.message, error.hint) from None


def _add_routes(router: APIRouter, jobs: Jobs, kind: Kind) -> None:
    place = PLACE[kind]

    def found(job: str) -> Job:
        there = jobs.get(job)
        if there.kind != kind:
            raise Unknown(f"There is no {kind} {job!r:.60}.")
        return there

    _add_record(router, jobs, kind, found)
    _add_stream(router, jobs, kind, found)
    _add_pictures(router, jobs, kind, found)
    verbs = {"cancel": jobs.cancel, "pause": jobs.pause, "resume": jobs.resume}
    for verb in verbs if kind == "training" else ("cancel",):
        do = verbs[verb]
        summary = (do.__doc__ or verb).splitlines()[0]
        router.post(f"/{place}/{{job}}/{verb}", tags=_tags(kind), name=f"{verb}_{kind}", summary=summary)(
            _steering(found, do)
        )


Found = Callable[[str], Job]


def _tags(kind: Kind) -> list[str | Enum]:
    return [PLACE[kind]]


def _add_record(router: APIRouter, jobs: Jobs, kind: Kind, found: Found) -> None:
    place, tags = PLACE[kind], _tags(kind)

    @router.get(f"/{place}", tags=tags, name=f"list_{place}")
    def everything(paging: Paged, state: State | None = None) -> list[Work]:
        """Return the newest 100, or as many as are asked for, the newest first."""
        paging.limit = paging.limit or USUAL
        found, before = jobs.page(kind, (state,) if state else (), paging.limit, paging.before())
        if before is not None:
            paging.more([before])
        return [work(job) for job in found]

    @router.get(f"/{place}/{{job}}", tags=tags, name=f"get_{kind}")
    def one(job: str) -> Work:
        """Return the state of one, and its messages."""
        there = found(job)
        return work(there, [str(event.data["text"]) for event in jobs.events(there.id, kinds=("note",))])

    @router.delete(f"/{place}/{{job}}", tags=tags, name=f"delete_{kind}", status_code=status.HTTP_204_NO_CONTENT)
    def forget(job: str) -> None:
        """Delete one that has ended, with its pictures and events; concepts stay."""
        jobs.delete(found(job).id)


def _add_stream(router: APIRouter, jobs: Jobs, kind: Kind, found: Found) -> None:
    place, tags = PLACE[kind], _tags(kind)

    @router.get(f"/{place}/{{job}}/events", tags=tags, name=f"events_of_{kind}", response_class=StreamingResponse)
    async def events(
        job: str,
        last: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    ) -> Response:
        """Stream its events (text/event-stream), from the one after Last-Event-ID."""
        there = await run_in_threadpool(found, job)
        if last is not None and last.isascii() and last.isdigit() and len(last) < 19:
            after = int(last)
        if there.ended and not await run_in_threadpool(jobs.events, job, after, 1):
            return Response(status_code=status.HTTP_204_NO_CONTENT)  # tells a browser not to ask again
        stream = _stream(jobs, job, after)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


def _add_pictures(router: APIRouter, jobs: Jobs, kind: Kind, found: Found) -> None:
    place, tags = PLACE[kind], _tags(kind)

    @router.get(f"/{place}/{{job}}/pictures/{{number}}", tags=tags, name=f"picture_of_{kind}")
    def picture(job: str, number: int) -> FileResponse:
        """Return one of its pictures, as PNG with all its settings."""
        names = found(job).results
        path = jobs.folder / names[number] if 0 <= number < len(names) else None
        if path is None or path.suffix != ".png" or not path.is_file():
            raise Unknown(f"There is no picture {number} here.", "See pictures of the job.")
        return FileResponse(path, media_type="image/png")

    @router.get(f"/{place}/{{job}}/files/{{number}}", tags=tags, name=f"file_of_{kind}", response_class=FileResponse)
    def file(job: str, number: int) -> Response:
        """Return one of its results that is no picture; a model as a zip."""
        name = found(job).files.get(number)
        path = jobs.folder / name if name else None
        if path is None or not path.exists():
            raise Unknown(f"There is no file {number} here.", "See files of the job.")
        if path.is_file():
            return FileResponse(path, filename=path.name)
        inside = [one for one in sorted(path.rglob("*")) if one.is_file()]
        return zipped([(one.relative_to(path).as_posix(), one) for one in inside], path.name)

    @router.get(f"/{place}/{{job}}/archive", tags=tags, name=f"archive_of_{kind}", response_class=StreamingResponse)
    def archive(job: str) -> StreamingResponse:
        """Return all its pictures as a zip."""
        there = found(job)
        paths = [path for path in jobs.results(there.id) if path.suffix == ".png"]
        if not paths:
            raise Unknown(f"There are no pictures of {job!r:.60}.", "See its state.")
        return zipped([(path.name, path) for path in paths], f"{kind}-{there.id}")

    @router.get(f"/{place}/{{job}}/previews/{{step}}", tags=tags, name=f"preview_of_{kind}")
    def preview(job: str, step: int) -> FileResponse:
        """Return the preview picture of a step, as its event names it."""
        shown = {number: path for number, path, _ in jobs.previews(found(job).id)}
        if step not in shown or not shown[step].is_file():
            raise Unknown(f"There is no preview of step {step}.", "Events of the kind preview name them.")
        return FileResponse(shown[step], media_type="image/png")


def _steering(found: Callable[[str], Job], do: Callable[[str], Job]) -> Callable[[str], Work]:
    def steer(job: str) -> Work:
        return work(do(found(job).id))

    return steer


async def _stream(jobs: Jobs, job: str, after: int) -> AsyncIterator[str]:
    silent = 0.0
    while True:
        try:
            ended = (await run_in_threadpool(jobs.get, job)).ended  # asked first: what follows is then all there is
            events = await run_in_threadpool(jobs.events, job, after)
        except Unknown:  # deleted meanwhile
            return
        for event in events:
            after, silent = event.seq, 0.0
            data = json.dumps({"at": event.at, **event.data}, ensure_ascii=False)
            yield f"id: {event.seq}\nevent: {event.kind}\ndata: {data}\n\n"
        if ended and not events:
            return
        if not events:
            await asyncio.sleep(LOOK)
            silent += LOOK
            if silent >= SIGN:
                silent = 0.0
                yield ": still here\n\n"
