"""Progress as read on a screen and in a log, scores as they are printed, what a picture says of its machine."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image

from evaluation import concepts as scoring
from evaluation.truth import composed
from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.events import Note, Preview, StepDone
from pipelines.models.loading import load
from pipelines.pictures.metadata import read_made
from studio.cli import main
from studio.commands import demo
from studio.work.progress import WIDTH, Progress
from tests import tiny
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import ALL_NAMES, HELD_OUT


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("steps", [1, 3, 10, 99, 3000])
def test_a_log_gets_a_dozen_lines_at_most_however_long_the_work(steps):
    stream = io.StringIO()
    show = Progress("work", stream)
    for step in range(1, steps + 1):
        show(StepDone(step, steps, {}, step * 0.1))
    lines = stream.getvalue().splitlines()
    assert len(lines) <= min(steps, 12)
    assert f"{steps}/{steps}" in lines[-1] and "\r" not in stream.getvalue()
    assert len({line.split("] ")[1].split()[0] for line in lines}) == len(lines), "no step is said twice"


@pytest.mark.parametrize("begun", [0, 40])  # also where a resumed run begins in the middle
@pytest.mark.parametrize(("step", "left"), [(50, 100), (60, 80), (100, 0)])
def test_time_left_goes_on_at_the_speed_so_far(begun, step, left):
    stream = Terminal()
    show = Progress("work", stream)
    show(StepDone(begun + 5, 100, {}, 10.0))
    assert "left" not in stream.getvalue(), "one report is no speed yet"
    show(StepDone(step, 100, {}, 10.0 + 2.0 * (step - begun - 5)))
    assert f"{step}/100  {left} s left" in stream.getvalue()


@pytest.mark.parametrize(("step", "filled"), [(1, 0), (50, WIDTH // 2), (100, WIDTH)])
def test_the_bar_is_as_long_as_the_share_that_is_done(step, filled):
    stream = Terminal()
    Progress("work", stream)(StepDone(step, 100))
    bar = stream.getvalue().split("[")[2].split("]")[0]  # the first bracket is the terminal's code to clear the line
    assert bar == "#" * filled + " " * (WIDTH - filled)


def test_on_a_terminal_notes_and_the_end_of_the_work_keep_their_lines():
    stream = Terminal()
    show = Progress("work", stream)
    show(Note("four pictures encoded"))
    show(StepDone(1, 2, {"denoise": 0.5, "norm": 1.0}))
    show(StepDone(2, 2, {"denoise": 0.25, "norm": 2.0}))
    kept = stream.getvalue().split("\n")
    assert kept[0] == "work: four pictures encoded" and kept[-1] == ""
    assert kept[1].endswith("denoise 0.2500  norm 2.0000")


def test_previews_of_each_step_are_whole_files_beside_the_concept(tmp_path):
    show = Progress("work", io.StringIO(), previews=tmp_path / "deep" / "my-fox.safetensors")
    for step, colour in ((50, "red"), (100, "blue"), (50, "lime")):
        show(Preview(step, Image.new("RGB", (4, 4), colour)))
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["my-fox-100.png", "my-fox-50.png"]
    assert Image.open(tmp_path / "deep" / "my-fox-50.png").getpixel((0, 0)) == (0, 255, 0), "the newest"


# -- scores -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.sd_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def concept(base, tmp_path_factory):
    """The word of another thing, as if it had been learned."""
    rows = single_rows(load(base), "cat")
    card = ConceptCard(token="<x>", init="fox", family="sd1")
    return str(Concept(card, rows).save(tmp_path_factory.mktemp("concept") / "x.safetensors"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    for index, picture in enumerate(composed(scoring.teaching_scenes("wolf"))):
        picture.save(folder / f"{index}.png")
    return str(folder)


@pytest.fixture
def one_seed(monkeypatch):
    monkeypatch.setattr(scoring, "SEEDS", 1)
    monkeypatch.setattr(scoring, "PROMPTS", scoring.PROMPTS[:1])


def test_a_concept_is_measured_against_pictures_of_ones_own(base, concept, real, one_seed, capsys):
    assert main(["score", concept, "--real", real, "--base", base, "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["likeness_gain"] == pytest.approx(row["likeness"] - row["likeness_word"])
    assert row["alignment_gain"] == pytest.approx(row["alignment"] - row["alignment_word"])
    assert all(-1 <= row[key] <= 1 for key in ("likeness", "likeness_word", "alignment", "alignment_word"))
    assert "named" not in row, "nobody said what it is called"
    assert main(["score", concept, "--real", real, "--base", base]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("<x>"))
    assert f"{row['likeness']:.3f}" in line.split()


def test_pictures_of_ones_own_count_before_a_name_that_is_also_given(base, concept, real, one_seed, capsys):
    assert main(["score", concept, "--real", real, "--thing", "wolf", "--base", base, "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["named_chance"] == 1 / len(ALL_NAMES) and 0 <= row["named"] <= 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--real", "nowhere"], "no folder nowhere"),
        (["--thing", "fox"], "'fox' is no held-out sticker"),
        (["--thing", "wolf", "--format", "xml"], "xml"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_one_sentence_with_the_next_step(concept, flags, said, capsys):
    assert main(["score", concept, *flags]) == 2
    out, err = capsys.readouterr()
    assert said in err and len(err.splitlines()) == 1 and not out


@pytest.mark.parametrize("figure", ["likeness", "named"])
def test_the_mean_is_over_the_rows_that_have_the_figure(figure):
    rows = {"a": {"likeness": 0.2, "named": 1.0}, "b": {"likeness": 0.4}, "c": {"likeness": 0.9, "named": 0.0}}
    have = [row[figure] for row in rows.values() if figure in row]
    assert scoring.mean(rows)[figure] == pytest.approx(sum(have) / len(have))
    lines = scoring.table(rows).splitlines()
    assert len(next(line for line in lines if line.startswith("b ")).split()) == 2, (
        "a figure that is missing stays blank"
    )


def test_a_long_word_does_not_push_the_table_out_of_line():
    text = scoring.table(
        {"<" + "x" * 60 + ">": {"likeness": 0.5, "named": 1.0}, "short": {"likeness": 0.25, "named": 0.0}}
    )
    lines = text.splitlines()[:3]
    assert len({len(line) for line in lines}) == 1
    assert lines[0].endswith("named") and lines[1].endswith("1.000") and lines[2].endswith("0.000")


# -- machine ----------------------------------------------------------------------------------------------------


def test_precision_and_attention_are_written_into_the_picture_and_used_again(base, tmp_path, capsys):
    flags = ["--base", base, "--steps", "2", "--output", str(tmp_path), "--dtype", "bfloat16", "--attention", "eager"]
    assert main(["generate", "a fox", "--count", "2", *flags]) == 0
    second = tmp_path / "1.png"
    made = read_made(second)
    assert (made.dtype, made.attention, made.index) == ("bfloat16", "eager", 1)
    # Repeated on a machine that would do otherwise by default.
    assert main(["generate", "--from", str(second), "--output", str(tmp_path / "again")]) == 0
    (again,) = (tmp_path / "again").iterdir()
    assert read_made(again) == made and Image.open(again).tobytes() == Image.open(second).tobytes()
    assert main(["generate", "a fox", "--base", base, "--steps", "2", "--output", str(tmp_path / "plain")]) == 0
    assert read_made(tmp_path / "plain" / "0.png").dtype == "float32"
    capsys.readouterr()


def test_the_doctor_refuses_a_device_there_is_not_with_the_next_step(capsys):
    assert main(["doctor", "--device", "toaster"]) == 2
    said = capsys.readouterr().err
    assert "'toaster' cannot be used" in said and "--device auto or cpu" in said


def test_a_base_is_loaded_frozen_as_the_machine_says(base):
    from studio.settings import Machine
    from studio.work import runner

    for dtype, meant in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        loaded = runner.open_base(base, Machine(device="cpu", dtype=dtype))  # pyright: ignore
        parameters = [p for module in loaded.modules() for p in module.parameters()]
        assert {p.dtype for p in parameters} == {meant}
        assert not any(p.requires_grad for p in parameters)


# -- demo -------------------------------------------------------------------------------------------------------


def test_the_demo_says_what_it_misses_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "EXAMPLES", tmp_path / "gone")
    assert demo.main() == 2
    out, err = capsys.readouterr()
    assert err.startswith("demo: There is no folder") and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.iterdir())


def test_the_demo_asks_only_for_what_pocket_can_read():
    tokenizer = build_tokenizer()
    assert demo.THING in HELD_OUT and HELD_OUT[demo.THING] == demo.WORD
    for prompt in demo.PROMPTS:
        said = prompt.format(demo.WORD)
        assert len(tokenizer(said, add_special_tokens=False).input_ids) == len(said.split()), said
