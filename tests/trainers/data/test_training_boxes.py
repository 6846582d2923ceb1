"""Boxes of training pictures as annotators leave them, and the same files where a request reads them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from pipelines import Request
from pipelines.errors import DataError, RequestError
from pipelines.request.box_files import LIMIT, read_boxes
from trainers.base_models.gligen_data import read_boxed
from trainers.data import training_boxes

SIZE = {"width": 64, "height": 64}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "0.png")
    return tmp_path


def coco(folder, *boxes, names=("0.png",), category=1, start="", **image):
    images = [{"id": number, "file_name": name} | SIZE | image for number, name in enumerate(names, 1)]
    told = [{"id": n, "image_id": 1, "category_id": category, "bbox": box} for n, box in enumerate(boxes, 1)]
    content = {"images": images, "categories": [{"id": 1, "name": "wolf 🐺"}], "annotations": told}
    (folder / "annotations.json").write_text(start + json.dumps(content), encoding="utf-8")


def lines(folder, *boxes, name="0.bbox"):
    told = [json.dumps({"label": "wolf", "bbox": box}) for box in boxes]
    (folder / name).write_text("\n".join(told), encoding="utf-8")


def read(folder):
    """Boxes of each picture, and what was noted."""
    reading = read_boxed(folder)
    return [[box.box for box in one.boxes] for one in reading.examples], list(reading.notes)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([10, 10, 54.1, 30], (10 / 64, 10 / 64, 1, 40 / 64)),
        ([10, 10, 54.5, 30], (10 / 64, 10 / 64, 1, 40 / 64)),
        ([-0.4, -3, 20, 20], (0, 0, 19.6 / 64, 17 / 64)),
        ([-100, 0, 1000, 8], (0, 0, 1, 8 / 64)),
    ],
)
def test_a_box_over_the_edge_is_clipped_and_counted(folder, box, expected):
    coco(folder, [0, 0, 64, 64], box)
    boxes, notes = read(folder)
    assert boxes[0][1] == pytest.approx(expected)
    assert notes == ["Boxes that reach over the edge of their picture, clipped: 1."]


def test_errors_of_rounding_are_neither_clipped_nor_told(folder):
    lines(folder, [0.1, 0.1, 1.0000001, 0.5], [-1e-7, 0.5, 0.5, 0.9])
    assert read(folder) == ([[(0.1, 0.1, 1, 0.5), (0, 0.5, 0.5, 0.9)]], [])


@pytest.mark.parametrize("box", [[20, 20, 0, 5], [20, 20, 5, 0], [64, 10, 10, 10], [100, 100, 5, 5]])
def test_boxes_without_area_are_left_out_and_counted(folder, box):
    coco(folder, [10, 10, 30, 30], box)
    boxes, notes = read(folder)
    assert len(boxes[0]) == 1 and notes == ["Boxes without area, left out: 1."]


@pytest.mark.parametrize("beside", [False, True])
def test_of_more_than_thirty_boxes_the_largest_are_told(folder, beside):
    wide = [[0, 0, (i + 1) / 64, 1] for i in range(33)]
    if beside:
        lines(folder, *wide)
    else:
        coco(folder, *([0, 0, i + 1, 64] for i in range(33)))
    boxes, notes = read(folder)
    assert [box[2] * 64 for box in boxes[0]] == [33 - i for i in range(30)]
    assert notes == ["Pictures with more than 30 boxes, of which the largest are used: 1."]


def test_pictures_that_are_not_listed_have_none(folder):
    Image.new("RGB", (64, 64), "blue").save(folder / "1.png")
    coco(folder, [10, 10, 30, 30])
    boxes, notes = read(folder)
    assert boxes[1] == [] and notes == ["Pictures that annotations.json does not list, shown without boxes: 1."]
    coco(folder, [10, 10, 30, 30], names=("0.png", "1.png"))
    assert read(folder) == ([[(10 / 64, 10 / 64, 40 / 64, 40 / 64)], []], [])


@pytest.mark.parametrize("name", ["images/0.png", "0.png", "./0.png"])
def test_pictures_are_found_by_their_names_in_other_folders(folder, name):
    coco(folder, [10, 10, 30, 30], names=(name,), start="\ufeff")
    assert len(read(folder)[0][0]) == 1
    assert read_boxes(folder / "annotations.json", "0.png")[0].phrase == "wolf 🐺"


def test_names_in_several_folders_are_told_apart(folder):
    (folder / "1_a").mkdir()
    Image.new("RGB", (64, 64), "blue").save(folder / "1_a" / "0.png")
    (folder / "0.png").unlink()
    coco(folder, [10, 10, 30, 30], names=("1_a/0.png", "b/0.png"))
    assert len(read(folder)[0][0]) == 1
    coco(folder, [10, 10, 30, 30], names=("c/0.png", "b/0.png"))
    with pytest.raises(DataError, match=r"No picture in .* has a box"):
        read(folder)


def test_numbers_in_quotes_and_other_sizes_are_read(folder):
    coco(folder, ["100", "100", "300", "300"], width=640, height=640)
    assert read(folder)[0][0] == [(100 / 640, 100 / 640, 400 / 640, 400 / 640)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"label": "wolf", "bbox": [0.1, 0.1, 0.5, 0.5]}]', None),
        ('{"label": "wolf", "bbox": [0.1, 0.1, 0.5, 0.5]}\r\n\r\n', None),
        ('\ufeff{"label": "wolf", "bbox": [0.1, 0.1, 0.5, 0.5]}', None),
        ('{"label": "wolf\u2028x", "bbox": [0.1, 0.1, 0.5, 0.5]}', None),
        ('{"label": "wolf", "bbox": [6, 6, 32, 32]}', r"0\.bbox, box 1: the box of 'wolf'.*looks like pixels"),
        ('{"label": "", "bbox": [0, 0, 1, 1]}', r"0\.bbox, box 1: phrase"),
        ('{"label": "a", "bbox": [0, 0, 1, 1]}\n{"label": "b", "bbox": [0.9, 0, 0.1, 1]}', r"box 2: the box of 'b'"),
        ('{"label": "a", "bbox": [0, 0, 1]}', r"box 1: box"),
        ('{"label": "a", "bbox": [0, 0, NaN, 1]}', r"not finite"),
        ('{"label": "a"}', r"has no 'bbox'"),
    ],
)
def test_lines_are_read_as_they_are_written_or_refused_by_their_number(folder, content, said):
    (folder / "0.bbox").write_text(content, encoding="utf-8")
    if said is None:
        assert read(folder) == ([[(0.1, 0.1, 0.5, 0.5)]], [])
    else:
        with pytest.raises(RequestError, match=said):
            read(folder)


def test_what_is_wrong_with_a_list_is_said(folder):
    coco(folder, [10, 10, 30, 30], category=7)
    with pytest.raises(RequestError, match="annotation 1 is of category 7, which is not listed"):
        read(folder)
    coco(folder, [10, 10, -5, 30])
    with pytest.raises(RequestError, match="right edge left of its left"):
        read(folder)


def test_a_large_list_is_read_once_for_all_pictures(folder, monkeypatch):
    for number in range(1, 5):
        Image.new("RGB", (8, 8), (number * 50, 0, 0)).save(folder / f"{number}.png")
    coco(folder, *[[10, 10, 30, 30]] * 3)
    with (folder / "annotations.json").open("a") as file:
        file.write(" " * LIMIT)
    with pytest.raises(RequestError, match="more than 16 MiB"):
        read_boxes(folder / "annotations.json", "0.png")
    opened = []
    once = training_boxes.coco_rows
    monkeypatch.setattr(training_boxes, "coco_rows", lambda *asked: opened.append(asked) or once(*asked))
    assert len(read(folder)[0]) == 5 and len(opened) == 1


def test_requests_take_edges_a_rounding_error_outside():
    request = Request.model_validate({"prompt": "", "boxes": [{"phrase": "fox", "box": [-1e-6, 0, 1.000001, 1]}]})
    assert request.boxes[0].box == (0, 0, 1, 1)
    with pytest.raises(RequestError, match="outside the picture"):
        Request.read({"prompt": "", "boxes": [{"phrase": "fox", "box": [0, 0, 1.00001, 1]}]})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.2 0.2 0.87", (0.4, 0.4, 0.6, 0.6)),
        ("0.0 0.5 0.5 0.2 0.2", (0.4, 0.4, 0.6, 0.6)),
        ("\ufeff0 0.5 0.5 0.2 0.2\r", (0.4, 0.4, 0.6, 0.6)),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5", (0.1, 0.1, 0.5, 0.5)),
        ("0 0.9 0.2 0.3 0.8 0.5 0.1 0.7 0.6", (0.3, 0.1, 0.9, 0.8)),
        ("0 0.9001 0.5 0.2 0.2", (0.8001, 0.4, 1, 0.6)),
        ("0 0.5 0.5 0.2", "line 1 has 4 numbers"),
        ("0.5 0.5 0.5 0.2 0.2", "Class 0.5 is none"),
        ("0 0.95 0.5 0.2 0.2", "outside the picture"),
    ],
)
def test_yolo_with_confidences_and_polygons(tmp_path, line, expected):
    (tmp_path / "classes.txt").write_text("\ufeffwolf\nhouse\n", encoding="utf-8")
    (tmp_path / "0.txt").write_text(line, encoding="utf-8")
    if isinstance(expected, str):
        with pytest.raises(RequestError, match=expected):
            read_boxes(tmp_path / "0.txt")
    else:
        (box,) = read_boxes(tmp_path / "0.txt")
        assert box.phrase == "wolf" and box.box == pytest.approx(expected)
