"""The wheel holds all that runs, and runs outside the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.waiting import until

ROOT = Path(__file__).parent.parent
PACKAGES = ("studio", "evaluation", "trainers", "pipelines")
RUN = "import sys; from studio.cli import main; sys.exit(main(sys.argv[1:]))"


def kept_by_git() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, as a build leaves folders beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*kept_by_git(), "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True, timeout=240
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("promptstudio-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with what the wheel holds; everything else is borrowed from this environment."""
    place = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def studio(installed: Path, where: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=where, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_holds_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith(PACKAGES)}
    assert inside == kept_by_git()
    for needed in (
        *(f"{package}/py.typed" for package in PACKAGES),
        "studio/examples/wolf/1.png",
        "studio/examples/grey/query.png",
        "studio/examples/concepts/wolf.safetensors",
        "studio/web/static/boxes.js",
        "trainers/words/prepositions.txt",
        "trainers/stickers/art/LICENSE",
        "pipelines/models/configurations/sdxl.json",
        "pipelines/models/pocket/unet/diffusion_pytorch_model.safetensors",
    ):
        assert needed in inside, needed


def test_it_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        told = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
        commands = archive.read(
            next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        ).decode()
    assert "Classifier: Typing :: Typed" in told and "Project-URL: " in told and "License-Expression: MIT" in told
    assert "studio = studio.cli:main" in commands


def test_it_generates_and_learns_elsewhere(installed, tmp_path):
    code = "import studio, pipelines, trainers, evaluation; print(*(m.__file__ for m in (studio, pipelines, trainers)))"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert all(str(installed) in file for file in where.stdout.split()), where

    examples = Path(studio(installed, tmp_path, "examples"))
    assert examples.is_relative_to(installed)
    teach = ["train", "textual-inversion", "--images", str(examples / "wolf"), "--token", "<w>", "--init", "fox"]
    learned = studio(installed, tmp_path, *teach, "--steps", "2", "--no-preview")
    assert (tmp_path / learned).is_file()
    drawn = studio(installed, tmp_path, "generate", "a <w>", "--concept", learned, "--steps", "2")
    assert (tmp_path / drawn).is_file()


TAKEN = """
import sys
from pathlib import Path
import gradio as gr
from studio.jobs.jobs import Jobs
from studio.web.components import base_choice
from studio.web.pages.edit import EditPage
from studio.web.pages.example import EXAMPLE, PARTS, ExamplePage
from studio.web.pages.generate import GeneratePage
from studio.web.pages.teach import TeachPage

jobs = Jobs(Path(sys.argv[1]), warm=False)
with gr.Blocks(analytics_enabled=False):
    generate, teach, edit, example = (
        page(jobs, base_choice(jobs.bases)) for page in (GeneratePage, TeachPage, EditPage, ExamplePage)
    )
generate.add_example("pocket", [])
assert [path.name for path in jobs.learned.glob("*.safetensors")] == ["wolf.safetensors"]
dataset, *_ = teach.take_example("subject", None)
assert jobs.datasets.get(dataset).pictures == 4
assert edit.take_example()[0]
assert all((EXAMPLE / f"{part}.png").is_file() for part in PARTS)
print(Path(sys.modules["studio"].__file__).parent)
"""


def test_it_serves_its_page_and_each_of_them_takes_its_example(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", RUN, "serve", "--port", "0", "--folder", "outputs"]
    log = tmp_path / "said"
    with log.open("w") as said, subprocess.Popen(words, stderr=said, cwd=tmp_path, env=environment) as server:
        try:
            address = until(lambda: re.search(r"(http://\S+)\n", log.read_text()) or server.poll(), "the address")[1]
            for path, told in (("/", "Prompt Studio"), ("/api/v1/methods", "task-word"), ("/docs", "swagger")):
                with urllib.request.urlopen(address + path, timeout=60) as answer:
                    assert told in answer.read().decode(), path
        finally:
            server.terminate()
    taken = subprocess.run(
        [sys.executable, "-c", TAKEN, "others"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    assert taken.stdout.strip() == str(installed / "studio")
