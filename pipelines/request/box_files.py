"""Boxes in files: COCO, YOLO, pixels, and `.bbox` lines of fractions. Importable without torch.

Only `.bbox` says all that a `Box` says, for a picture of any size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from pipelines.errors import RequestError
from pipelines.files import whole_file
from pipelines.request import yolo
from pipelines.request.boxes import Box, Edges, snapped
from pipelines.request.request import Request, problems
from pipelines.words import composed

Form = Literal["bbox", "coco", "yolo", "pixels"]
FORMS: tuple[Form, ...] = get_args(Form)
SLOTS = 30
"""Places for things in one picture, as in the official models."""

LIMIT = 1 << 24  # bytes of a file that are read
Row = tuple[str, Sequence[float]]
"""A phrase, and left, top, right and bottom in fractions as a file has them: they may lie anywhere."""

Coco = dict[str, list[Row]]
_INKS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def to_pixels(box: Edges, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Convert fractions to whole pixels (left, top, right, bottom) of a picture of `size` (width, height)."""
    (left, top, right, bottom), (width, height) = box, size
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def from_pixels(box: Edges, size: tuple[int, int]) -> Edges:
    """Convert pixels (left, top, right, bottom) to fractions."""
    (left, top, right, bottom), (width, height) = box, size
    return left / width, top / height, right / width, bottom / height


def checked(found: Iterable[Row], source: str) -> tuple[Box, ...]:
    """Return phrases and fractions from untrusted data as boxes.

    Raises:
        RequestError: naming the source, and the box by its number and phrase.
    """
    boxes = [{"phrase": phrase, "box": list(edges)} for phrase, edges in found]
    try:
        return Request.model_validate({"prompt": "", "boxes": boxes}).boxes
    except ValidationError as error:
        raise RequestError(f"In {source}: {problems(error)}", "Correct it there.") from None


def one_box(phrase: str, edges: Sequence[float], where: str) -> Box:
    """Return a box from a phrase and fractions.

    Raises:
        RequestError: if it cannot be one, naming where it is from.
    """
    try:
        return Box.model_validate({"phrase": phrase, "box": list(edges)})
    except ValidationError as error:
        raise RequestError(f"In {where}: {problems(error).removeprefix('request: ')}", "Correct it there.") from None


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
        beside = path.parent / yolo.CLASSES
        known = beside.read_text(encoding="utf-8-sig").split("\n") if beside.exists() else []
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
    """Read boxes of one picture in any of the formats, recognised by name and content.

    Args:
        path: `.bbox`, `.txt` (YOLO, with `classes.txt` beside it or `data.yaml` in a folder around it) or `.json` (COCO
            or pixels).
        picture: of a COCO file with several pictures, the `file_name` of the one meant.

    Raises:
        RequestError: if it cannot be read, or a box of it cannot be.
    """
    with _told(path):
        if path.suffix.lower() != ".json":
            return checked(rounded(rows_of(path)), path.name)
        content = _object(_text(path))
        if "annotations" not in content:
            return checked(rounded(_from_listed(content)), path.name)
        listed = _from_coco(content)
    names = list(listed) if picture is None else _meant(picture, listed)
    if len(names) != 1:
        some = ", ".join([*listed][:5])
        raise RequestError(
            f"{path.name} tells of {len(listed)} pictures ({some:.80}).", "Name one: FILE.json:PICTURE.png."
        )
    return checked(rounded(listed[names[0]]), path.name)


def rows_of(path: Path) -> list[Row]:
    """Return the boxes of a `.bbox` or YOLO file as written there.

    Raises:
        RequestError: if it cannot be read.
    """
    with _told(path):
        text = _text(path)
        if path.suffix.lower() == ".txt":
            return yolo.rows(text, path)
        found: list[Row] = []
        for line in filter(str.strip, text.split("\n")):
            value = json.loads(line)
            for one in value if isinstance(value, list) else [value]:
                found.append((one["label"], [float(edge) for edge in one["bbox"]]))
        return found


def coco_rows(path: Path, limit: int) -> Coco:
    """Return the boxes of all pictures of a COCO file as written there, in fractions of the sizes in it.

    Raises:
        RequestError: if it cannot be read, or has more than `limit` bytes.
    """
    with _told(path):
        return _from_coco(_object(_text(path, limit)))


def of_picture(name: str, listed: Coco) -> list[Row] | None:
    """Return the boxes of a picture by its path in the folder, or by its name alone; None if it is not listed."""
    names = _meant(name, listed)
    return listed[names[0]] if len(names) == 1 else None


def _meant(name: str, listed: Coco) -> list[str]:
    """Return the names of a COCO file that fit a name: the same, or the only ones so called in other folders."""
    own = composed(name)
    whole = [one for one in listed if composed(one) == own]
    return whole or [one for one in listed if PurePath(composed(one)).name == PurePath(own).name]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn errors inside the `with` into a sentence about the file."""
    try:
        yield
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
        if isinstance(error, KeyError):
            said = f"it has no {error}"
        elif isinstance(error, ZeroDivisionError):
            said = "a picture has a width or a height of 0"
        elif isinstance(error, TypeError | AttributeError | IndexError):
            said = "something in it is of another kind than it should be"
        else:
            said = str(error) or type(error).__name__
        raise RequestError(
            f"{path} cannot be read as boxes: {said.splitlines()[0]:.120}.",
            "Give a .bbox, a COCO or pixels .json, or a YOLO .txt with its classes.txt or data.yaml.",
        ) from None


def _text(path: Path, limit: int = LIMIT) -> str:
    if path.stat().st_size > limit:
        raise RequestError(f"{path.name} has more than {limit >> 20} MiB.", "Give the boxes of one picture.")
    return path.read_text(encoding="utf-8-sig")


def _object(text: str) -> dict[str, Any]:
    """Return a JSON object, the root of COCO's annotations and of the pixel format."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object with annotations or boxes in it")
    return content


def _from_coco(content: dict[str, Any]) -> Coco:
    """Return `file_name` -> boxes of each picture, crowds left out."""
    images = {image["id"]: image for image in content["images"]}
    listed: Coco = {str(image["file_name"]): [] for image in images.values()}
    names = {category["id"]: category["name"] for category in content["categories"]}
    for number, annotation in enumerate(content["annotations"], 1):
        image = images.get(annotation["image_id"])
        if image is None or annotation.get("iscrowd"):
            continue
        if annotation["category_id"] not in names:
            raise ValueError(f"annotation {number} is of category {annotation['category_id']}, which is not listed")
        left, top, width, height = (float(edge) for edge in annotation["bbox"])
        edges = from_pixels((left, top, left + width, top + height), (image["width"], image["height"]))
        listed[str(image["file_name"])].append((names[annotation["category_id"]], list(edges)))
    return listed


def _from_listed(content: dict[str, Any]) -> list[Row]:
    size = (content["width"], content["height"])
    return [(one["label"], list(from_pixels(tuple(one["box"]), size))) for one in content["boxes"]]


def rounded(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with edges that lie outside by a rounding of six digits or a pixel moved to the border."""
    return [(phrase, [snapped(edge, 1e-4) for edge in edges]) for phrase, edges in rows]


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Draw boxes and phrases on a copy of a picture; small pictures are enlarged in whole steps first."""
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
