"""A real server with the real pocket, and a real browser that asks no other host for anything."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from urllib.parse import urlparse

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Address and jobs of a server."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from studio.jobs import Jobs
    from studio.web.app import build, mount_options

    jobs = Jobs(tmp_path_factory.mktemp("studio"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = gr.mount_gradio_app(FastAPI(), build(jobs), path="/", **mount_options(jobs))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    with jobs:
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", jobs
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def chromium():
    """The browser."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.fail("No chromium is installed; `make browser` installs Debian's package, or see README.", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(studio, chromium):
    """Opens the studio in its own window; afterwards no other host was asked for anything, and no script failed."""
    address, _ = studio
    foreign, errors, contexts = [], [], []

    def open_(width=1280, height=900, path="/", **more):
        context = chromium.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        context.on("request", lambda request: foreign.append(request.url) if not own(request.url, address) else None)
        page = context.new_page()
        page.set_default_timeout(60_000)
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
    """Whether a request stays with the server."""
    parts = urlparse(url)
    return parts.scheme in ("data", "blob") or parts.netloc == urlparse(address).netloc
