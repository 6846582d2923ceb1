"""Requests that mean harm through the whole server: each is answered, none with a fault of ours, no file goes astray.

python -m tests.torture.requests --requests 10000
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import random
import re
import sqlite3
import tempfile
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from pipelines.errors import StudioError
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.jobs.jobs import Jobs
from tests.waiting import joined

HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 2**70, -(2**70), 1e308, 0.1, "", " ", "\x00", "\u202e", "a" * 3000, "é", "🦊"),
    *("../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "file:///etc/passwd", "http://127.0.0.1:1/x", "~/.x"),
    *(
        "<script>alert(1)</script>",
        "'; DROP TABLE jobs; --",
        "%2e%2e%2f",
        "%00",
        "{}",
        "$(id)",
        "{{7*7}}",
        "nan",
        "1e999",
    ),
    *([], {}, [[]], [{}], {"a": {"b": []}}, ["x"] * 40, {"__proto__": {}}, "data:image/png;base64,AAAA", "con", "."),
    *("x:y:z", "0123456789abcdef:<y>:cat", "<lora:x:1>", "<lora:../x:9e9>", "((((((", "(a:1e999)", "(word:-)", "[[]]"),
)
RAW = (
    *(b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"request": NaN}', b'{"a":1e9999}', b'{"x":"\\ud800"}'),
    *(b"[" * 2000, b'{"prompt": "\\ud800", "request": {"prompt": "\\udfff"}}', b"x" * 5000),
)
NAMES = (
    "a.png",
    "../../a.png",
    "/etc/a",
    "a\x00b.png",
    "",
    ".",
    "a" * 300,
    "é.jpg",
    "x.zip",
    "a.safetensors",
    "a/b\\c.pt",
)
HEADERS = {
    "last-event-id": ("1", "-1", "x", "9" * 40, "\uff11", ""),
    "idempotency-key": ("k", "", "x" * 201, "\t", "k2"),
    "content-type": (
        "application/json",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "é",
        "",
    ),
    "accept": ("*/*", "text/html"),
    "authorization": ("Bearer x", "Basic !", "Basic //79"),
    "range": ("bytes=0-1", "bytes=-1", "bytes=9-1", "bytes=0-1,2-3", "x"),
    "if-range": ("x",),
    "content-length": ("0",),
}
TOP = re.compile(r"(jobs\.sqlite(-wal|-shm)?|concepts|datasets|pictures|jobs|imports|models|upscalers)")
BELOW = re.compile(
    r"concepts/[\w.-]+|datasets/[0-9a-f]{16}(/([0-9]{4}(\.mask)?\.png|[0-9]{4}\.txt|pairs\.json|\.about\.json))?"
    r"|pictures/[0-9a-f]{16}\.png|imports/[0-9a-f]{16}(/[\w.-]+)?"
)


def picture(rng: random.Random) -> bytes:
    stream = io.BytesIO()
    mode, form = rng.choice((("RGB", "PNG"), ("RGB", "JPEG"), ("RGBA", "PNG"), ("L", "BMP"), ("RGB", "GIF")))
    Image.new(mode, (rng.choice((1, 8, 33)), 8)).save(stream, form)
    return stream.getvalue()


def content(rng: random.Random) -> bytes:
    """Contents of a file that is sent."""
    way = rng.randrange(5)
    if way == 0:
        return rng.choice((b"", b"junk", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"<svg/>", b"\0" * 5000))
    if way == 1:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in rng.sample(NAMES, rng.randrange(4)):
                archive.writestr(name or "x", rng.choice((picture(rng), b"text", b"")))
        return stream.getvalue()
    data = bytearray(picture(rng))
    for _ in range(rng.choice((0, 0, 1, 9))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


class Inventor:
    """Invents requests from the server's own description of itself.

    Args:
        description: OpenAPI.
        rng: where all of it comes from.
    """

    def __init__(self, description: dict[str, Any], rng: random.Random) -> None:
        self.schemas, self.rng = description["components"]["schemas"], rng
        self.known: list[str] = ["x"]
        self.calls = [
            (path, method, call) for path, calls in description["paths"].items() for method, call in calls.items()
        ]

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value that fits a schema, or one that does not."""
        rng = self.rng
        if depth > 8 or rng.random() < 0.07:
            return rng.choice(HOSTILE)
        if "$ref" in schema:
            return self.value(self.schemas[schema["$ref"].rpartition("/")[2]], depth + 1)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.value(rng.choice(schema[several]), depth + 1)
        if "const" in schema or "enum" in schema:
            return rng.choice(schema.get("enum", [schema.get("const")]))
        kind = schema.get("type")
        if kind == "object":
            needed, fields = schema.get("required", ()), schema.get("properties", {})
            given = [name for name in fields if name in needed or rng.random() < 0.3]
            made = {name: self.value(fields[name], depth + 1) for name in given}
            return made | ({"surplus": 1} if rng.random() < 0.02 else {})
        if kind == "array":
            items = schema.get("prefixItems") or [schema.get("items", {})] * rng.randrange(3)
            return [self.value(item, depth + 1) for item in items]
        if kind in ("integer", "number"):
            low, high = schema.get("minimum", 0), schema.get("maximum", 100)
            return rng.choice((low, high, low - 1, high + 1, rng.uniform(low, high)))
        if kind == "boolean":
            return rng.random() < 0.5
        if kind == "string":
            return rng.choice((rng.choice(self.known), "a fox", "<my-fox>", "pocket", "fox"))
        return None

    def path(self, path: str) -> str:
        """The path with known ids or worse for what is left open in it."""
        odd = ("..", "%2e%2e%2f", "%00", "x" * 300, "é", "-1", "0", "1", "0001.png", "' or 1=1", "9" * 30, "%ff", "~")
        return re.sub(r"\{\w+\}", lambda _: self.rng.choice((*self.known, *self.known, *odd)), path)

    def request(self) -> tuple[str, str, dict[str, Any]]:
        """Method, path, and the rest of a request."""
        rng = self.rng
        path, method, call = rng.choice(self.calls)
        asked: dict[str, Any] = {"headers": {}}
        for name, values in HEADERS.items():
            if rng.random() < 0.04:
                asked["headers"][name] = rng.choice(values).encode()
        body = call.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in body:
            name = rng.choice(("file", "files", "file", "files", "x"))
            files = [(name, (rng.choice(NAMES), content(rng))) for _ in range(rng.randrange(4))]
            asked |= {"files": files} if files else {"data": {"file": "text"}}
        elif rng.random() < 0.1:
            asked["content"] = rng.choice(RAW)
        elif body:
            fits = self.value(body["application/json"]["schema"])
            if path.endswith("img2img") and isinstance(fits, dict):
                fits["init_images"] = [base64.b64encode(content(rng)).decode()]
            asked["content"] = json.dumps(fits).encode()
            asked["headers"].setdefault("content-type", b"application/json")
        if rng.random() < 0.1:
            path += rng.choice(
                ("?limit=-1", "?limit=x", "?state=x", "?after=9999999999999999999999", "?%00", "?state=done")
            )
        if rng.random() < 0.03:
            method = rng.choice(("put", "patch", "delete", "post", "options", "head", "trace"))
        return method.upper(), self.path(path), asked


def astray(folder: Path) -> list[str]:
    """Files that are not where files of a server are."""
    stray = [path.name for path in folder.iterdir() if not TOP.fullmatch(path.name)]
    stray += [path.name for path in folder.parent.iterdir() if path != folder]
    for path in folder.glob("*/**/*"):
        below = path.relative_to(folder).as_posix()
        if not below.startswith("jobs/") and not BELOW.fullmatch(below):
            stray.append(below)
    return stray


def fuzz(requests: int, seed: int, folder: Path) -> dict[str, int]:
    """Send so many; raises at the first answer that is a fault, and at the first stray file. Counts answers by kind."""
    logging.getLogger("studio").setLevel(logging.CRITICAL)
    rng, count = random.Random(seed), Counter[str]()
    jobs = Jobs(folder, warm=False)  # what is asked for is checked and entered; nothing is drawn
    app = rest(jobs)
    web = TestClient(guarded(app, Door()), base_url="http://localhost", raise_server_exceptions=False)
    inventor, over = Inventor(app.openapi(), rng), threading.Event()

    def cancel() -> None:  # so that those who wait for a job get an answer
        while not over.is_set():
            for job in jobs.list(states=("queued", "paused"), limit=1000):
                try:
                    jobs.cancel(job.id)
                except (StudioError, sqlite3.Error):  # whoever waits for the others is still to be answered
                    continue
            time.sleep(0.02)
        jobs.ledger.close()

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    try:
        for number in range(requests):
            method, path, asked = inventor.request()
            answer = web.request(method, path, **asked)
            assert answer.status_code < 500, (answer.status_code, method, path, asked)
            if answer.status_code >= 400 and method != "HEAD":
                told = answer.json()
                assert told["detail"] and len(told["detail"]) < 5000, (method, path, told)
            assert str(folder) not in answer.text, (method, path, answer.text)
            count[f"{answer.status_code // 100}xx"] += 1
            if answer.status_code in (201, 202) and isinstance(told := answer.json(), dict):
                inventor.known = [*inventor.known[-30:], *[told[key] for key in ("id",) if key in told]]
            if number % 50 == 0:
                assert not astray(folder), astray(folder)
    finally:
        over.set()
        joined(thread)
    assert not astray(folder), astray(folder)
    return dict(count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="requests-") as place:
        print(json.dumps(fuzz(arguments.requests, arguments.seed, Path(place) / "server")))
