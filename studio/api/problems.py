"""Errors as JSON for people and programs alike (RFC 9457)."""

from __future__ import annotations

import logging
import sqlite3
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pipelines.errors import Conflict, NoMemory, NoSpace, StudioError, Unknown
from pipelines.exhaustion import hardship
from pipelines.request.texts import without_paths

MEDIA = "application/problem+json"
LONGEST = 300
"""Most letters told of what somebody sent."""
_log = logging.getLogger(__name__)


def problem(status: int, detail: str, hint: str = "", **more: Any) -> JSONResponse:
    """Return an answer that describes an error.

    Args:
        status: of HTTP.
        detail: the error in a sentence.
        hint: the next step.
        more: further members.
    """
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content | ({"hint": hint} if hint else {}) | more, status, media_type=MEDIA)


def status_of(error: StudioError) -> int:
    """Return the status that fits an error of a person."""
    if isinstance(error, (NoSpace, NoMemory)):
        return 507 if isinstance(error, NoSpace) else 503
    return 404 if isinstance(error, Unknown) else 409 if isinstance(error, Conflict) else 422


def answer_problems(app: FastAPI) -> None:
    """Let an application answer every error as a problem."""

    @app.exception_handler(StudioError)
    async def of_a_person(request: Request, error: StudioError) -> JSONResponse:
        return problem(status_of(error), without_paths(error.message), without_paths(error.hint))

    @app.exception_handler(RequestValidationError)
    async def of_a_body(request: Request, error: RequestValidationError) -> JSONResponse:
        listed = [
            {
                "at": ".".join(str(part) for part in one["loc"])[:LONGEST],
                "what": str(one["msg"]).removeprefix("Value error, ")[:LONGEST],
            }
            for one in error.errors()[:50]
        ]
        said = "; ".join(f"{one['at']}: {one['what']}" for one in listed[:5])
        return problem(422, said, "/api/v1/openapi.json tells every field and its range.", errors=listed)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    async def of_the_machine(request: Request, error: Exception) -> JSONResponse:
        if (known := hardship(error)) is None:
            raise error
        return problem(status_of(known), known.message, known.hint)

    # By their own kinds: after an answer to any exception at all the connection is closed, and the log blames us.
    for kind in (OSError, MemoryError, RuntimeError, sqlite3.Error):
        app.add_exception_handler(kind, of_the_machine)

    @app.exception_handler(Exception)
    async def of_ours(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s", request.method, request.url.path, exc_info=error)
        return problem(500, "Something went wrong that should not.", "The server's log tells what.")
