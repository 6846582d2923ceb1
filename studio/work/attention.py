"""Attention maps of a picture: it is drawn again, and each word's map laid over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.conditions.attention_maps import AttentionMaps
from pipelines.errors import RequestError
from pipelines.files import whole_file
from pipelines.generation import generate
from pipelines.pictures.metadata import Made
from pipelines.pictures.sheet import Sheet
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base

HEAT = np.array([(40, 40, 60), (200, 60, 60), (255, 220, 90)], dtype=np.float32)
"""Colours of nothing, half and all."""


def show_attention(made: Made, picture: Path, output: Path | None, machine: Machine) -> list[Path]:
    """Draw a picture again and write where each word of its prompt looked; return the sheet and the .npz of the maps.

    Args:
        made: as the picture says it was made.
        picture: its file.
        output: of the sheet; beside the picture by default. The maps have its name with the ending .npz.
        machine: settings of the machine.

    Raises:
        RequestError: if it is an answer to examples.
    """
    request = made.request.model_copy(update={"seed": made.request.seed + made.index, "count": 1})
    if request.in_context is not None:
        raise RequestError(
            f"{picture.name} is an answer to an example, whose canvas has no words of its own.",
            "Give a picture that was made from a prompt.",
        )
    watching = AttentionMaps(request.prompt)
    components = open_base(made.base, machine)
    result = generate(components, request, conditions=[watching], on_event=Progress("attention"))
    drawn = result.pictures[0]
    height, width = (side // components.factor for side in (drawn.height, drawn.width))
    maps = {word: one[0].numpy() for word, one in watching.maps(height, width).items()}
    sheet = Sheet(cell=128, label=170)
    sheet.head(["the picture", *(f"{word}, at most {float(one.max()):.0%}" for word, one in maps.items())])
    sheet.row(request.prompt, [drawn, *(laid_over(drawn, one) for one in maps.values())])
    path = sheet.save(output or picture.with_name(f"{picture.stem}.attention.png"))
    numbers = path.with_suffix(".npz")
    with whole_file(numbers) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **maps)  # pyright: ignore[reportArgumentType]
    return [path, numbers]


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
