"""Hostile values in every input of every function of the page, over the network: none is answered with a fault of ours.

    python -m tests.torture.page --values 3000

A record of a file that nobody uploaded is refused before the page sees it, wherever it stands; whatever else is sent
gets an answer, or a sentence that tells neither a folder nor the names of our own exceptions.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.torture.requests import HOSTILE
from tests.torture.server import Served, served
from tests.waiting import joined

OURS = re.compile(r"Traceback|Error:|Errno|object has no attribute|unexpected keyword|NoneType|defect|should not\.")
"""Words that no answer says."""

NAMED = (
    *("/etc/shadow", "/proc/self/environ", "/dev/zero", "./docs/demo.png", "../../etc/passwd", "", "\x00", "/", "."),
    *("http://127.0.0.1:1/x", "file:///etc/passwd", "data:image/png;base64,AAAA", "/etc/passwd\x00.png", "~/.ssh/id"),
)
ODD: tuple[Any, ...] = (
    *({"id": "x", "picture": "", "mask": "x"}, {"id": "../../etc/passwd"}, {"id": None, "mask": 3}, [{"on": 1}]),
    *(
        [{"id": "x", "on": True, "strength": "much"}],
        [{"id": 1, "on": True, "strength": 1e999}],
        [[None]],
        [{"box": 1}],
    ),
    *(
        [{"phrase": "a", "box": ["x", 1, 2, 3]}],
        [{"phrase": 3, "box": [0, 0, 1, 1]}],
        [{"phrase": "a", "box": [9] * 4}],
    ),
    *([{"name": "0001.png", "caption": 3}], [{"name": "../x", "caption": "a"}], [{"name": None}], {"value": 1}),
    *(10**30, -1e308, "9" * 400, "1e5", "<b>bold</b>", "a\u202eb", "٣", "½", "0x10", "1_000", " 12 ", "-3", "1.5"),
)


def shapes(path: str) -> list[Any]:
    """Records of a file as a browser sends them, and where they might be overlooked."""
    record = {"path": path, "meta": {"_type": "gradio.FileData"}}
    named = [record, [record], {"x": [record]}, {**record, "url": path}, {"url": path, "meta": record["meta"]}]
    return [
        *named,
        {"video": record},
        [[record, "caption"]],
        {"path": path},
        {"background": record, "layers": [record]},
    ]


class Caller:
    """Calls functions of the page as a browser does.

    Args:
        server: that runs.
        rng: for names of sessions.
    """

    def __init__(self, server: Served, rng: random.Random) -> None:
        self.web, self.rng = server.web, rng
        config = self.web.get("/config").json()
        known = {one["id"]: one for one in config["components"]}
        self.functions = [one for one in config["dependencies"] if one.get("backend_fn") is not False]
        self.values = {key: one["props"].get("value") for key, one in known.items()}

    def call(self, function: dict[str, Any], data: list[Any]) -> tuple[int, str]:
        """Status and all that was answered, until the function has ended."""
        session = f"{self.rng.randrange(16**10):x}"
        asked = {"data": data, "fn_index": function["id"], "session_hash": session, "trigger_id": None}
        try:
            content = json.dumps(asked).encode()
            joined_ = self.web.post(
                "/gradio_api/queue/join", content=content, headers={"content-type": "application/json"}
            )
            if joined_.status_code != 200:
                return joined_.status_code, joined_.text
            said: list[str] = []
            with self.web.stream(
                "GET", "/gradio_api/queue/data", params={"session_hash": session}, timeout=60
            ) as lines:
                for line in lines.iter_lines():
                    said.append(line)
                    if '"process_completed"' in line or '"close_stream"' in line or '"unexpected_error"' in line:
                        break
        except httpx.HTTPError as error:
            return 0, f"{type(error).__name__} {error}"
        return 200, "\n".join(said)


def fuzz(values: int, seed: int, server: Served) -> dict[str, int]:
    """Send so many values; raises at the first fault. Counts answers by kind."""
    rng, count = random.Random(seed), Counter[str]()
    caller = Caller(server, rng)
    places = [(one, at) for one in caller.functions for at in range(len(one["inputs"]))]
    for one, at in places:  # every input of every function, with a file of another
        data = [caller.values.get(key) for key in one["inputs"]]
        data[at] = rng.choice(shapes(rng.choice(NAMED)))
        status, text = caller.call(one, data)
        assert status in (400, 403, 422), ("a file was named", one["api_name"], at, data[at], status, text[:500])
        count["files refused"] += 1
    for _ in range(values):
        one = rng.choice(caller.functions)
        data = [caller.values.get(key) for key in one["inputs"]]
        for at in range(len(data)):
            if rng.random() < 0.5:
                data[at] = rng.choice((*HOSTILE, *ODD))
        status, text = caller.call(one, data)
        said = judged(text, server.folder)
        assert not said and 0 < status < 500, (one.get("api_name"), one["targets"], data, status, said, text[-3000:])
        count["errors told" if '"success":false' in text else f"status {status}"] += 1
    return dict(count)


def judged(text: str, folder: Path) -> str:
    """Return the fault of an answer; empty if there is none."""
    if str(folder) in text:
        return "it tells the folder"
    told = re.findall(r'"error": ?"((?:[^"\\]|\\.)*)"', text)
    return next((one for one in told if OURS.search(one)), "")


def cancelling(server: Served, over: threading.Event) -> None:
    """Cancel what is asked for, so that nothing is drawn."""
    with httpx.Client(base_url=server.address, timeout=60) as web:
        while not over.wait(0.2):
            for place in ("generations", "runs", "scores", "imports"):
                for job in web.get(f"/api/v1/{place}", params={"limit": 1000}).json():
                    if job["state"] in ("queued", "running", "paused"):
                        web.post(f"/api/v1/{place}/{job['id']}/cancel")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--values", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-") as place, served(Path(place) / "server") as server:
        over = threading.Event()
        thread = threading.Thread(target=cancelling, args=(server, over), daemon=True)
        thread.start()
        try:
            print(json.dumps(fuzz(arguments.values, arguments.seed, server)))
        finally:
            over.set()
            joined(thread)
