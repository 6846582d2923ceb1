from __future__ import annotations

import io

from PIL import Image

from pipelines.events import Note, Preview, StepDone
from studio.work.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_one_line_is_drawn_over_and_over():
    stream = Terminal()
    show = Progress("work", stream)
    for step in range(1, 5):
        show(StepDone(step, 4, {"loss": 0.5}, step * 1.0))
    text = stream.getvalue()
    assert text.count("\r") == 4 and text.endswith("\n") and text.count("\n") == 1
    assert "2/4  2 s left  loss 0.5000" in text


def test_elsewhere_every_tenth_part_is_a_line():
    stream = io.StringIO()
    show = Progress("work", stream)
    for step in range(1, 101):
        show(StepDone(step, 100, {}, 1.0))
    assert 10 <= len(stream.getvalue().splitlines()) <= 12
    assert "100/100" in stream.getvalue().splitlines()[-1]


def test_notes_are_said_and_previews_written(tmp_path):
    stream = io.StringIO()
    show = Progress("work", stream, previews=tmp_path / "c.safetensors")
    show(Note("hello"))
    show(Preview(30, Image.new("RGB", (3, 3), "red"), "a fox"))
    assert "work: hello" in stream.getvalue()
    assert Image.open(tmp_path / "c-30.png").getpixel((1, 1)) == (255, 0, 0)


def test_without_a_place_previews_are_dropped(tmp_path):
    Progress("work", io.StringIO())(Preview(1, Image.new("RGB", (3, 3))))
    assert not list(tmp_path.iterdir())
