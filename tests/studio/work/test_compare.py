"""Comparisons by the real pocket: cells are what they are alone, the sheet shows them, jobs and REST carry them out."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.errors import Cancelled, ConceptError, ConfigError, ModelError, RequestError
from pipelines.events import Note, Preview, StepDone
from pipelines.models.loading import load
from pipelines.pictures.metadata import Made, read_made, save_png, with_its_files
from pipelines.pictures.sheet import GAP, Sheet
from pipelines.request.axes import Axis, axis_of, cells
from pipelines.request.request import Defaults, Inpaint, Request
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.cli import main
from studio.jobs.jobs import Jobs
from studio.settings import Machine, Picking
from studio.work.compare import SIDE, draw, sheet
from studio.work.runner import write_pictures
from tests import tiny

MACHINE = Machine(device="cpu")
AXES = (axis_of("guidance.scale=1,4"), axis_of("steps=2,3"))


@pytest.fixture(scope="module")
def base():
    return load("pocket")


@pytest.fixture(scope="module")
def concept(base, tmp_path_factory):
    """The word of a fox, with which a prompt begins to be about foxes."""
    card = ConceptCard(token="<w>", init="house", family="pocket", base_fingerprint=base.fingerprint())
    return str(Concept(card, single_rows(base, "fox")).save(tmp_path_factory.mktemp("concept") / "w.safetensors"))


@pytest.mark.parametrize(
    "axes",
    [
        ("guidance.scale=1,4", "steps=2,3"),
        ("concepts.w.strength=0,1", "scheduler=ddim,euler-a"),
        ("seed=3,4",),
        ("words=red,green", "grounding.beta=0,1"),
    ],
)
def test_a_cell_is_the_picture_of_its_request_alone_bit_for_bit(base, concept, tmp_path, axes):
    fields = {"prompt": "a <w> on a red background", "steps": 2, "concepts": [{"source": concept}]}
    fields["boxes"] = [{"phrase": "a <w>", "box": [0, 0, 0.5, 0.5]}]
    request, given = Request.read(fields), [axis_of(text) for text in axes]
    _, *made = draw(request, given, "pocket", tmp_path / "all", MACHINE, components=base)
    each = [cell for row in cells(request, given) for cell in row]
    assert len(made) == len(each) and len({path.read_bytes() for path in made}) == len(each)
    for cell, path in zip(each, made, strict=True):
        (alone,) = write_pictures(
            cell, "pocket", tmp_path / "alone", MACHINE, components=base, on_event=lambda event: None
        )
        assert alone.read_bytes() == path.read_bytes()
        assert with_its_files(read_made(path), path).request == cell.resolved(base.defaults)


def test_steps_are_counted_over_all_cells_and_each_is_shown_when_it_is_done(base, tmp_path):
    events = []
    draw(Request(prompt="a fox"), AXES, "pocket", tmp_path, MACHINE, components=base, on_event=events.append)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(event.step, event.steps) for event in steps] == [(step, 10) for step in range(1, 11)]
    assert [event.seconds for event in steps] == sorted(event.seconds for event in steps)
    shown = [(event.step, event.caption) for event in events if isinstance(event, Preview)]
    assert shown == [
        (2, "guidance scale 1, steps 2"),
        (4, "guidance scale 4, steps 2"),
        (7, "guidance scale 1, steps 3"),
        (10, "guidance scale 4, steps 3"),
    ]


def test_what_paints_with_a_share_of_its_steps_still_comes_to_the_end(base, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    request = Request(prompt="a fox", steps=8, inpaint=Inpaint(image=str(tmp_path / "red.png")))
    events = []
    axes = [axis_of("inpaint.strength=0.25,0.5,1")]
    draw(request, axes, "pocket", tmp_path / "out", MACHINE, components=base, on_event=events.append)
    steps = [event.step for event in events if isinstance(event, StepDone)]
    assert steps[:6] == [4, 8, 10, 12, 14, 16] and steps[6:] == list(range(17, 25))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(notes) == len(set(notes))


def test_it_stops_between_steps_and_what_is_done_stays(base, tmp_path):
    asked = iter([False] * 3)
    with pytest.raises(Cancelled):
        draw(
            Request(prompt="a fox"),
            AXES,
            "pocket",
            tmp_path,
            MACHINE,
            components=base,
            on_event=lambda event: None,
            should_stop=lambda: next(asked, True),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["0.png"]


def test_nothing_is_made_if_one_cell_cannot_be(base, concept, tmp_path):
    with pytest.raises(RequestError, match="steps"):
        draw(Request(prompt="x"), [axis_of("steps=1,0")], "pocket", tmp_path / "out", MACHINE, components=base)
    word = Request(prompt="a <w>", steps=1, concepts=[{"source": concept}])
    with pytest.raises(ConceptError, match="no opposite"):
        axes = [axis_of("concepts.1.strength=1,-1")]
        draw(word, axes, "pocket", tmp_path / "out", MACHINE, components=base)
    assert not (tmp_path / "out").exists()


# -- the sheet --------------------------------------------------------------------------------------------------


def written(folder, count, size):
    """Pictures of one colour each, as if they had been generated."""
    made = Made(Request(prompt="x").resolved(Defaults(size=64)), 0, "pocket", "f")
    colours = [(40 * number % 256, 90 + number, 200) for number in range(count)]
    paths = [save_png(Image.new("RGB", size, colour), folder / f"{n}.png", made) for n, colour in enumerate(colours)]
    return paths, colours


@pytest.mark.parametrize(("size", "cell"), [((16, 16), 128), ((64, 48), 128), ((100, 100), 200), ((512, 256), 512)])
def test_the_sheet_shows_every_cell_in_its_place(tmp_path, size, cell):
    paths, colours = written(tmp_path, 6, size)
    axes = (Axis(field="steps", values=(1, 2, 3)), Axis(field="seed", values=(0, 1)))
    drawn = sheet(Request(prompt="a fox"), axes, paths).draw()
    assert drawn.width == 160 + 3 * (cell + GAP) + GAP
    across = [160 + column * (cell + GAP) + cell // 2 for column in range(3)]
    down = [drawn.height - (2 - row) * (cell + GAP) + cell // 2 for row in range(2)]
    assert [drawn.getpixel((x, y)) for y in down for x in across] == colours
    said = np.asarray(drawn)[: down[0] - cell // 2]
    assert (said < 128).any(), "the prompt stands above"


def test_a_sheet_of_many_large_pictures_stays_small_and_long_words_do_no_harm(tmp_path):
    paths, _ = written(tmp_path, 40, (512, 512))
    axes = (Axis(field="prompt", values=tuple(f"{'fox' * 1300} {number}" for number in range(40))),)
    drawn = sheet(Request(prompt="a fox"), axes, paths).draw()
    assert drawn.width == 6 + 40 * (SIDE + GAP) + GAP


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (700, 301), (301, 700)])
def test_pictures_that_are_shrunk_as_they_are_opened_look_as_if_they_were_not(tmp_path, size):
    made = Made(Request(prompt="x").resolved(Defaults(size=64)), 0, "pocket", "f")
    noise = np.random.default_rng(0).integers(0, 256, (20, size[1], size[0], 3), dtype=np.uint8)
    whole = [Image.fromarray(one) for one in noise]
    paths = [save_png(one, tmp_path / f"{number}.png", made) for number, one in enumerate(whole)]
    drawn = sheet(Request(prompt="a fox"), [Axis(field="seed", values=tuple(range(20)))], paths)
    assert all(max(one.size) <= drawn.cell for one in drawn.rows[0][1])
    kept = Sheet(drawn.cell, drawn.label, drawn.title)
    kept.head(drawn.heads)
    kept.row("", whole)
    assert drawn.draw().tobytes() == kept.draw().tobytes()


# -- the command ------------------------------------------------------------------------------------------------


def test_the_command_writes_pictures_and_a_sheet_and_goes_on_from_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["generate", "a fox", "--steps", "2", "--box", "a fox:0,0,0.5,0.5", "--draw-boxes", "--seed", "5"]
    assert main([*asked, "--compare", "guidance.scale=1,3", "--compare", "words=fox,cat"]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in printed if ".boxes" not in path.name] == [
        *("5.png", "5-1.png", "5-2.png", "5-3.png"),
        "comparison.png",
    ]
    assert all(path.is_file() for path in printed) and printed[-1].name == "comparison.png"
    last = read_made(Path("outputs/5-3.png")).request
    assert (last.prompt, last.boxes[0].phrase, last.guidance.scale) == ("a cat", "a cat", 3)
    assert main(["generate", "--from", "outputs/5-3.png", "--compare", "steps=1,2", "--output", "again"]) == 0
    assert {path.name for path in Path("again").iterdir()} == {"5.png", "5-1.png", "comparison.png"}
    assert Path("again/5-1.png").read_bytes() == Path("outputs/5-3.png").read_bytes()
    with pytest.raises(RequestError, match="does not say how it was made"):
        read_made(Path("again/comparison.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a fox", "--compare", "steps=0,5"], "steps cannot be '0'"),
        (["a fox", "--compare", "steps"], "FIELD=VALUE"),
        (["a fox", "--compare", "steps=1,2", "--count", "4"], "4 pictures"),
        (["a fox", "--compare", "steps=1", "--compare", "seed=1", "--compare", "width=32"], "3 axes"),
    ],
)
def test_a_command_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *arguments]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


# -- jobs and REST ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web(jobs):
    return TestClient(guarded(rest(jobs), Door()), base_url="http://localhost", raise_server_exceptions=False)


def test_a_comparison_is_asked_for_watched_and_fetched(web, ended):
    compare = [{"field": "guidance.scale", "values": [1, "4"]}, {"field": "steps", "values": [1, 2]}]
    answer = web.post("/api/v1/generations", json={"request": {"prompt": "a fox", "seed": 2}, "compare": compare})
    assert answer.status_code == 202 and answer.json()["spec"]["compare"] == compare
    ended(answer.json()["id"])
    done = web.get(answer.headers["location"]).json()
    assert (done["state"], done["step"], done["steps"], len(done["pictures"])) == ("done", 6, 6, 5), done
    pictures = [Image.open(io.BytesIO(web.get(href).content)) for href in done["pictures"]]
    assert pictures[0].width > 2 * SIDE and "promptstudio" not in pictures[0].text
    made = [json.loads(picture.text["promptstudio"])["request"] for picture in pictures[1:]]
    assert [(one["guidance"]["scale"], one["steps"], one["seed"]) for one in made] == [
        *((1, 1, 2), (4, 1, 2)),
        *((1, 2, 2), (4, 2, 2)),
    ]
    stream = web.get(done["links"]["events"]).text
    assert stream.count("event: step") == 6 and stream.count("event: preview") == 4


def test_strengths_of_concepts_are_compared_by_ids(jobs, base, ended):
    card = ConceptCard(token="<c>", init="fox", family="pocket", base_fingerprint=base.fingerprint())
    Concept(card, single_rows(base, "house")).save(jobs.learned / "c.1.safetensors")
    asked = {"prompt": "a <c>", "steps": 1, "concepts": [{"source": "c.1"}]}
    axes = [Axis(field="concepts.c.1.strength", values=(0, 1))]
    done = ended(jobs.submit_generation(asked, compare=axes).id)
    assert done.state == "done", done.error
    strengths = [read_made(path).request.concepts[0].strength for path in jobs.results(done.id)[1:]]
    assert strengths == [0, 1]
    with pytest.raises(ConceptError, match="no opposite"):
        jobs.submit_generation(asked, compare=[Axis(field="concepts.c.1.strength", values=(1, -1))])
    (jobs.learned / "c.1.safetensors").unlink()


def test_a_comparison_that_is_cancelled_stops_within_a_step(jobs, until):
    job = jobs.submit_generation({"prompt": "a fox"}, compare=[{"field": "steps", "values": [2, 900]}])
    until(job.id, lambda now: now.step > 3)
    jobs.cancel(job.id)
    assert until(job.id, lambda now: now.state == "cancelled", 20).step < 500


def test_an_attempt_that_was_lost_leaves_no_pictures_behind(jobs, until, ended):
    busy = jobs.submit_generation({"prompt": "a fox", "steps": 1000})
    waits = [jobs.submit_generation({"prompt": "a fox", "seed": seed, "steps": 1}).id for seed in (7, 8)]
    for job in waits:  # as if it had been killed and begun again
        folder = jobs.places.job(job)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("7.png", "comparison.png", ".7.png.abc", "preview-0000001.png"):
            (folder / name).write_bytes(b"lost")
    jobs.cancel(waits[1])
    jobs.cancel(busy.id)
    assert ended(waits[0]).state == "done"
    folder, other = map(jobs.places.job, waits)
    pictures = {path.name for path in (*folder.glob("*.png*"), *folder.glob(".*.png*"))}
    assert {name for name in pictures if "preview" not in name} == {"7.png"}
    assert "preview-0000001.png" in pictures and jobs.results(waits[0]) == [folder / "7.png"]
    assert len(list(other.iterdir())) == 4, "the files of another job stay"


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ([{"field": "words", "values": ["a", "b" * 4001]}], "at most 4000"),
        ([{"field": "steps", "values": [0]}], "steps cannot be 0"),
        ([{"field": "grounding.adapter", "values": ["/etc/passwd"]}], "adapter cannot be set here"),
        ([{"field": "inpaint.unet", "values": ["/etc"]}], "no inpaint"),
        ([{"field": "boxes.1.picture", "values": ["/etc/passwd"]}], "names a file"),
        ([{"field": "seed", "values": list(range(101))}], "at most 100"),
        ([{"field": "seed", "values": [1]}] * 3, "at most 2"),
        ([{"field": "seed", "values": [1], "more": 1}], "more"),
        ({"field": "seed"}, "compare"),
    ],
)
def test_what_cannot_be_compared_is_a_problem_when_it_is_asked(web, compare, said):
    request = {"prompt": "a fox", "boxes": [{"phrase": "a fox", "box": [0, 0, 0.5, 0.5]}]}
    answer = web.post("/api/v1/generations", json={"request": request, "compare": compare})
    assert answer.status_code == 422 and said in answer.json()["detail"]


def test_the_description_says_what_an_axis_is(web):
    schemas = web.get("/api/v1/openapi.json").json()["components"]["schemas"]
    assert set(schemas["Axis"]["properties"]) == {"field", "values"}
    assert "compare" in schemas["GenerationOrder"]["properties"]


def test_the_best_candidate_is_kept_and_repeats_as_a_picture_of_its_own(base, concept, tmp_path, capsys):
    events = []
    request = Request(prompt="a <w> on a red background", steps=2, seed=5, count=2, concepts=[{"source": concept}])
    picking = Picking(best_of=3)
    made = draw(request, (), "pocket", tmp_path, MACHINE, components=base, picking=picking, on_event=events.append)
    notes = [event.text for event in events if isinstance(event, Note) and "is kept of 3" in event.text]
    assert len(made) == len(notes) == 2 and len([one for one in events if isinstance(one, Preview)]) == 2
    last = [one for one in events if isinstance(one, StepDone)][-1]
    assert (last.step, last.steps) == (12, 12)
    for number, (path, note) in enumerate(zip(made, notes, strict=True)):
        own = read_made(path).request
        assert own.count == 1 and own.seed in range(5 + 3 * number, 8 + 3 * number) and f"Seed {own.seed}" in note
        scores = {int(seed): float(score) for seed, score in re.findall(r"(\d+): (-?[0-9.]+)", note)}
        assert len(scores) == 3 and max(scores, key=scores.__getitem__) == own.seed
        assert main(["generate", "--from", str(path), "--output", str(tmp_path / "again")]) == 0
        again = Path(capsys.readouterr().out.strip().splitlines()[-1])
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(again)))


def test_candidates_are_not_compared_and_need_a_judge(base, tmp_path):
    with pytest.raises(RequestError, match="keeps none"):
        draw(Request(prompt="a fox"), AXES, "pocket", tmp_path, MACHINE, components=base, picking=Picking(best_of=2))
    other = tiny.sd()
    with pytest.raises(ConfigError, match="no judge of its own"):
        draw(Request(prompt="a fox"), (), "x", tmp_path, MACHINE, components=other, picking=Picking(best_of=2))
    with pytest.raises(ModelError, match="CLIP"):
        picking = Picking(best_of=2, clip=tmp_path / "gone")
        draw(Request(prompt="a fox"), (), "x", tmp_path, MACHINE, components=other, picking=picking)


def test_the_best_of_several_on_a_base_without_a_judge_is_refused_when_it_is_asked(tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path / "sd")
    jobs = Jobs(tmp_path / "studio", warm=False, bases={"pocket": "pocket", "sd": str(tmp_path / "sd")})
    web, asked = TestClient(rest(jobs)), {"request": {"prompt": "a fox"}, "best_of": 2}
    answer = web.post("/api/v1/generations", json=asked | {"base": "sd"})
    assert answer.status_code == 422 and "Nothing here judges pictures of Stable Diffusion" in answer.json()["detail"]
    assert web.post("/api/v1/generations", json=asked | {"base": "sd", "best_of": 1}).status_code == 202
    assert web.post("/api/v1/generations", json=asked).status_code == 202
