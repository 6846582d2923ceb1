"""Attention maps of a picture: it is drawn again, and each word's map laid over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.conditions.attention_maps import AttentionMaps
from pipelines.errors import RequestError
from pipelines.events import OnEvent
from pipelines.files import whole_file
from pipelines.generation import generate
from pipelines.models.components import Components
from pipelines.pictures.metadata import Made
from pipelines.pictures.sheet import Sheet

HEAT = np.array([(40, 40, 60), (200, 60, 60), (255, 220, 90)], dtype=np.float32)
"""Colours of nothing, half and all."""

Maps = dict[str, NDArray[np.float32]]
"""Word -> its share of the attention at each place, (h, w) in [0, 1]."""


def words_looked_up(
    made: Made, name: str, components: Components, on_event: OnEvent, should_stop: Callable[[], bool]
) -> tuple[Image.Image, Maps]:
    """Draw a picture again; return it, and where each word of its prompt was looked up.

    Args:
        made: as the picture says it was made.
        name: of its file, for errors.
        components: its base.
        on_event: told each step.
        should_stop: asked before each step.

    Raises:
        RequestError: if it is an answer to examples, or was drawn in part, or attention cannot be read from its base.
        Cancelled: if it should stop.
    """
    request = made.request.model_copy(update={"seed": made.request.seed + made.index, "count": 1})
    if request.in_context is not None:
        raise RequestError(
            f"{name} is an answer to an example, whose canvas has no words of its own.",
            "Give a picture that was made from a prompt.",
        )
    if request.inpaint is not None and request.inpaint.only_masked and not request.inpaint.whole:
        raise RequestError(
            f"{name} was drawn around its mask alone, and where words were looked up there is no place in all of it.",
            "Give a picture that was drawn as a whole.",
        )
    watching = AttentionMaps(request.prompt)
    result = generate(components, request, conditions=[watching], on_event=on_event, should_stop=should_stop)
    drawn = result.pictures[0]
    # Of the first pass, in which it was looked: a picture that was enlarged may have other proportions.
    height, width = (int(side or 0) // components.factor for side in (result.request.height, result.request.width))
    return drawn, {word: one[0].numpy() for word, one in watching.maps(height, width).items()}


def write_sheet(prompt: str, drawn: Image.Image, maps: Maps, path: Path) -> list[Path]:
    """Write a sheet of a picture with each map over it, and the maps as numbers beside it; return both.

    Args:
        prompt: of the picture.
        drawn: the picture.
        maps: of its words.
        path: of the sheet; the maps have its name with the ending .npz.
    """
    sheet = Sheet(cell=128, label=170)
    sheet.head(["the picture", *(f"{word}, at most {float(one.max()):.0%}" for word, one in maps.items())])
    sheet.row(prompt, [drawn, *(laid_over(drawn, one) for one in maps.values())])
    return [sheet.save(path), write_numbers(maps, path.with_suffix(".npz"))]


def write_overlays(drawn: Image.Image, maps: Maps, folder: Path) -> list[Path]:
    """Write a picture with each map over it, in the order of the words, and the maps as numbers; return all."""
    paths: list[Path] = []
    for number, one in enumerate(maps.values()):
        paths.append(folder / f"word-{number:03d}.png")
        with whole_file(paths[-1]) as temporary:
            laid_over(drawn, one).save(temporary, format="PNG")
    return [*paths, write_numbers(maps, folder / "attention.npz")]


def write_numbers(maps: Mapping[str, NDArray[np.float32]], path: Path) -> Path:
    """Write maps by their words; return the file."""
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **maps)  # pyright: ignore[reportArgumentType]
    return path


def laid_over(picture: Image.Image, attention: NDArray[np.float32]) -> Image.Image:
    """Return a picture with a map laid over it, dark where the word was not looked up and light where it was most.

    Args:
        picture: of any size.
        attention: (h, w), as large as wanted.
    """
    share = attention - float(attention.min())
    share = share / max(float(share.max()), 1e-8)
    large = np.asarray(Image.fromarray(share.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR))
    place = np.clip(large, 0, 1)[..., None] * 2
    heat = np.where(place < 1, HEAT[0] + (HEAT[1] - HEAT[0]) * place, HEAT[1] + (HEAT[2] - HEAT[1]) * (place - 1))
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((0.45 * grey + 0.55 * heat).clip(0, 255).astype(np.uint8))
