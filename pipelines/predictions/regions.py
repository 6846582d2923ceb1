"""Regions with prompts of their own: each place of the picture follows the prompt, and the weights, of its region.

Predictions are composed place by place as in MultiDiffusion (Bar-Tal et al., arXiv:2302.08113, eq. 5). A base with
gated layers is told where the thing of a region is; for others the surroundings of a region are noise of one grey
during the first steps, so that its thing is drawn within it (section 5.2 there, "bootstrapping").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.concepts.concept import Concept
from pipelines.conditions.attention_maps import AttentionMaps
from pipelines.conditions.regions import Regions, on_grid
from pipelines.conditions.text import Text
from pipelines.errors import DataError, RequestError
from pipelines.gligen.tokens import has_grounding
from pipelines.models.components import Components, encode
from pipelines.pictures.files import open_mask
from pipelines.predictions.regional import View, boxes_seen, view
from pipelines.request.boxes import Box
from pipelines.request.regions import Region
from pipelines.request.request import Request
from pipelines.words import says

ALONE = 0.2
"""Share of the steps in which a region is drawn by itself on a base without gated layers; the paper's."""


def kept_to_regions(request: Request, learned: Sequence[Concept]) -> dict[int, list[int]]:
    """Return the concepts whose weights act in regions alone: their place in the request -> the regions that name them.

    A concept that the request's own prompt names acts everywhere.
    """
    found = {
        index: [place for place, region in enumerate(request.regions) if says(region.prompt, concept.token)]
        for index, concept in enumerate(learned)
        if concept.changes and not says(request.prompt, concept.token)
    }
    return {index: places for index, places in found.items() if places}


def covered(region: Region, number: int, size: tuple[int, int], factor: int) -> Tensor:
    """Return how far a region reaches, (h, w) in [0, 1] on the grid of the latents.

    Args:
        region: a box or a mask.
        number: of the region, counted from 1, for errors.
        size: width and height of the picture in pixels.
        factor: pixels to a cell of the latents.

    Raises:
        RequestError: if the mask cannot be read, or nothing of it is white.
    """
    width, height = (side // factor for side in size)
    if region.box is not None:
        cells = on_grid(region.box, width, height).float()
    else:
        cells = _painted(Path(str(region.mask)), number, width, height)
    rim = region.soft * min(width, height)
    return _soft(cells, rim) if rim >= 1 else cells


def _painted(path: Path, number: int, width: int, height: int) -> Tensor:
    try:
        mask = open_mask(path)
    except DataError as error:
        raise RequestError(f"Region {number}: {error.message}", error.hint) from None
    cells = np.asarray(mask.resize((width, height), Image.Resampling.BOX)) >= 128
    if not cells.any():
        raise RequestError(
            f"Region {number}: in {path.name} nothing is white, or too little for this size of picture.",
            "Paint white where the region is, or give a box.",
        )
    return torch.from_numpy(cells.astype(np.float32))


def _soft(cells: Tensor, rim: float) -> Tensor:
    """Return cells that fade outwards over `rim` of them."""
    from scipy.ndimage import distance_transform_edt

    distance = torch.from_numpy(np.asarray(distance_transform_edt(cells.numpy() == 0), dtype=np.float32))
    return (1 - distance / (rim + 1)).clamp(0, 1)


def _around(cells: Tensor) -> tuple[float, float, float, float]:
    """Return the box around the cells that are more than half covered, in fractions."""
    rows, columns = (cells > 0.5).any(dim=1).nonzero().flatten(), (cells > 0.5).any(dim=0).nonzero().flatten()
    height, width = cells.shape
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    left, top, right, bottom = (float(edge) for edge in edges)
    return left, top, right, bottom


def told(components: Components, request: Request) -> Request:
    """Return the request with a box for each region, for a base with gated layers; else as it is.

    Raises:
        RequestError: if a mask cannot be read.
    """
    if not has_grounding(components.denoiser) or not request.regions:
        return request
    size = (int(request.width or 0), int(request.height or 0))
    spots = [
        Box(phrase=region.prompt, box=_around(covered(region, place + 1, size, components.factor)))
        for place, region in enumerate(request.regions)
    ]
    return request.model_copy(update={"boxes": (*request.boxes, *spots)})


def region_views(
    components: Components,
    request: Request,
    learned: Sequence[Concept],
    kept: Mapping[int, Sequence[int]],
    lasting: ExitStack,
) -> list[View]:
    """Return a view for each region of a request.

    Args:
        components: the base with all words of the request; bit-identical afterwards.
        request: with nothing left open, and with the boxes of `told`.
        learned: its concepts.
        kept: `kept_to_regions` of it.
        lasting: ends with the run.

    Raises:
        RequestError: if a mask cannot be read.
    """
    size, views = (int(request.width or 0), int(request.height or 0)), list[View]()
    grounded = has_grounding(components.denoiser)
    grey = None if grounded or not request.regions else _grey(components, size)
    for place, region in enumerate(request.regions):
        cells = covered(region, place + 1, size, components.factor)
        here = [index for index, places in kept.items() if place in places]
        uses = [(learned[index], request.concepts[index].strength) for index in here]
        negative = region.negative_prompt or request.negative_prompt
        skip, empty = request.clip_skip - 1, request.guidance.encode_empty
        text = Text(region.prompt, negative, size, skip=skip, encode_empty=empty)
        named = next((i for i, concept in enumerate(learned) if says(region.prompt, concept.token)), None)
        things = boxes_seen(request, learned, named) if grounded else None
        rest = {"without": (Regions, AttentionMaps), "ground": grey, "alone": 0 if grey is None else ALONE}
        views.append(view(components, uses, cells, (text, things), request.count, lasting, **rest))
    return views


def _grey(components: Components, size: tuple[int, int]) -> Tensor:
    """Return latents (1, C, h, w) of an even grey picture."""
    width, height = size
    with torch.no_grad():
        return encode(components, torch.zeros(1, 3, height, width)).mean.to(components.device, components.dtype)
