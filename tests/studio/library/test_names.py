"""Concepts are called by word, name or file in every command, and a typing error costs no loading."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConceptError
from studio.cli import main
from studio.library.concepts import EXAMPLE, FOLDER
from studio.library.names import concept_file, named_use
from studio.work import runner
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[3]


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    shutil.copyfile(EXAMPLE, FOLDER / "grey.safetensors")
    return FOLDER / "grey.safetensors"


@pytest.mark.parametrize("name", ["grey", "<wolf>", str(FOLDER / "grey.safetensors")])
def test_a_concept_is_called_by_name_word_or_file_with_a_strength(library, name):
    assert concept_file(name) == library
    assert named_use(name) == {"source": str(library)}
    assert named_use(f"{name}:0.8") == {"source": str(library), "strength": 0.8}


def test_every_command_that_takes_a_concept_takes_its_name(library, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        runner, "write_pictures", lambda request, *_, **__: seen.append(request.concepts[0].source) or []
    )
    monkeypatch.setattr(runner, "export", lambda uses, *_: seen.append(uses[0].source))
    monkeypatch.setattr(runner, "merge", lambda files, *_: seen.append(str(files[0])) or [])
    monkeypatch.setattr(runner, "score", lambda file, *_: seen.append(str(file)) or "")
    commands = (["generate", "a <wolf>", "--concept", "grey"], ["export", "grey", "--output", "m"], ["merge", "<wolf>"])
    for command in (*commands, ["score", "grey"]):
        assert main(command) == 0
    assert seen == [str(library)] * 4


def test_a_word_has_no_strength_below_zero(library, capsys):
    for strength in (-0.5, 3):
        assert main(["generate", "a <wolf>", "--concept", f"grey:{strength}"]) == 2
        assert f"The strength {strength:g} of <wolf> is not between 0 and 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gray", "Did you mean grey?"),
        ("wolf", "Did you mean <wolf>?"),
        ("zebra", "There are: grey."),
        ("gone.safetensors", "no concept file gone.safetensors"),
    ],
)
def test_what_is_not_there_is_said_with_what_is_near(library, name, said):
    with pytest.raises(ConceptError) as error:
        concept_file(name)
    assert said in str(error.value)


def test_without_a_library_a_name_is_an_error_with_the_next_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConceptError, match="no library outputs/concepts yet"):
        named_use("wolf")


TYPED = """
import sys
from studio.cli import main
for words in {commands!r}:
    assert main(words) == 2
    print(sorted({{"torch", "diffusers", "transformers"}} & set(sys.modules)))
"""


def test_errors_in_what_is_typed_are_said_before_torch_is_loaded(tmp_path):
    commands = [
        ["generate", "a fox", "--steps", "0"],
        ["generate", "a fox", "--nope"],
        ["generate", "a fox", "--concept", "gone.safetensors"],
        ["generate", "a fox", "--inpaint-image", "gone.png"],
        ["generate", "--from", "gone.png"],
        ["replace", "gone.png", "fox", "a cat", "--inpaint-click", "0.5,0.5"],
        ["export", "gone", "--output", "m"],
        ["score", "gone"],
        ["train", "dreambooth", "--images", "gone", "--token", "<x>", "--class-word", "fox"],
        ["train", "dreambooth", "--images", "gone", "--token", "<x>", "--class-word", "fox", "--rank", "none"],
    ]
    code = TYPED.format(commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/bin"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]"] * len(commands), done.stderr
    assert len(done.stderr.splitlines()) == len(commands) and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["generate", "concepts list", "train dreambooth"])
def test_a_typing_error_names_the_help_of_its_own_command(capsys, command):
    assert main([*command.split(), "--nope"]) == 2
    assert f"studio {command} --help" in capsys.readouterr().err
