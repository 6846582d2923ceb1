"""Documents from files of this package: `/docs`, Swagger UI for people who write programs, and the page's languages."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from pipelines.errors import Unknown
from studio.api.forms import ROOT
from studio.web import languages as catalogues

KINDS: Mapping[str, str] = MappingProxyType({"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"})
"""Files of Swagger UI -> their types."""

KEPT = "private, max-age=86400"
ALWAYS = "private, max-age=31536000, immutable"
"""For what is asked for with the sum of its content."""


def routes() -> APIRouter:
    """Return the routes of the description; they stand behind the same login as all others."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    def described() -> HTMLResponse:
        """Return the page."""
        script, style = (f"/docs/{name}" for name in KINDS)
        return get_swagger_ui_html(
            openapi_url=f"{ROOT}/openapi.json",
            title="Prompt Studio: REST",
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url="data:,",
            swagger_ui_parameters={"validatorUrl": None, "defaultModelsExpandDepth": 0, "docExpansion": "list"},
        )

    @router.get("/docs/{name}")
    def part(name: str) -> Response:
        """Return a file of Swagger UI, packed as it is kept."""
        if name not in KINDS:
            raise Unknown(f"There is no {name!r:.60}.", "See /docs.")
        content = files("studio.web.static").joinpath("swagger", f"{name}.gz").read_bytes()
        return Response(content, media_type=KINDS[name], headers={"content-encoding": "gzip", "cache-control": KEPT})

    return router


def languages() -> APIRouter:
    """Return the route of the page's languages."""
    router = APIRouter(include_in_schema=False)

    @router.get("/languages/{name}.json")
    def language(name: str) -> Response:
        """Return the sentences of a language."""
        others = [one for one in catalogues.names() if one != catalogues.ENGLISH]
        if name not in others:
            raise Unknown(f"There is no language {name!r:.20}.", f"There are: {', '.join(others)}.")
        kept = {"cache-control": ALWAYS}
        return Response(catalogues.content(name), media_type="application/json", headers=kept)

    return router
