"""Access control: applied before anything else sees a request, to every route alike, those of the page too.

- Host: only names the server was started with, compared whole, so that no foreign name can be pointed at this machine
  (DNS rebinding).
- Origin: what changes something has to come from a page of this server, or from no page at all (cross-site requests).
- Authorization: a password or token, as `Bearer` or as the password of `Basic`, which browsers ask for by themselves.
- Size: a body larger than allowed, or of more values, is not read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.errors import ConfigError
from studio.api.problems import problem
from studio.library.uploads import ARCHIVE

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_log = logging.getLogger(__name__)
CROSSING = b"access-control-"
SAFE = ("GET", "HEAD", "OPTIONS")
PATIENCE, LONGEST_WAIT, ADDRESSES = 3, 5.0, 10_000
"""Wrong credentials before answers wait, the most seconds they wait, and addresses that are remembered."""

AT_ONCE = 10
"""Most answers to wrong credentials that wait for one address; what comes from there meanwhile is turned away."""

SHORTEST = 8
"""Least letters of a password."""

BODY, UPLOAD = 64 << 20, ARCHIVE + (1 << 20)
"""Most bytes of a body, and of one that carries files."""

VALUES = 100_000
"""Most values of a JSON body: a list of a million is read and checked for a minute, in which nobody is answered."""

MARKS = (b",", b"[", b"{")
"""Characters before each value of a JSON body but the first; those within texts count too."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # The page brings all it needs; its framework writes scripts and styles into it.
    (
        b"content-security-policy",
        b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; object-src 'none'",
    ),
)


@dataclass(frozen=True)
class Door:
    """The address of the server, and the clients it admits.

    Attributes:
        host: address it is bound to.
        secrets: passwords or tokens of which one has to be given; none for everybody.
        names: further host names it is reached by.

    Raises:
        ConfigError: if it is open to other machines without a password.
    """

    host: str = "127.0.0.1"
    secrets: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.secrets:
            raise ConfigError(
                f"At {self.host} other machines could use this server.",
                "Give --password or --token (or STUDIO_PASSWORD, STUDIO_TOKEN), or stay at --host 127.0.0.1.",
            )
        if any(len(secret) < SHORTEST for secret in self.secrets):
            raise ConfigError(f"A password or token has at least {SHORTEST} letters.", "Give a longer one.")

    def knows(self, host: str) -> bool:
        """Return whether a request may call the server by this `Host`."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in LOOPBACK or name in (known.lower() for known in (self.host, *self.names)):
            return True
        # Bound to all addresses it is reached by any of them; an address cannot be pointed elsewhere as a name can.
        return self.host in ("0.0.0.0", "::") and _is_address(name)

    def opens(self, authorization: str) -> bool:
        """Return whether these credentials are right."""
        if not self.secrets:
            return True
        scheme, _, value = authorization.partition(" ")
        given = value.strip()
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8").partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != "bearer":
            return False
        # All are compared, each in constant time.
        return any([hmac.compare_digest(given.encode(), secret.encode()) for secret in self.secrets])


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class TooLarge(HTTPException):
    """A body larger than announced or allowed; applications that read the body answer with it."""

    def __init__(self, said: str) -> None:
        super().__init__(413, said)


class Guard:
    """Middleware that admits or refuses requests.

    Args:
        app: the application.
        door: address and admitted clients.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door
        self._wrong: dict[str, int] = {}
        """Address -> wrong credentials in a row, the latest last."""
        self._waiting: Counter[str] = Counter()
        """Address -> answers to wrong credentials that wait."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it to the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks otherwise
            await send({"type": "websocket.close", "code": 1008})
            return
        headers, begun = Headers(scope=scope), False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                there = {name.lower() for name, _ in message["headers"]}
                more = [header for header in HEADERS if header[0] not in there]
                # The page's framework would let pages of other servers of this machine read its answers.
                own = [header for header in message["headers"] if not header[0].lower().startswith(CROSSING)]
                message = {**message, "headers": [*own, *more]}
            await send(message)

        address, given = (scope.get("client") or ("unknown",))[0], headers.get("authorization", "")
        if given and self._waiting[address] >= AT_ONCE:  # not even compared: who gives up early learns nothing sooner
            await _impatient()(scope, receive, answer)
            return
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None and given and not self.door.opens(given):
            await self._slowed(address)
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        self._wrong.pop(address, None)
        try:
            await self.app(scope, _limited(receive, headers), answer)
        except TooLarge as error:
            if begun:
                raise
            await _refused(error.detail)(scope, receive, answer)

    async def _slowed(self, address: str) -> None:
        """Log wrong credentials with their address, and delay the next answer to it."""
        count = self._wrong[address] = self._wrong.pop(address, 0) + 1
        if len(self._wrong) > ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
        _log.warning("Wrong password or token from %s (%d in a row)", address, count)
        self._waiting[address] += 1
        try:
            await asyncio.sleep(min(LONGEST_WAIT, 0.1 * 2.0 ** min(count - PATIENCE, 10)) if count > PATIENCE else 0)
        finally:
            self._waiting[address] -= 1
            self._waiting += Counter()  # forgets those of whom none waits

    def _refusal(self, method: str, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "")
        if not self.door.knows(host):
            return problem(421, f"This server is not called {host!r:.80}.", "studio serve --allow-host adds a name.")
        if not self.door.opens(headers.get("authorization", "")):
            answer = problem(401, "A password or token is needed.", "Send it as Authorization: Bearer or Basic.")
            answer.headers["www-authenticate"] = 'Basic realm="Prompt Studio", charset="UTF-8"'
            return answer
        if method not in SAFE and not _same_site(host, headers):
            return problem(403, "Another site asked for this.", "Use the pages of this server.")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > _most(headers):
            return _refused(_larger(_most(headers)))
        return None


def _same_site(host: str, headers: Headers) -> bool:
    """Return whether a request comes from a page of this server or from no page."""
    origin = headers.get("origin")
    if origin is not None and urlsplit_netloc(origin) != host.lower():
        return False
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def urlsplit_netloc(origin: str) -> str:
    """Return host and port of an origin; empty for an invalid one, as "null"."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return parts.netloc.lower() if parts.scheme in ("http", "https") else ""


def _carries_files(headers: Headers) -> bool:
    return headers.get("content-type", "").startswith("multipart/")


def _most(headers: Headers) -> int:
    return UPLOAD if _carries_files(headers) else BODY


def _larger(most: int) -> str:
    return f"The request is larger than {most >> 20} MiB."


def _impatient() -> ASGIApp:
    answer = problem(429, "Too many wrong passwords or tokens came from this address.", "Wait some seconds.")
    answer.headers["retry-after"] = str(round(LONGEST_WAIT))
    return answer


def _refused(said: str) -> ASGIApp:
    return problem(413, said, "Send it in parts.")


def _limited(receive: Receive, headers: Headers) -> Receive:
    """Return `receive` that stops once more bytes or values arrive than are allowed, whatever was announced."""
    came, values, most, files = 0, 0, _most(headers), _carries_files(headers)

    async def counted() -> Message:
        nonlocal came, values
        message = await receive()
        body = message.get("body", b"")
        came += len(body)
        if came > most:
            raise TooLarge(_larger(most))
        values += 0 if files else sum(map(body.count, MARKS))
        if values > VALUES:
            raise TooLarge(f"The request holds more than {VALUES:,} values.")
        return message

    return counted
