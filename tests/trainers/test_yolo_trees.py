"""Data sets of YOLO: the tree of images/ and labels/, classes named in YAML, and labels that are no captions."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from pipelines.errors import DataError, RequestError
from pipelines.request.box_files import read_boxes
from pipelines.request.yolo import class_names
from studio.cli import main
from tests import tiny
from trainers.base_models.gligen_data import read_boxed
from trainers.data.folders import read_folder

LINE = "1 0.5 0.5 0.2 0.4\n"


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def read(folder, skip=None):
    """Name, phrases and first box of each picture, and what was noted."""
    reading = read_boxed(folder).sound(skip)
    found = [
        (one.name, [box.phrase for box in one.boxes], one.boxes[0].box if one.boxes else None)
        for one in reading.examples
    ]
    return found, list(reading.notes)


BOX = pytest.approx((0.4, 0.3, 0.6, 0.7))


@pytest.mark.parametrize(
    ("pictures", "labels", "given"),
    [
        ("images", "labels", "."),
        ("images/train", "labels/train", "."),
        ("train/images", "train/labels", "."),
        ("images", "labels", "images"),
        ("images/val", "labels/val", "images/val"),
        ("images/images", "images/labels", "images/images"),
    ],
)
def test_the_usual_trees_are_read(tmp_path, pictures, labels, given):
    write(tmp_path / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [wolf, house]\n")
    picture(tmp_path / pictures / "a.png")
    picture(tmp_path / pictures / "b.jpg", "blue")
    write(tmp_path / labels / "a.txt", LINE)
    found, notes = read(tmp_path / given)
    assert found == [("a.png", ["house"], BOX), ("b.jpg", [], None)]
    assert notes == ["Pictures without a label file, shown without boxes: 1."]


def test_of_a_split_tree_the_pictures_to_train_on_are_read(tmp_path):
    write(tmp_path / "data.yaml", "names: [wolf, house]")
    for split in ("train", "val"):
        picture(tmp_path / f"images/{split}/{split}.png")
        write(tmp_path / f"labels/{split}/{split}.txt", LINE)
    assert [name for name, _, _ in read(tmp_path)[0]] == ["train.png"]


def test_pictures_in_folders_have_the_labels_of_their_folder(tmp_path):
    write(tmp_path / "data.yaml", "names: [wolf, house]")
    for name, colour in (("a/0", "red"), ("b/0", "blue")):
        picture(tmp_path / f"images/{name}.png", colour)
    write(tmp_path / "labels/a/0.txt", LINE)
    write(tmp_path / "labels/b/0.txt", "")
    assert read(tmp_path) == ([("a/0.png", ["house"], BOX), ("b/0.png", [], None)], [])


@pytest.mark.parametrize(
    "names",
    [
        "names: [wolf, house]",
        "names:\n  0: wolf\n  1: house",
        "names:\n- wolf\n- house\n",
        "\ufeffnames: {1: house, 0: wolf}",
        "names: ['wolf', \"house\"]  # all of them",
    ],
)
def test_classes_are_named_in_yaml_in_any_of_its_ways(tmp_path, names):
    write(tmp_path / "data.yaml", names)
    write(tmp_path / "labels/train/a.txt", LINE)
    assert class_names(tmp_path / "labels/train/a.txt") == (["wolf", "house"], tmp_path / "data.yaml")
    assert read_boxes(tmp_path / "labels/train/a.txt")[0].phrase == "house"


def test_names_that_yaml_takes_for_other_things_stay_names(tmp_path):
    write(tmp_path / "data.yaml", "names: [no, 7, null, on]")
    assert class_names(tmp_path / "a.txt")[0] == ["no", "7", "null", "on"]


def test_the_nearest_list_of_classes_counts(tmp_path):
    write(tmp_path / "data.yaml", "names: [far, far]")
    write(tmp_path / "labels/classes.txt", "\ufeffwolf\r\nhouse\r\n")
    assert class_names(tmp_path / "labels/a.txt")[0] == ["wolf", "house"]
    write(tmp_path / "labels/coco128.yaml", "names: [near]")
    write(tmp_path / "labels/data.yaml", "nc: 2")
    assert class_names(tmp_path / "labels/a.txt")[0] == ["wolf", "house"], "classes.txt before YAML"
    (tmp_path / "labels/classes.txt").unlink()
    assert class_names(tmp_path / "labels/a.txt")[0] == ["near"], "whatever the file of names is called"


@pytest.mark.parametrize(
    ("yaml", "label", "said"),
    [
        ("names: wolf", LINE, "no list"),
        ("names: {a: wolf}", LINE, "no list"),
        ("names: [[wolf]]", LINE, "no list"),
        ("names: [wolf", LINE, "no YAML"),
        ("names: !!python/object/apply:os.system [id]", LINE, "no list|Class 1 is none"),
        ("names: {0: wolf, 99999999999: x}", LINE, "no list"),
        ("names: [wolf]", LINE, "Class 1 is none of the 1 of"),
        ("names: {0: wolf, 2: house}", LINE, "Class 1 is none of the 3"),
        ("nc: 2", LINE, "no classes.txt or data.yaml"),
        ("names: [wolf, house]", "1 0.5 0.5", "3 numbers"),
        ("names: [wolf, house]", "1 50 50 20 40", "looks like pixels"),
    ],
)
def test_what_is_wrong_with_a_tree_is_said(tmp_path, yaml, label, said):
    write(tmp_path / "data.yaml", yaml)
    picture(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", label)
    with pytest.raises(RequestError, match=said):
        read(tmp_path)


def test_boxes_of_a_tree_are_clipped_counted_and_the_largest_taken(tmp_path):
    write(tmp_path / "data.yaml", "names: [wolf]")
    picture(tmp_path / "images/a.png")
    lines = ["0 0.95 0.5 0.2 0.2", "0 0.5 0.5 0 0.2", *(f"0 0.5 0.5 0.{i + 10} 0.1" for i in range(31))]
    write(tmp_path / "labels/a.txt", "\n".join(lines))
    ((_, phrases, _),), notes = read(tmp_path)
    assert len(phrases) == 30
    assert notes == [
        "Boxes that reach over the edge of their picture, clipped: 1.",
        "Boxes without area, left out: 1.",
        "Pictures with more than 30 boxes, of which the largest are used: 1.",
    ]


def test_labels_beside_pictures_are_boxes_and_never_captions(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    write(tmp_path / "a.txt", LINE)
    write(tmp_path / "b.txt", "4 wolves at sea")
    write(tmp_path / "classes.txt", "wolf\nhouse\n")
    reading = read_folder(tmp_path)
    assert [one.captions for one in reading.examples] == [(), ("4 wolves at sea",), ()]
    assert set(reading.ignored) == {"a.txt", "classes.txt"}
    assert all("boxes of YOLO" in why for why in reading.ignored.values())
    assert read(tmp_path) == ([("a.png", ["house"], BOX), ("b.png", [], None), ("c.png", [], None)], [])


def test_a_tree_without_boxes_is_refused_with_what_is_read(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=r"has a box.*data\.yaml"):
        read(tmp_path)


def test_a_picture_without_things_needs_no_names(tmp_path):
    picture(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", "\n")
    with pytest.raises(DataError, match="has a box"):
        read(tmp_path)


def test_layers_are_trained_on_a_tree_from_the_command_line(tmp_path, capsys):
    base, out = tmp_path / "base", tmp_path / "layers.safetensors"
    tiny.sd_pipeline().save_pretrained(base)
    write(tmp_path / "set/data.yaml", "names: [wolf, house]")
    for number, colour in enumerate(("red", "blue")):
        picture(tmp_path / f"set/images/train/{number}.png", colour)
        write(tmp_path / f"set/labels/train/{number}.txt", LINE)
    words = ["train", "grounding", "--images", str(tmp_path / "set"), "--base", str(base), "--output", str(out)]
    assert main([*words, "--steps", "1", "--batch", "2"]) == 0
    assert out.is_file() and "2 boxes in all" in capsys.readouterr().err
    shutil.rmtree(base)
