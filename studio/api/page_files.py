"""Files between browsers and the page: visitors name only files they sent, or those the page gave out.

The framework of the page takes records of files, `{"path": ..., "meta": ...}`, in any value of any input, and copies or
fetches what they name. Here every such record is checked before the framework sees it, and so is every file asked for:
it lies in the folder of the page's copies, and is no upload of another visitor. Addresses elsewhere are never fetched.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.request.texts import encodable
from studio.api.problems import problem
from studio.library.quota import bytes_of

VISITOR = "studio_visitor"
"""Cookie that tells browsers apart; programs that keep none are told apart by their address."""

OTHERS = ("/api/", "/sdapi/")
"""Paths that are not the page's."""

PREFIX, JSON = "/gradio_api/", "application/json"
ASKED = ("queue/join", "run/", "api/", "call/", "cancel", "reset")
"""Routes for POST below the prefix, beside uploads; other routes of the framework are not used by this page."""

FILES, FETCHED = ("/file=", "/file/"), "/proxy="
COPIES = 2 << 30
"""Most bytes of uploads and copies that are kept for browsers."""


@functools.cache
def copies_folder() -> Path:
    """Return the folder of the page's copies: of this process alone, closed to other users, gone when it ends."""
    parent = os.environ.get("GRADIO_TEMP_DIR") or None
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="studio-page-", dir=parent)).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # where the framework looks
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class PageFiles:
    """Middleware between the guard and the page.

    Args:
        app: the application with the page.
        folder: the page's copies.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app, self.folder = app, folder
        self._senders: dict[str, set[str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse requests that must not reach the page; pass on all others."""
        if scope["type"] != "http" or scope["path"].startswith(OTHERS):
            await self.app(scope, receive, send)
            return
        cookie = HTTPConnection(scope).cookies.get(VISITOR)
        visitor = cookie or f"at {(scope.get('client') or ('this machine',))[0]}"
        path, refusal = scope["path"], None
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            refusal = self._of_file(visitor, path)
            send = send if cookie or path != "/" else _named(send)
        elif path == f"{PREFIX}upload":
            refusal = await asyncio.to_thread(self._of_upload)
            send = self._remembering(visitor, send)
        elif path.startswith(tuple(PREFIX + route for route in ASKED)):
            refusal, receive = await self._asked(visitor, HTTPConnection(scope), receive)
        else:
            refusal = problem(404, f"There is no {path!r:.80}.")
        await (refusal or self.app)(scope, receive, send)

    async def _asked(
        self, visitor: str, asked: HTTPConnection, receive: Receive
    ) -> tuple[JSONResponse | None, Receive]:
        """Return what is wrong with a body, if anything is, and a `receive` that gives it once more."""
        if not asked.headers.get("content-type", JSON).startswith(JSON):  # bodies of other kinds may be larger
            return problem(415, f"This is asked for with {JSON}."), receive
        try:
            body = await _whole(receive)
        except HTTPException as error:  # it is too large
            return problem(error.status_code, str(error.detail)), receive
        return await asyncio.to_thread(self._of_body, visitor, body), _again(body, receive)

    def may_name(self, visitor: str, path: str) -> bool:
        """Return whether a visitor may name a file: a copy of the page's, if uploaded by nobody else."""
        try:
            real = os.path.realpath(path)
        except (OSError, ValueError):
            return False
        senders = self._senders.get(real)
        return real.startswith(f"{self.folder}{os.sep}") and (senders is None or visitor in senders)

    def _of_file(self, visitor: str, path: str) -> JSONResponse | None:
        if FETCHED in path:
            return problem(403, "Nothing is fetched from elsewhere.")
        for mark in FILES:
            _, found, named = path.partition(PREFIX.rstrip("/") + mark)
            if found and not self.may_name(visitor, named):
                return problem(403, "That file is not the page's to give.")
        return None

    def _of_upload(self) -> JSONResponse | None:
        # What is gone from the disk need not be remembered.
        self._senders = {path: senders for path, senders in self._senders.items() if os.path.exists(path)}
        if bytes_of(self.folder) > COPIES:
            return problem(507, f"Uploads of the page fill {COPIES >> 30} GiB.", "They are cleared day by day.")
        return None

    def _of_body(self, visitor: str, body: bytes) -> JSONResponse | None:
        try:
            asked = json.loads(body or b"null", parse_constant=_no_number)
        except (ValueError, RecursionError):
            return problem(400, "That is no JSON that can be read.")
        for one in _inside(asked):
            if isinstance(one, str) and not encodable(one):
                return problem(422, "A text holds half a character.", "Write it again.")
            if isinstance(one, dict) and ("path" in one or "meta" in one) and not self._fits(visitor, one):
                return problem(403, "A file is named that was not uploaded from here.", "Upload it first.")
        return None

    def _fits(self, visitor: str, record: dict[str, Any]) -> bool:
        path, url = record.get("path"), record.get("url")
        if path is None and url is None and "meta" not in record:
            return True
        if not isinstance(path, str) or not self.may_name(visitor, path):
            return False
        return not url or (isinstance(url, str) and unquote(urlsplit(url).path).endswith(f"/file={path}"))

    def _remembering(self, visitor: str, send: Send) -> Send:
        status, body = 0, bytearray()

        async def heard(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                for path in json.loads(body):
                    self._senders.setdefault(os.path.realpath(path), set()).add(visitor)
            await send(message)

        return heard


def _inside(value: Any) -> Iterator[Any]:
    """Return all values of a JSON document, names among them."""
    left = [value]
    while left:
        one = left.pop()
        yield one
        if isinstance(one, dict):
            left.extend(one)
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _named(send: Send) -> Send:
    """Return `send` that gives a browser its cookie."""
    cookie = f"{VISITOR}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Lax".encode()

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"set-cookie", cookie)]}
        await send(message)

    return named


async def _whole(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        body.extend(message.get("body", b""))
        more = message.get("more_body", False)
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return `receive` that gives a body which was read already."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
