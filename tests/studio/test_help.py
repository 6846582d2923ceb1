"""The help of every command needs no torch, and a normal run prints no message of a library."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from trainers.methods import methods, summary

ROOT = Path(__file__).parents[2]
HELP = """
import sys
from studio.cli import app, main
from studio.commands.train import app as train
from studio.commands.concepts import app as concepts
asked = [()]
for parent, words in ((app, ()), (train, ("train",)), (concepts, ("concepts",))):
    asked += [(*words, name) for name in parent.resolved_commands() if not name.startswith("-")]
for words in asked:
    main([*words, "--help"])
    loaded = sorted({"torch", "diffusers", "transformers", "gradio", "scipy", "peft", "ray"} & set(sys.modules))
    print(f"helped: {' '.join(words)}|{','.join(loaded)}")
"""


def run(*arguments: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True, **more
    )


def test_no_help_loads_torch():
    """Modules only ever come, so one process tells of all commands which was the first to load one."""
    lines = [line[8:].split("|") for line in run("-c", HELP).stdout.splitlines() if line.startswith("helped: ")]
    assert {"", "train", "train dreambooth", "train grounding", "concepts import", "serve", "score"} <= {
        words for words, _ in lines
    }
    assert len(lines) >= 30
    assert [(words, loaded) for words, loaded in lines if loaded] == []


def test_a_process_of_its_own_shows_the_help_of_a_method():
    code = "import sys; from studio.cli import main; main(['train', 'reversion', '--help']); print(len(sys.modules))"
    told = run("-c", code).stdout
    assert "--steer" in told and "Learns a word for the relation between two things." in told
    assert int(told.splitlines()[-1]) < 1000  # with torch and diffusers it was 3,936


def test_every_method_says_what_it_does_under_its_name():
    for name, method in methods().items():
        assert method.name == name and summary(method).endswith(".")


def test_libraries_print_nothing_when_diffusers_is_loaded():
    done = run("-c", "import pipelines, diffusers; from diffusers import StableDiffusionPipeline; import transformers")
    assert done.stderr == "" and done.stdout == ""


def test_only_the_message_about_torchvision_is_left_out(caplog):
    # transformers keeps its messages from the loggers above its own, where caplog listens.
    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addHandler(caplog.handler)
    try:
        logger.warning(
            "`CLIPImageProcessor` requires torchvision (not installed); falling back to `CLIPImageProcessorPil` for"
        )
        logger.warning("`CLIPImageProcessor` requires the PIL library but it was not found")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {
        "`CLIPImageProcessor` requires the PIL library but it was not found"
    }
