"""The application: REST, the layout of AUTOMATIC1111's interface and the web page, behind one guard."""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp

from pipelines.pictures.metadata import own_version
from studio.api import a1111, bases, documents, files, work
from studio.api.forms import ROOT
from studio.api.guard import Door, Guard
from studio.api.page_files import PageFiles, copies_folder
from studio.api.problems import answer_problems, problem
from studio.jobs.jobs import Jobs


def rest(jobs: Jobs) -> FastAPI:
    """Return the interfaces without page or guard; jobs begin and end with the application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with jobs:
            yield

    app = FastAPI(
        title="Prompt Studio",
        version=own_version(),
        openapi_url=f"{ROOT}/openapi.json",
        docs_url=None,  # it would load scripts from elsewhere; `documents` has them here
        redoc_url=None,
        lifespan=lifespan,
        strict_content_type=True,
    )
    app.state.jobs = jobs
    answer_problems(app)
    of_files = (files.datasets(jobs), files.pictures(jobs), files.concepts(jobs))
    for router in (work.routes(jobs), *of_files, bases.routes(jobs)):
        app.include_router(router, prefix=ROOT)
    app.include_router(a1111.routes(jobs, next(iter(jobs.bases))), prefix="/sdapi/v1")

    app.include_router(documents.routes())
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]

    @app.api_route("/sdapi/{rest:path}", methods=methods, include_in_schema=False)
    @app.api_route("/api/{rest:path}", methods=methods, include_in_schema=False)
    def nothing(rest: str, request: Request) -> JSONResponse:
        """Answer unknown addresses here instead of by the page."""
        fitting = [route for route in app.routes if route.matches(request.scope)[0] is Match.PARTIAL]
        if fitting:
            return problem(405, f"{request.method} means nothing here.", f"{ROOT}/openapi.json lists what does.")
        return problem(404, f"There is no {rest!r:.80}.", f"{ROOT}/openapi.json lists what there is.")

    return app


def with_page(app: FastAPI, jobs: Jobs, language: str = "auto") -> FastAPI:
    """Return the application with the web page at its root, in a language of `studio.web.languages`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    copies = copies_folder()  # before the framework looks where it is
    import gradio as gr

    page: Any = importlib.import_module("studio.web.app")
    blocks = page.build(jobs)
    helped = importlib.import_module("studio.web.help").document(language)

    @app.get("/help", include_in_schema=False)
    def helping() -> HTMLResponse:
        """Return the help of the page."""
        return HTMLResponse(helped)

    app.include_router(documents.languages())

    blocks.has_launched = True  # else the framework checks no path it is given; mounting does not set it
    app.add_middleware(PageFiles, folder=copies)
    return gr.mount_gradio_app(app, blocks, path="/", **page.mount_options(jobs, language))


def guarded(app: FastAPI, door: Door) -> ASGIApp:
    """Return the application behind its guard, which sees every request first."""
    return Guard(app, door)
