"""Boxes in files: COCO, YOLO, pixels, and `.bbox` lines of fractions. Importable without torch.

Only `.bbox` says all that a `Box` says, for a picture of any size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from pipelines.errors import RequestError
from pipelines.files import whole_file
from pipelines.request import Box, Edges, Request, problems

Form = Literal["bbox", "coco", "yolo", "pixels"]
FORMS: tuple[Form, ...] = get_args(Form)
LIMIT = 1 << 24  # bytes of a file that are read
_INKS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def to_pixels(box: Edges, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Fractions to whole pixels (left, top, right, bottom) of a picture of `size` (width, height)."""
    (left, top, right, bottom), (width, height) = box, size
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def from_pixels(box: Edges, size: tuple[int, int]) -> Edges:
    """Pixels (left, top, right, bottom) to fractions."""
    (left, top, right, bottom), (width, height) = box, size
    return left / width, top / height, right / width, bottom / height


def checked(found: Iterable[tuple[str, Sequence[float]]], source: str) -> tuple[Box, ...]:
    """Phrases and fractions from anywhere as boxes.

    Raises:
        RequestError: naming the source, and the box by its number and phrase.
    """
    boxes = [{"phrase": phrase, "box": list(edges)} for phrase, edges in found]
    try:
        return Request.model_validate({"prompt": "", "boxes": boxes}).boxes
    except ValidationError as error:
        raise RequestError(f"In {source}: {problems(error)}", "Correct it there.") from None


def write_boxes(boxes: Sequence[Box], path: Path, form: Form, size: tuple[int, int]) -> Path:
    """Write boxes of one picture.

    Args:
        boxes: the boxes.
        path: the file; for YOLO `classes.txt` beside it names the numbers, and is added to if it is there.
        form: `bbox`: a JSON line each with label and fractions; `coco`: one picture of a COCO file; `yolo`: number of
            the class, centre and size in fractions; `pixels`: JSON of left, top, right, bottom.
        size: width and height of the picture in pixels.
    """
    names = list(dict.fromkeys(box.phrase for box in boxes))
    if form == "bbox":
        text = "".join(json.dumps({"label": box.phrase, "bbox": box.box}, ensure_ascii=False) + "\n" for box in boxes)
    elif form == "pixels":
        listed = [{"label": box.phrase, "box": to_pixels(box.box, size)} for box in boxes]
        text = json.dumps({"width": size[0], "height": size[1], "boxes": listed}, ensure_ascii=False, indent=1)
    elif form == "coco":
        text = json.dumps(_coco(boxes, names, path, size), ensure_ascii=False, indent=1)
    else:
        beside = path.parent / "classes.txt"
        known = beside.read_text(encoding="utf-8").split("\n") if beside.exists() else []
        names = [*(name for name in known if name), *(name for name in names if name not in known)]
        text = "".join(f"{names.index(box.phrase)} {_centred(box.box)}\n" for box in boxes)
        _write(beside, "\n".join(names) + "\n")
    return _write(path, text)


def _coco(boxes: Sequence[Box], names: list[str], path: Path, size: tuple[int, int]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, box in enumerate(boxes, 1):
        left, top, right, bottom = (edge * size[k % 2] for k, edge in enumerate(box.box))
        corner = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        annotations.append(
            {"id": number, "image_id": 1, "category_id": names.index(box.phrase) + 1, "bbox": corner, "iscrowd": 0}
            | {"area": round(corner[2] * corner[3], 3)}
        )
    image = {"id": 1, "file_name": f"{path.stem}.png", "width": size[0], "height": size[1]}
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": [image], "categories": categories, "annotations": annotations}


def _centred(box: Edges) -> str:
    left, top, right, bottom = box
    return " ".join(f"{value:.6f}" for value in ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))


def _write(path: Path, text: str) -> Path:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def read_boxes(path: Path, picture: str | None = None) -> tuple[Box, ...]:
    """Read boxes of one picture in any of the forms, which its name and content tell apart.

    Args:
        path: `.bbox`, `.txt` (YOLO, with `classes.txt` beside it) or `.json` (COCO or pixels).
        picture: of a COCO file with several pictures, the `file_name` of the one meant.

    Raises:
        RequestError: if it cannot be read, or a box of it cannot be.
    """
    try:
        if path.stat().st_size > LIMIT:
            raise RequestError(f"{path.name} has more than {LIMIT >> 20} MiB.", "Give the boxes of one picture.")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".bbox":
            found = [(line["label"], line["bbox"]) for line in map(json.loads, filter(None, text.splitlines()))]
        elif path.suffix == ".txt":
            found = _from_yolo(text, path.parent / "classes.txt")
        else:
            content = json.loads(text)
            found = _from_coco(content, path, picture) if "annotations" in content else _from_listed(content)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            f"{path} cannot be read as boxes: {said:.120}.",
            "Give a .bbox, a COCO or pixels .json, or a YOLO .txt with its classes.txt.",
        ) from None
    return checked(found, path.name)


def _from_yolo(text: str, classes: Path) -> list[tuple[str, list[float]]]:
    if not classes.exists():
        raise RequestError(f"There is no {classes}, which says what the numbers mean.", "Put it there, a name a line.")
    names = classes.read_text(encoding="utf-8").splitlines()
    found: list[tuple[str, list[float]]] = []
    for line in filter(str.strip, text.splitlines()):
        number, x, y, width, height = line.split()
        if not 0 <= int(number) < len(names):
            raise RequestError(f"Class {number} is none of the {len(names)} of {classes}.", "Complete that file.")
        x, y, width, height = (float(value) for value in (x, y, width, height))
        edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        # Written with six digits, a box at the edge may reach a millionth beyond.
        found.append((names[int(number)], [_snapped(edge) for edge in edges]))
    return found


def _from_coco(content: dict[str, Any], path: Path, picture: str | None) -> list[tuple[str, list[float]]]:
    images = [image for image in content["images"] if picture in (None, image["file_name"])]
    if len(images) != 1:
        listed = ", ".join(str(image["file_name"]) for image in content["images"][:5])
        raise RequestError(
            f"{path.name} tells of {len(content['images'])} pictures ({listed:.80}).",
            "Name one: FILE.json:PICTURE.png.",
        )
    (image,) = images
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: list[tuple[str, list[float]]] = []
    for annotation in content["annotations"]:
        if annotation["image_id"] == image["id"] and not annotation.get("iscrowd"):
            left, top, width, height = annotation["bbox"]
            edges = from_pixels((left, top, left + width, top + height), (image["width"], image["height"]))
            found.append((names[annotation["category_id"]], [_snapped(edge) for edge in edges]))
    return found


def _from_listed(content: dict[str, Any]) -> list[tuple[str, list[float]]]:
    size = (content["width"], content["height"])
    return [(one["label"], list(from_pixels(tuple(one["box"]), size))) for one in content["boxes"]]


def _snapped(edge: float) -> float:
    """An edge a rounding error outside the picture, put on its border."""
    return min(max(edge, 0.0), 1.0) if -1e-4 < edge < 1 + 1e-4 else edge


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of a picture with boxes and phrases drawn over it; small pictures are enlarged in whole steps first."""
    times = max(1, -(-384 // max(picture.size)))
    canvas = picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    line = max(2, max(canvas.size) // 200)
    for number, box in enumerate(boxes):
        ink = _INKS[number % len(_INKS)]
        left, top, right, bottom = to_pixels(box.box, canvas.size)
        pen.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=ink, width=line)
        words = pen.textbbox((left + line + 1, top + line), box.phrase, font)
        pen.rectangle((words[0] - 2, words[1] - 1, words[2] + 2, words[3] + 2), fill=ink)
        pen.text((left + line + 1, top + line), box.phrase, "white", font)
    return canvas
