"""Flags become exactly the settings that are meant, or one sentence about their error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image
from pydantic import BaseModel

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.pictures.metadata import own_version, read_made
from pipelines.request.enlarge import Enlarge
from pipelines.request.excite import Excite
from pipelines.request.guidance import Prompt
from pipelines.request.regions import Region
from pipelines.request.request import Box, ConceptUse, Grounding, Guidance, Inpaint, Request, concept_use
from studio.cli import app, main
from studio.commands.flags import FILLED_IN, LISTED, PLACED, Asked, given
from studio.commands.train import ALIASES, translate
from studio.library import concepts
from studio.settings import DrawingMachine
from studio.work import runner
from tests.waiting import LIMIT
from trainers.methods import methods

TRAIN = ("train", "textual-inversion", "--images", "pictures", "--token", "<x>", "--init", "fox")


def parsed(*arguments):
    """The settings a command would be called with, by the names of its parameters."""
    _, bound, _ = app.parse_args(translate(list(arguments)), exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return bound.arguments


def field(settings, name):
    (found,) = (getattr(group, name) for group in settings.values() if hasattr(group, name))
    return found


# -- training flags ---------------------------------------------------------------------------------------------

VALUES = {
    "images": ("a/b", Path("a/b")),
    "token": ("<y>", "<y>"),
    "init": ("cat", "cat"),
    "vectors": ("3", 3),
    "kind": ("style", "style"),
    "steps": ("77", 77),
    "batch": ("2", 2),
    "accumulate": ("5", 5),
    "warmup": ("9", 9),
    "decay": ("0.5", 0.5),
    "smaller_copies": ("3", 3),
    "prior_every": ("4", 4),
    "precision": ("bf16", "bf16"),
    "weight_decay": ("0.25", 0.25),
    "preview_every": ("50", 50),
    "output": ("out", Path("out")),
    "base": ("some/model", "some/model"),
    "class_images": ("class", Path("class")),
    "prior_weight": ("0.5", 0.5),
    "text_encoder": (None, True),
    "dora": (None, True),
    "buckets": (None, True),
    "rank": ("16", 16),
    "alpha": ("8", 8.0),
    "snr_gamma": ("5", 5.0),
    "offset_noise": ("0.1", 0.1),
    "cache": ("kept", Path("kept")),
    "keep_every": ("25", 25),
}
NEEDED = {
    "textual-inversion": {"--images": "pictures", "--token": "<x>", "--init": "fox"},
    "dreambooth": {"--images": "pictures", "--token": "z", "--class-word": "fox", "--prior": "pictures"},
}


@pytest.mark.parametrize("alias", list(ALIASES))
@pytest.mark.parametrize("spelling", ["dashes", "underscores", "equals"])
def test_every_spelling_of_other_programs_sets_the_setting_it_means(alias, spelling):
    name = ALIASES[alias].removeprefix("--").replace("-", "_")
    given, meant = VALUES[name]
    flag = alias if spelling == "dashes" else "--" + alias[2:].replace("-", "_")
    if given is None:
        typed = [f"{flag}=true"] if spelling == "equals" else [flag]
    else:
        typed = [f"{flag}={given}"] if spelling == "equals" else [flag, given]
    method = "dreambooth" if name in methods()["dreambooth"].Settings.model_fields else "textual-inversion"
    # What the alias replaces is left out; the rest is what a training needs.
    needed = {key: value for key, value in NEEDED[method].items() if key != ALIASES[alias]}
    rest = [part for pair in needed.items() for part in pair]
    assert field(parsed("train", method, *rest, *typed), name) == meant


@pytest.mark.parametrize(
    ("typed", "name", "meant"),
    [
        (["--learning_rate", "1e-3"], "learning_rate", 1e-3),
        (["--learning-rate=0.5"], "learning_rate", 0.5),
        (["--scale_lr"], "scale_lr", True),
        (["--no-scale-lr"], "scale_lr", False),
        (["--center_crop"], "center_crop", True),
        (["--resolution", "512"], "resolution", 512),
        (["--seed", str(2**63 - 1)], "seed", 2**63 - 1),
        (["--flip", "0"], "flip", 0.0),
        (["--overwrite"], "overwrite", True),
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--download"], "download", True),
    ],
)
def test_flags_that_are_called_alike_everywhere_work_with_either_mark(typed, name, meant):
    assert field(parsed(*TRAIN, *typed), name) == meant


def test_only_what_was_typed_counts_as_set_even_where_it_equals_the_default():
    """A family's recipe fills in what the person left open: `--steps 3000` must stay 3000 on pocket."""
    settings = parsed(*TRAIN, "--steps", "3000")
    assert settings["train"].model_fields_set == {"steps"}
    assert settings["data"].model_fields_set == {"images"}
    assert settings["config"].model_fields_set == {"token", "init"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--steps", "many"], "many"),
        (["--learning-rate", "0"], "learning_rate: input should be greater than 0 (given: '0')"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--batch", "-1"], "batch: input should be greater than or equal to 1 (given: '-1')"),
        (["--seed", str(2**63)], "seed"),
        (["--flip", "2"], "flip: input should be less than or equal to 1 (given: '2')"),
        (["--vectors", "65"], "vectors: input should be less than or equal to 64 (given: '65')"),
        (["--precision", "fp8"], "fp8"),
        (["--kind", "relationship"], "relationship"),
        (["--dtype", "float8"], "float8"),
        (["--save_steps", "500"], "--save_steps"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_with_what_was_given(typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, *typed]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("studio: ") and len(err.splitlines()) == 1 and "--help" in err
    assert not out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("left_out", ["--images", "--token", "--init"])
def test_what_a_training_cannot_do_without_is_named(left_out, capsys):
    place = TRAIN.index(left_out)
    assert main([*TRAIN[:place], *TRAIN[place + 2 :]]) == 2
    said = capsys.readouterr().err
    assert left_out.removeprefix("--") in said and "requires" in said.replace("required", "requires")


# -- generation flags -------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return the request that the command line hands on, instead of carrying it out; the files it names are there."""
    monkeypatch.chdir(tmp_path)
    for name in ("i.png", "m.png", "4x.pth"):
        (tmp_path / name).touch()
    for name in "abx":  # whose cards tell which strengths they take
        Concept(ConceptCard(token=f"<{name}>", family="sd1"), (torch.zeros(1, 4),)).save(
            tmp_path / f"{name}.safetensors"
        )
    (tmp_path / "b").mkdir()
    calls = []
    monkeypatch.setattr(runner, "write_pictures", lambda *given, **more: calls.append(given) or [])
    return calls


def test_every_field_of_a_request_can_be_typed(asked):
    flags = (
        "--negative-prompt ugly --guidance-scale 3.5 --guidance-rescale 0.7 --guidance-start 0.1 --guidance-stop 0.9"
    )
    flags += " --guidance-preset apg --guidance-schedule linear --guidance-parallel 0.1 --guidance-norm 9"
    flags += " --guidance-momentum=-0.2"
    flags += " --guidance-encode-empty --spacing sgm --eta 0.5 --clip-skip 2 --vae-tiling --vae-slicing"
    more = "--scheduler euler-a --steps 12 --width 96 --height 128 --seed 5 --count 3 --base b --output o"
    more += " --inpaint-image i.png --inpaint-mask m.png --inpaint-strength 0.5 --inpaint-grow 1 --inpaint-feather 2"
    more += " --inpaint-only-masked --inpaint-padding 3 --inpaint-unet u"
    concepts = ["--concept", "a.safetensors", "--concept", "b.safetensors:0.25"]
    boxes = ["--box", "fox:0.1,0.2,0.5,0.6", "--box", "a red: fox:0,0,1,1@fox.png", "--grounding-beta", "0.5"]
    boxes += ["--grounding-region", "--grounding-adapter", "gates.safetensors"]
    boxes += ["--region", "a cat:0,0,0.5,1", "--region", "a cow@m.png"]
    boxes += ["--enlarge-factor", "1", "--enlarge-strength", "0.4"]
    boxes += ["--enlarge-by", "pixels", "--enlarge-upscaler", "4x.pth"]
    boxes += ["--grounding-scale", "4", "--also", "a house:0.5", "--also", "a dog:-1"]
    boxes += ["--excite-words", "fox", "--excite-strength", "5", "--excite-until", "0.2", "--excite-tries", "1"]
    machine = ["--device", "cpu", "--dtype", "float32", "--attention", "eager"]
    assert main(["generate", "a (fox:1.3)", *flags.split(), *more.split(), *concepts, *boxes, *machine]) == 0
    wanted = Request(
        prompt="a (fox:1.3)",
        negative_prompt="ugly",
        concepts=(ConceptUse(source="a.safetensors"), ConceptUse(source="b.safetensors", strength=0.25)),
        inpaint=Inpaint(
            image="i.png", mask="m.png", strength=0.5, grow=1, feather=2, only_masked=True, padding=3, unet="u"
        ),
        boxes=(
            Box(phrase="fox", box=(0.1, 0.2, 0.5, 0.6)),
            Box(phrase="a red: fox", box=(0, 0, 1, 1), picture="fox.png"),
        ),
        regions=(Region(prompt="a cat", box=(0, 0, 0.5, 1)), Region(prompt="a cow", mask="m.png")),
        enlarge=Enlarge(factor=1, strength=0.4, by="pixels", upscaler="4x.pth"),
        excite=Excite(words="fox", strength=5, until=0.2, tries=1),
        also=(Prompt(prompt="a house", weight=0.5), Prompt(prompt="a dog", weight=-1)),
        grounding=Grounding(beta=0.5, region=True, scale=4, adapter="gates.safetensors"),
        guidance=Guidance(
            preset="apg",
            scale=3.5,
            rescale=0.7,
            start=0.1,
            stop=0.9,
            schedule="linear",
            parallel=0.1,
            norm=9,
            momentum=-0.2,
            encode_empty=True,
        ),
        spacing="sgm",
        eta=0.5,
        clip_skip=2,
        vae_tiling=True,
        vae_slicing=True,
        scheduler="euler-a",
        steps=12,
        width=96,
        height=128,
        seed=5,
        count=3,
    )
    assert asked == [(wanted, "b", Path("o"), DrawingMachine(device="cpu", dtype="float32", attention="eager"))]
    assert wanted.model_fields_set == set(Request.model_fields) - {"in_context"}, (
        "a new field needs its flag, and its place here"
    )


def test_places_are_typed_as_numbers_with_commas(asked):
    places = ["--inpaint-image", "i.png", "--inpaint-click", "0.5,0.4", "--inpaint-box", "0.1,0.2,.5,1"]
    assert main(["generate", "a", *places, "--inpaint-sam", "s"]) == 0
    assert asked[0][0].inpaint == Inpaint(image="i.png", click=(0.5, 0.4), box=(0.1, 0.2, 0.5, 1), sam="s")


def test_what_is_not_typed_is_left_to_the_base(asked):
    assert main(["generate", "a fox"]) == 0
    assert asked == [(Request(prompt="a fox"), "pocket", Path("outputs"), DrawingMachine())]


def test_a_prompt_may_be_empty_or_look_like_anything(asked):
    for prompt in ("", "a <my-fox> (on: top", "50% [grey]", "狐"):
        assert main(["generate", prompt]) == 0
    assert [request.prompt for request, *_ in asked] == ["", "a <my-fox> (on: top", "50% [grey]", "狐"]


@pytest.mark.parametrize(
    ("typed", "source", "strength"),
    [
        ("fox.safetensors", "fox.safetensors", None),
        ("fox.safetensors:0.8", "fox.safetensors", 0.8),
        ("fox.safetensors:2", "fox.safetensors", 2.0),
        ("fox.safetensors:.5", "fox.safetensors", 0.5),
        ("C:/my/fox.safetensors", "C:/my/fox.safetensors", None),
        ("C:/my/fox.safetensors:1.5", "C:/my/fox.safetensors", 1.5),
        ("a:b/fox", "a:b/fox", None),
        ("fox.safetensors:", "fox.safetensors:", None),
        ("fox.safetensors:high", "fox.safetensors:high", None),
        (":0.8", ":0.8", None),
    ],
)
def test_a_strength_is_what_follows_the_last_colon_if_it_is_a_number(typed, source, strength):
    assert concept_use(typed) == {"source": source} | ({} if strength is None else {"strength": strength})


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--steps 0", ["steps", "given: 0"]),
        ("--count 257", ["count", "256", "given: 257"]),
        ("--width 8", ["width", "16", "given: 8"]),
        ("--guidance-scale 51", ["guidance.scale", "50", "given: 51"]),
        ("--guidance-stop -0.1", ["guidance.stop", "given: -0.1"]),
        ("--seed -1", ["seed", "given: -1"]),
        ("--inpaint-mask m.png", ["inpaint.image", "required"]),
        ("--inpaint-image i.png --inpaint-click 0.5", ["inpaint.click", "given: (0.5,)"]),
        ("--inpaint-image i.png --inpaint-click left", ["inpaint.click", "0.5,0.4", "given: 'left'"]),
        ("--inpaint-image i.png --inpaint-box 0,0,9,9", ["inpaint.box", "less than or equal to 1"]),
        ("--inpaint-image i.png --inpaint-strength 0", ["inpaint.strength", "greater than 0", "given: 0"]),
        ("--concept x.safetensors:5", ["concepts.0.strength", "4", "given: 5"]),
        ("--steps 0 --count 0 --height 5000", ["steps", "count", "height", "given: 5000"]),
    ],
)
def test_a_request_that_cannot_be_names_field_range_value_and_next_step(flags, named, asked, capsys):
    assert main(["generate", "a fox", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in named) and "studio generate --help" in said
    assert len(said.splitlines()) == 1 and not asked


def test_neither_a_prompt_nor_a_picture_is_an_error_with_the_next_step(capsys):
    assert main(["generate", "--steps", "3"]) == 2
    assert "neither a prompt nor --from" in capsys.readouterr().err


def flags_of(field, info):
    """Return the flag of `studio generate` for a field of `Request`."""
    if field in LISTED:
        return [LISTED[field][0]]
    for kind in (info.annotation, *get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return [f"{field}_{inner}" for inner in kind.model_fields if inner not in FILLED_IN]
    return [field]


def test_every_field_of_a_request_is_a_flag_with_its_default_and_help_and_there_is_no_other():
    expected = {
        flag for name, info in Request.model_fields.items() if name not in PLACED for flag in flags_of(name, info)
    }
    assert set(Asked.model_fields) == expected
    assert all(info.description and "\n" not in info.description for info in Asked.model_fields.values())
    # Nothing given and everything at its default are the same request.
    assert given(Asked()) == {}
    # A picture to inpaint has no default: whatever is said of it asks for one.
    asked = Asked(**{name: info.default for name, info in Asked.model_fields.items() if not name.startswith("inpaint")})
    assert Request.read({"prompt": "a", **given(asked)}) == Request(prompt="a")


def test_only_what_was_given_is_passed_on_nested_as_in_a_request():
    asked = Asked(guidance_stop=0.5, concept=("a.safetensors:0.5", "b.safetensors"), seed=0)
    assert given(asked) == {
        "guidance": {"stop": 0.5},
        "concepts": [{"source": "a.safetensors", "strength": 0.5}, {"source": "b.safetensors"}],
        "seed": 0,
    }


def test_what_is_given_with_a_picture_replaces_the_pictures_own(tmp_path, capsys):
    where = ["--output", str(tmp_path), "--steps", "2"]
    assert main(["generate", "a fox", "--count", "2", "--guidance-scale", "3", "--guidance-start", "0.5", *where]) == 0
    again = ["generate", "--from", str(tmp_path / "1.png"), "--output", str(tmp_path / "again")]
    assert main([*again, "a cat", "--guidance-scale", "4", "--count", "2"]) == 0
    (first, second) = sorted((tmp_path / "again").iterdir())
    own, changed = read_made(tmp_path / "1.png").request, read_made(first).request
    # Picture 1 is the one repeated, so its noise is that of the first one now.
    assert changed == own.model_copy(
        update={"prompt": "a cat", "seed": 1, "guidance": own.guidance.model_copy(update={"scale": 4.0})}
    )
    assert (first.stem, second.stem) == ("1", "2") and read_made(second).index == 1
    assert main([*again, "--dtype", "bfloat16", "--attention", "eager"]) == 0
    assert (read_made(tmp_path / "again" / "1-1.png").dtype, read_made(first).dtype) == ("bfloat16", "float32")
    capsys.readouterr()
    assert main([*again, "--guidance-stop", "0.4"]) == 2
    assert "start 0.5 lies after stop 0.4" in capsys.readouterr().err
    assert main([*again, "--steps", "0"]) == 2
    assert "steps" in capsys.readouterr().err


def test_a_base_given_with_a_picture_is_used_whatever_its_own_was(tmp_path, monkeypatch, capsys):
    assert main(["generate", "a fox", "--steps", "1", "--output", str(tmp_path)]) == 0
    monkeypatch.setattr("pipelines.models.components.Components.fingerprint", lambda self: "f" * 16)
    again = ["generate", "--from", str(tmp_path / "0.png"), "--output", str(tmp_path / "again")]
    assert main(again) == 2
    assert "give --base pocket" in capsys.readouterr().err
    assert main([*again, "--base", "pocket"]) == 0
    assert Image.open(tmp_path / "again" / "0.png").tobytes() == Image.open(tmp_path / "0.png").tobytes()


# -- the program ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["train"]])
def test_without_anything_to_do_it_says_what_it_can_do(command, capsys):
    assert main(command) == 0
    said = capsys.readouterr().out
    assert ("textual-inversion" if command else "generate") in said


@pytest.mark.parametrize(
    "arguments", [["paint"], ["train", "magic", "--steps", "3"], ["generate", "a", "--magic", "1"]]
)
def test_a_command_or_flag_there_is_not_is_named(arguments, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert any(word in said for word in ("paint", "magic")) and "--help" in said


def test_its_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == own_version() != "unknown"


def test_ctrl_c_ends_it_with_the_code_shells_expect_and_without_a_traceback(monkeypatch, capsys):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "write_pictures", interrupted)
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["generate", "a fox"]))  # as the installed command does
    assert ended.value.code == 130 and "Traceback" not in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_hidden_as_one_of_the_person(monkeypatch):
    def broken(*given, **more):
        raise ZeroDivisionError

    monkeypatch.setattr(runner, "write_pictures", broken)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "a fox"])


def test_as_a_process_it_ends_with_code_2_and_one_line_on_standard_error(tmp_path):
    command = [sys.executable, "-m", "studio.cli", *TRAIN, "--steps", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=LIMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("studio: ") and "steps" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", ["fox", "fox:0.1,0.2,0.5", "fox:a,b,c,d", ":0,0,1,1", "fox:0.1;0.2;0.3;0.4", ""])
def test_a_box_of_another_form_is_one_sentence_with_an_example(asked, capsys, typed):
    assert main(["generate", "a fox", "--box", typed]) == 2
    said = capsys.readouterr().err
    assert repr(typed) in said and "for example fox:0.1,0.2,0.5,0.6" in said and said.count("\n") == 1
    assert not asked


def test_a_box_outside_the_picture_is_named_on_the_command_line(asked, capsys):
    assert main(["generate", "a fox", "--box", "cat:0,0,1,1", "--box", "fox:10,20,50,60"]) == 2
    said = capsys.readouterr().err
    assert "box 2" in said and "'fox'" in said and "looks like pixels" in said
    assert not asked


def test_a_word_that_the_library_has_is_pointed_out(tmp_path):
    shutil.copyfile(concepts.EXAMPLE, tmp_path / "wolf.safetensors")
    assert concepts.meant(["a <wolff>"], [], tmp_path) == "<wolff>: <wolf> is meant?"
    assert concepts.meant(["a <wolf>"], [], tmp_path) == "<wolf>: the library has it as wolf."
    assert concepts.meant(["a <wolf>"], ["concepts/wolf.safetensors"], tmp_path) == ""
    assert (
        concepts.meant(["a <teapot> and a fox"], [], tmp_path) == concepts.meant(["<wolf>"], [], tmp_path / "x") == ""
    )


def test_a_judge_without_candidates_is_refused(tmp_path, capsys):
    assert main(["generate", "a fox", "--clip", str(tmp_path)]) == 2
    assert "--clip judges candidates, and there is one" in capsys.readouterr().err
