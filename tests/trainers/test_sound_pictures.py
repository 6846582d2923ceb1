"""One bad picture stops nothing: folders that are only looked at leave it out and say so."""

from __future__ import annotations

import pytest
from PIL import Image

from pipelines.errors import DataError
from pipelines.events import Note
from studio.commands.incontext_examples import nearest_pairs
from tests import tiny
from trainers.data.class_images import class_examples
from trainers.data.sound_pictures import sound_examples
from trainers.loop.launch import readings
from trainers.methods import methods
from trainers.methods.dreambooth import DreamBoothConfig
from trainers.run import run_of


def picture(path, colour="red", size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for number, colour in enumerate(("red", "blue")):
        picture(tmp_path / f"{number}.png", colour)
    (tmp_path / "bad.jpg").write_text("no picture")
    return tmp_path


def noted(events):
    return [event.text for event in events if isinstance(event, Note)]


def test_a_bad_picture_is_noted_and_left_out(folder):
    events = []
    assert [one.name for one in sound_examples(folder, events.append)] == ["0.png", "1.png"]
    (said,) = noted(events)
    assert said.startswith("bad.jpg is left out: bad.jpg is no picture")
    for number in range(2):
        (folder / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"1 picture cannot be learned from. bad\.jpg"):
        sound_examples(folder, events.append)


def test_class_pictures_of_ones_own_may_hold_a_bad_one(folder):
    events = []
    config = DreamBoothConfig(token="zwx", class_word="fox", prior="pictures", class_images=folder)
    found = class_examples(tiny.sd(), config, ["a photo of a {}"], on_event=events.append)
    assert [one.name for one in found] == ["0.png", "1.png"] and "bad.jpg is left out" in noted(events)[0]


def test_example_pairs_that_cannot_be_read_are_left_out(tmp_path, capsys):
    for side in ("before", "after"):
        for name, colour in (("a", "red"), ("b", "blue")):
            picture(tmp_path / side / f"{name}.png", colour, (64, 64))
    (tmp_path / "after" / "b.png").write_text("no picture")
    picture(tmp_path / "query.png", "blue", (64, 64))
    ((before, after),) = nearest_pairs(tmp_path, tmp_path / "query.png", 1, None)
    assert (before, after) == (str(tmp_path / "before" / "a.png"), str(tmp_path / "after" / "a.png"))
    assert "The pair b is left out: b.png is no picture" in capsys.readouterr().err
    (tmp_path / "before" / "a.png").write_text("x")
    with pytest.raises(DataError, match=r"No pair in .* can be read"):
        nearest_pairs(tmp_path, tmp_path / "query.png", 1, None)


def test_pairs_to_learn_from_that_cannot_be_read_are_named_and_left_out_if_wished(tmp_path):
    for name in "abc":
        for side in ("before", "after"):
            picture(tmp_path / side / f"{name}.png", "red", (64, 64))
    (tmp_path / "after" / "b.png").write_text("no picture")
    (tmp_path / "after" / "c.png").unlink()
    run = run_of(methods()["task-word"], {"images": tmp_path, "token": "<t>"})
    with pytest.raises(DataError, match=r"2 pictures cannot be learned from. b: b.png is no picture.* c: it has a pic"):
        readings(run).sound(run.data.skip_doubtful)
    assert [one.name for one in readings(run).sound(True).examples] == ["a"]
