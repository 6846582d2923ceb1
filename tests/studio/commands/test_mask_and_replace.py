"""Painting from the command line: masks from what is pointed at, and pictures that repeat."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError

from pipelines.conditions.inpaint import Inpainting
from pipelines.errors import RequestError
from pipelines.masks import names
from pipelines.pictures.metadata import read_made
from pipelines.pictures.tensors import to_pictures
from pipelines.request.inpaint import Inpaint
from pipelines.request.request import Request
from studio.cli import main
from studio.commands.mask import stroke
from tests.pipelines.masks.models import folder_of
from trainers.stickers.world import Placed, Scene, Stickers


@pytest.fixture
def picture(tmp_path):
    drawn = Image.new("RGB", (64, 64), (115, 165, 240))
    ImageDraw.Draw(drawn).ellipse((16, 16, 47, 47), fill="red")
    drawn.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def white(path):
    return np.asarray(Image.open(path)) > 0


def test_a_click_becomes_a_mask_and_others_are_offered(picture, tmp_path, capsys):
    ImageDraw.Draw(half := Image.open(picture)).rectangle((24, 24, 39, 39), fill="yellow")
    half.save(picture)
    asked = ["mask", str(picture), "--click", "0.5,0.5", "--output", str(tmp_path / "out" / "m.png")]
    assert main(asked) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'm.png'}  1.00\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.png"]
    assert main([*asked, "--offer"]) == 0
    assert white(tmp_path / "out" / "m.png").sum() > 700 > 300 > white(tmp_path / "out" / "m-2.png").sum() > 200


def test_masks_are_widened_and_fade(picture, tmp_path):
    where = ["--output", str(tmp_path / "m.png")]
    assert main(["mask", str(picture), "--box", "0.2,0.2,0.8,0.8", "--grow", "2", "--feather", "3", *where]) == 0
    values = np.asarray(Image.open(tmp_path / "m.png"))[32]
    assert values[14] == 255 and 255 > values[13] > values[12] > values[11] > 0 == values[10]


def test_a_brush_paints_as_it_is_told(picture, tmp_path):
    brush = ["--brush", "0.2,0.2 0.8,0.2:0.1", "--brush", "0.5,0.9"]
    assert main(["mask", str(picture), *brush, "--output", str(tmp_path / "m.png")]) == 0
    mask = white(tmp_path / "m.png")
    assert mask[12, 14:50].all() and mask[57, 32] and not mask[32].any()
    assert stroke("0.1,0.2 0.3,0.4:0.05") == {"points": ("0.1,0.2", "0.3,0.4"), "width": "0.05"}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "--click, --box or --brush, or --name, or --all"),
        (["--click", "0.5,0.5", "--name", "fox"], "2 ways of pointing"),
        (["--click", "0.5,0.5", "--finder", "owl"], "--finder owl finds names, and there is none"),
        (["--name", "fox", "--finder", "nowhere"], "no finder of names in nowhere"),
        (["--name", "red cup"], "'red cup' is no sticker"),
        (["--click", "320,200"], "clicks.0.0: input should be less than or equal to 1"),
        (["--brush", "here"], "strokes.0.points.0"),
        (["--click", "0.5,0.5", "--sam", "nowhere"], "no Segment Anything model in nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(picture, tmp_path, capsys, typed, said):
    assert main(["mask", str(picture), *typed, "--output", str(tmp_path / "m.png")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and not (tmp_path / "m.png").exists()


def test_a_repainted_picture_repeats_until_its_files_change(picture, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    paint = ["--inpaint-image", str(picture), "--inpaint-click", "0.5,0.5", "--steps", "2", "--output", str(out)]
    assert main(["generate", "a cat", *paint]) == 0
    made = read_made(out / "0.png").request
    assert made.inpaint.click == (0.5, 0.5) and made.width == 64
    repeat = ["generate", "--from", str(out / "0.png"), "--output", str(again)]
    assert main(repeat) == 0
    assert (again / "0.png").read_bytes() == (out / "0.png").read_bytes()
    kept = ~white_of_disc()
    first = np.asarray(Image.open(out / "0.png"))
    assert np.array_equal(first[kept], np.asarray(Image.open(picture))[kept])
    Image.open(picture).rotate(90).transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(lambda v: v // 2).save(picture)
    capsys.readouterr()
    assert main(repeat) == 2
    assert "has changed since this was painted" in capsys.readouterr().err
    assert main([*repeat, "--inpaint-image", str(picture)]) == 0
    assert main([*repeat, "--inpaint-image", str(picture), "--inpaint-strength", "0.5"]) == 0


def white_of_disc():
    mask = Image.new("1", (64, 64))
    ImageDraw.Draw(mask).ellipse((16, 16, 47, 47), fill=1)
    return np.asarray(mask)


@pytest.fixture
def fox(tmp_path):
    """A fox beside a house."""
    scene = Scene("", (Placed("fox", 6, 22, 26), Placed("house", 36, 20, 26)), "blue")
    to_pictures(Stickers(names=("fox", "house")).render([scene]).images)[0].save(tmp_path / "fox.png")
    return tmp_path / "fox.png"


def test_a_thing_is_found_by_its_name_and_replaced_and_the_rest_stays(fox, tmp_path, capsys):
    asked = ["replace", str(fox), "the fox", "a cat on a blue background", "--steps", "2", "--output", str(tmp_path)]
    assert main(asked) == 0
    made = read_made(tmp_path / "0.png").request
    assert made.prompt == "a cat on a blue background" and made.inpaint.only_masked and made.inpaint.box[2] < 0.55
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (fox, tmp_path / "0.png"))
    changed = (before != after).any(-1)
    assert changed[22:48, 6:32].mean() > 0.5 and not changed[:, 35:].any()


@pytest.mark.parametrize(
    ("thing", "said"),
    [("my aunt", "no sticker.*--finder FOLDER.*--inpaint-click"), ("a crab", "no crab in the picture; found: .*house")],
)
def test_what_is_not_there_cannot_be_replaced(fox, capsys, thing, said):
    assert main(["replace", str(fox), thing, "a cat"]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_masks_by_name_and_of_all_things(fox, tmp_path, capsys):
    named, every = tmp_path / "named.png", tmp_path / "all.png"
    assert main(["mask", str(fox), "--name", "the house", "--output", str(named)]) == 0
    mask = white(named)
    assert mask[20:46, 36:62].mean() > 0.4 and not mask[:, :32].any()
    capsys.readouterr()
    assert main(["mask", str(fox), "--all", "--output", str(every)]) == 0
    written = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert written[:2] == [str(every), str(tmp_path / "all-2.png")]
    sides = {bool(white(path)[:, :32].sum() > white(path)[:, 32:].sum()) for path in written[:2]}
    assert sides == {True, False}


def test_a_model_finds_a_name_and_another_its_outline(fox, tmp_path, monkeypatch):
    """Weights at random: that the folders are read, and what they say becomes the mask of the picture's size."""
    monkeypatch.setattr(names, "KINDS", {"sam3": lambda folder: names._sam3(folder, -1.0)})
    finder, sam = folder_of("sam3", tmp_path / "sam3"), folder_of("sam2", tmp_path / "sam2")
    asked = ["mask", str(fox), "--name", "a fox", "--finder", str(finder), "--output", str(tmp_path / "m.png")]
    assert main(asked) == main([*asked[:-1], str(tmp_path / "n.png"), "--sam", str(sam)]) == 0
    assert [Image.open(tmp_path / name).size for name in ("m.png", "n.png")] == [(64, 64)] * 2
    replaced = [
        "replace",
        str(fox),
        "red cup",
        "a cat",
        "--finder",
        str(finder),
        "--steps",
        "1",
        "--output",
        str(tmp_path),
    ]
    assert main(replaced) == 0
    inpaint = read_made(tmp_path / "0.png").request.inpaint
    assert inpaint.name == "" and inpaint.box == names.name_finder(finder)(Image.open(fox), "red cup")[0].box


def test_a_name_that_nobody_looked_for_is_no_mask(fox):
    request = Request(prompt="a cat", inpaint=Inpaint(image=str(fox), name="fox"))
    assert not request.inpaint.whole
    with pytest.raises(RequestError, match=r"Nobody has looked for 'fox' in fox\.png"):
        Inpainting.asked(request.inpaint)
    with pytest.raises(ValidationError, match="name 'fox' and a mask, click or box"):
        Inpaint(image=str(fox), name="fox", click=(0.5, 0.5))
