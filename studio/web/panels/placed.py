"""Boxes and brushed parts of the page as boxes and regions of a request, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.errors import StudioError
from pipelines.request.request import Request
from studio.jobs.jobs import Jobs
from studio.library.uploads import cleaned
from studio.web.components import records
from studio.web.panels.painted import SHOWN, decoded, fitted, png
from studio.web.panels.watching import picture_uri


def placed(jobs: Jobs, drawn: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the boxes and the regions of a request as they were drawn; what has no words is left out.

    Args:
        jobs: of the server; masks of brushed parts are stored there.
        drawn: value of `box_editor`.

    Raises:
        StudioError: if a mask cannot be read, or nothing of it is marked.
    """
    boxes: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    for one in records(drawn):
        words = str(one.get("phrase") or "").strip()
        if not words:
            continue
        if not one.get("part"):
            boxes.append({"phrase": one.get("phrase"), "box": one.get("box")})
            continue
        place = {"mask": _mask(jobs, one)} if one.get("mask") else {"box": one.get("box")}
        region = {"prompt": words, **place, "soft": one.get("soft") or 0.0}
        regions.append(region | ({"negative_prompt": one["avoid"]} if one.get("avoid") else {}))
    return boxes, regions


def _mask(jobs: Jobs, one: dict[str, Any]) -> str:
    """Return the id of the picture of a brushed part; one that was stored before is not stored again."""
    if one.get("file"):
        return str(one["file"])
    content = decoded(str(one["mask"]))
    return jobs.pictures.add(png(fitted(content, cleaned(content, "the mask").size)), "the mask")


def drawn_in(jobs: Jobs, request: Request) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the value of `box_editor` for a request, and the prompts of regions whose masks are no longer there."""
    drawn: list[dict[str, Any]] = [{"phrase": box.phrase, "box": list(box.box)} for box in request.boxes]
    lost: list[str] = []
    for region in request.regions:
        one = {"phrase": region.prompt, "part": True, "soft": region.soft, "avoid": region.negative_prompt}
        if region.box is not None:
            drawn.append(one | {"box": list(region.box)})
            continue
        file = Path(region.mask or "").stem  # a picture names it by its place, an order by its id
        try:
            path = jobs.pictures.path(file)
            drawn.append(one | {"mask": picture_uri(path, SHOWN), "file": file, "box": _edges(path)})
        except (StudioError, OSError):
            lost.append(region.prompt)
    return drawn, lost


def _edges(path: Path) -> list[float]:
    """Return left, top, right and bottom of the white part of a mask, in fractions."""
    with Image.open(path) as mask:
        left, top, right, bottom = mask.convert("L").getbbox() or (0, 0, *mask.size)
        return [left / mask.width, top / mask.height, right / mask.width, bottom / mask.height]
