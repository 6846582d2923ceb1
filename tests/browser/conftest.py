"""A real server with the real pocket, and a real browser that asks no other host for anything."""

from __future__ import annotations

import shutil
import socket
import threading
from urllib.parse import urlparse

import pytest

from pipelines.models import POCKET
from tests.browser.waiting import SLOW, acquainted, questions
from tests.waiting import joined, until

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Address and jobs of a server as `studio serve --base .../twin` has it; the twin is a copy of pocket."""
    import uvicorn

    from studio.api.app import guarded, rest, with_page
    from studio.api.guard import Door
    from studio.jobs.jobs import Jobs

    twin = tmp_path_factory.mktemp("bases") / "twin"
    shutil.copytree(POCKET, twin)
    jobs = Jobs(tmp_path_factory.mktemp("studio"), bases={"pocket": "pocket", "twin": str(twin)})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = guarded(with_page(rest(jobs), jobs), Door("127.0.0.1", (), ()))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive(), "the server")
    assert thread.is_alive()
    yield f"http://127.0.0.1:{port}", jobs
    server.should_exit = True
    joined(thread, seconds=30)


@pytest.fixture(scope="module")
def chromium():
    """The browser."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.fail(
            "No chromium is installed; `make browser` installs Debian's package, or see docs/how-to/page.md.",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(studio, chromium):
    """Opens the studio in its own window; afterwards no other host was asked for anything, and no script failed.

    Visitors have seen the tour, unless it is their `first` visit.
    """
    address, _ = studio
    foreign, errors, contexts = [], [], []

    def open_(width=1280, height=900, path="/", first=False, **more):
        context = chromium.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        context.on("request", lambda request: foreign.append(request.url) if not own(request.url, address) else None)
        page = context.new_page()
        page.set_default_timeout(SLOW)
        questions(page)
        if not first:
            acquainted(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if "Error executing js_on_load" in said.text else None)
        page.goto(address + path)
        page.wait_for_selector("#prompt textarea")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert foreign == []
    assert errors == []


def own(url, address):
    """Return whether a request stays with the server."""
    parts = urlparse(url)
    return parts.scheme in ("data", "blob") or parts.netloc == urlparse(address).netloc
