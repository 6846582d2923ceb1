"""Boxes in files of other programs, there and back."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from pipelines.errors import RequestError
from pipelines.request.box_files import FORMS, draw_boxes, from_pixels, read_boxes, to_pixels, write_boxes
from pipelines.request.request import Box

SIZE = (640, 480)
BOXES = (
    Box(phrase="fox", box=(0.125, 0.25, 0.5, 0.75)),
    Box(phrase='a "red" house, füchsisch', box=(0.0, 0.0, 1.0, 1.0)),
    Box(phrase="fox", box=(0.333333, 0.111111, 0.999999, 0.777777)),
)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_again(tmp_path, form):
    suffix = {"bbox": "bbox", "yolo": "txt"}.get(form, "json")
    path = write_boxes(BOXES, tmp_path / f"boxes.{suffix}", form, SIZE)
    again = read_boxes(path)
    assert [box.phrase for box in again] == [box.phrase for box in BOXES]
    near = {"bbox": 0, "coco": 1e-5, "yolo": 2e-6, "pixels": 0.5 / 480}[form]
    for one, other in zip(again, BOXES, strict=True):
        assert one.box == pytest.approx(other.box, abs=near + 1e-12)


def test_the_forms_are_those_of_the_other_programs(tmp_path):
    coco = json.loads(write_boxes(BOXES[:1], tmp_path / "fox.json", "coco", SIZE).read_text())
    assert coco["annotations"][0]["bbox"] == [80, 120, 240, 240] and coco["annotations"][0]["area"] == 57600
    assert coco["images"][0] == {"id": 1, "file_name": "fox.png", "width": 640, "height": 480}
    assert coco["categories"] == [{"id": 1, "name": "fox"}]
    yolo = write_boxes(BOXES[:1], tmp_path / "fox.txt", "yolo", SIZE).read_text()
    assert yolo == "0 0.312500 0.500000 0.375000 0.500000\n"
    assert (tmp_path / "classes.txt").read_text() == "fox\n"
    line = json.loads(write_boxes(BOXES[:1], tmp_path / "fox.bbox", "bbox", SIZE).read_text())
    assert line == {"label": "fox", "bbox": [0.125, 0.25, 0.5, 0.75]}


def test_yolo_classes_of_a_folder_are_added_to(tmp_path):
    write_boxes([Box(phrase="cat", box=BOXES[0].box)], tmp_path / "1.txt", "yolo", SIZE)
    write_boxes(BOXES[:1], tmp_path / "2.txt", "yolo", SIZE)
    assert (tmp_path / "classes.txt").read_text() == "cat\nfox\n"
    assert [read_boxes(tmp_path / f"{n}.txt")[0].phrase for n in (1, 2)] == ["cat", "fox"]


def test_one_picture_of_a_coco_file_is_chosen_by_name(tmp_path):
    path = tmp_path / "all.json"
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 100, "height": 50} for k in (1, 2)],
        "categories": [{"id": 7, "name": "fox"}, {"id": 9, "name": "crowd"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [0, 0, 50, 25]},
            {"image_id": 2, "category_id": 7, "bbox": [50, 25, 50, 25]},
            {"image_id": 2, "category_id": 9, "bbox": [0, 0, 1, 1], "iscrowd": 1},
        ],
    }
    path.write_text(json.dumps(content))
    assert read_boxes(path, "2.png") == (Box(phrase="fox", box=(0.5, 0.5, 1.0, 1.0)),)
    for picture in (None, "3.png"):
        with pytest.raises(RequestError, match=r"2 pictures \(1\.png, 2\.png\)"):
            read_boxes(path, picture)


def test_pixels_and_fractions():
    assert to_pixels((0.25, 0.5, 1, 1), (64, 32)) == (16, 16, 64, 32)
    assert from_pixels((16, 16, 64, 32), (64, 32)) == (0.25, 0.5, 1, 1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "cannot be read as boxes"),
        ("a.json", "[]", "it is no JSON object with annotations"),
        ("a.json", "null", "it is no JSON object"),
        ("a.json", '{"annotations": [], "images": 5}', "of another kind than it should be"),
        ("a.bbox", '{"label": "fox", "bbox": 5}', "of another kind than it should be"),
        ("a.bbox", '["fox"]', "of another kind than it should be"),
        ("a.json", '{"annotations": []}', "cannot be read as boxes"),
        ("a.json", '{"width": 0, "height": 1, "boxes": [{"label": "x", "box": [0, 0, 1, 1]}]}', "a height of 0"),
        ("a.json", '{"width": 9, "height": 9, "boxes": [{"label": "x", "box": [0, 0, 99, 1]}]}', r"box 1.*pixels"),
        ("a.bbox", '{"label": "fox", "bbox": [0.5, 0, 0.1, 1]}', r"a\.bbox: box 1: .*'fox'"),
        ("a.bbox", '{"label": "fox", "bbox": [0, 0, NaN, 1]}', "not finite"),
        ("a.bbox", "\n".join(['{"label": "fox", "bbox": [0, 0, 1, 1]}'] * 31), "box 31"),
        ("a.bbox", '{"label": 5, "bbox": [0, 0, 1, 1]}', r"box 1\.phrase"),
        ("a.txt", "0 0.5 0.5 1 1", "no .*classes.txt"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.bbox", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_cannot_be_are_one_error(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=said):
        read_boxes(path)


def test_classes_that_are_missing_and_files_that_are_gone(tmp_path):
    (tmp_path / "classes.txt").write_text("fox\n")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 1 1")
    with pytest.raises(RequestError, match="Class 1 is none of the 1"):
        read_boxes(tmp_path / "a.txt")
    with pytest.raises(RequestError, match="cannot be read"):
        read_boxes(tmp_path / "gone.json")


def test_boxes_are_drawn_where_they_are_and_the_picture_stays():
    picture = Image.new("RGB", (64, 64), "white")
    over = draw_boxes(picture, [Box(phrase="fox", box=(0.25, 0.25, 0.75, 0.75))])
    assert over.size == (384, 384) and picture.getcolors() == [(4096, (255, 255, 255))]
    coloured = {(x, y) for x in range(384) for y in range(384) if over.getpixel((x, y)) != (255, 255, 255)}
    assert min(x for x, _ in coloured) == min(y for _, y in coloured) == 96
    assert max(x for x, _ in coloured) == max(y for _, y in coloured) == 287
    assert (192, 192) not in coloured, "the thing itself is not covered"
    assert draw_boxes(Image.new("RGB", (600, 400)), ()).size == (600, 400)
