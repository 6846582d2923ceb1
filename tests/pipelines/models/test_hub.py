"""Downloads from a hub on this machine: a server that answers as the hub does."""

from __future__ import annotations

import json
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from pipelines.errors import Cancelled, ModelError
from pipelines.events import Note, StepDone
from pipelines.models.hub import MIB, HubFile, fetch, needed

COMMIT = "0" * 39 + "1"
WEIGHTS = bytes(range(256)) * 16_384  # 4 MiB
FILES = {
    "model_index.json": b'{"unet": ["diffusers", "UNet2DConditionModel"]}',
    "README.md": b"---\nlicense: mit\n---\n",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "../outside.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """Answers for one model, `owner/tiny`."""

    files = FILES
    sums: ClassVar = {name: sha256(content).hexdigest() for name, content in FILES.items()}
    asked: ClassVar[list[str]] = []

    def log_message(self, *said):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        if path == "/api/models/owner/tiny":
            siblings = [
                {"rfilename": name, "size": len(content), "blobId": "b"}
                | (
                    {"lfs": {"size": len(content), "sha256": self.sums[name], "pointerSize": 1}}
                    if len(content) > 1000
                    else {}
                )
                for name, content in self.files.items()
            ]
            told = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}}
            return self.answer(json.dumps(told).encode(), body)
        name = path.removeprefix(f"/owner/tiny/resolve/{COMMIT}/")
        if path.startswith("/owner/tiny/resolve/") and name in self.files:
            if body:
                self.asked.append(name)
            return self.answer(self.files[name], body, {"ETag": f'"{sha256(self.files[name]).hexdigest()}"'})
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def answer(self, content, body, more=None):
        begin = 0
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            begin = int(wanted.removeprefix("bytes=").partition("-")[0] or 0)
        self.send_response(206 if begin else 200)
        for name, value in {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if body:
            self.wfile.write(content[begin:])


@pytest.fixture
def hub(monkeypatch):
    """The address of the hub, and what was asked of it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_model_arrives_whole_with_its_progress(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", MIB)
    events = []
    folder = fetch("owner/tiny", tmp_path / "tiny", on_event=events.append, endpoint=hub)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["README.md", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert (folder / found[-1]).read_bytes() == WEIGHTS
    steps = [(event.step, event.steps) for event in events if isinstance(event, StepDone)]
    assert steps == sorted(steps) and steps[-1] == (5, 5) and len(steps) > 1  # 4 MiB and a little
    assert next(one.text for one in events if isinstance(one, Note)) == "owner/tiny: 4 files, 4 MiB, licence mit."
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"] and not (tmp_path.parent / "outside.json").exists()


def test_one_that_was_stopped_goes_on_with_what_came(hub, tmp_path):
    stop = iter([False] * 3 + [True])
    with pytest.raises(Cancelled):
        fetch("owner/tiny", tmp_path / "tiny", should_stop=lambda: next(stop), endpoint=hub)
    assert not (tmp_path / "tiny").exists()
    before = list(Hub.asked)
    fetch("owner/tiny", tmp_path / "tiny", endpoint=hub)
    again = Hub.asked[len(before) :]
    assert before and len(before) + len(again) <= 5 and (tmp_path / "tiny").is_dir()


def test_a_file_that_is_not_as_the_hub_says_is_refused_and_fetched_again(hub, tmp_path, monkeypatch):
    name = "unet/diffusion_pytorch_model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Hub, "sums", {**Hub.sums, name: "0" * 64})
        with pytest.raises(ModelError, match=r"model.safetensors did not arrive as the hub has it"):
            fetch("owner/tiny", tmp_path / "tiny", endpoint=hub)
    assert not (tmp_path / "tiny").exists()
    assert fetch("owner/tiny", tmp_path / "tiny", endpoint=hub).is_dir()


def test_what_is_not_there_is_said(hub, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="nobody/nothing is not on the hub"):
        fetch("nobody/nothing", tmp_path / "x", endpoint=hub)
    monkeypatch.setattr(Hub, "files", {"a.gguf": b""})
    with pytest.raises(ModelError, match="no base in the layout of diffusers"):
        fetch("owner/tiny", tmp_path / "x", endpoint=hub)
    with pytest.raises(ModelError, match="could not be fetched"):
        fetch("owner/tiny", tmp_path / "x", endpoint="http://127.0.0.1:9")


def test_a_variant_is_taken_where_there_is_nothing_else():
    names = ["unet/model.fp16.safetensors", "vae/model.safetensors", "vae/model.fp16.safetensors", "v1-5.safetensors"]
    assert [one.name for one in needed([HubFile(name, MIB, "") for name in names])] == names[:2]
