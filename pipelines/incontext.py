"""Visual in-context prompts: example pairs and a query on one canvas, whose last cell is filled by inpainting.

There is no loop here: the canvas and its mask are built, `generate` paints, the answer is cropped.

Source: Bar et al., "Visual Prompting via Image Inpainting" (arXiv:2209.00647). Several arrangements of one question are
averaged in what the model predicts at every step, not in finished pictures, which would blur them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipelines.concepts.concept import Concept
from pipelines.condition import Condition
from pipelines.conditions.analogist import Analogist
from pipelines.conditions.grid import Agreement, Canvases, Detail
from pipelines.errors import DataError, RequestError
from pipelines.events import Note, OnEvent, ignore
from pipelines.models.components import Components
from pipelines.models.inpainting_unet import inpainting_components
from pipelines.pictures.files import decoded
from pipelines.pictures.grids import Grid
from pipelines.pictures.pairs import halves
from pipelines.pictures.tensors import to_pictures, to_tensor
from pipelines.request.request import ExamplePair, Guidance, InContext, Request
from pipelines.sampling import Result, sample

ANALOGIST_GUIDANCE = Guidance(scale=15.0, rescale=0.7)
"""The paper's scale, which saturates colours unless it is rescaled."""
RANDOM_SAMPLERS = ("euler-a", "lcm")
DETAILS = (0.0, 0.7, 1.0)
"""Shares of the steps that are tried on an example: its details may be wanted, or be what is to go, as noise is."""
TRIAL_STEPS = 10
"""Most steps of a trial."""


def answer(
    components: Components,
    request: Request,
    concepts: Mapping[str, Concept] | None = None,
    conditions: Sequence[Condition] = (),
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Carry out a request with `in_context`; `generate` calls it for such requests.

    Args:
        components: the base model; its inpainting UNet is found where there is one.
        request: the examples, the query, and a prompt or none; `count` answers from different noise.
        concepts: as for `generate`.
        conditions: further ones.
        on_event: as for `generate`.
        should_stop: as for `generate`.

    Returns:
        Answers of the query's size, and the latents of the answer's cell.

    Raises:
        RequestError: if the pictures do not suit each other or the request.
        DataError: if a picture cannot be read or is transparent.
        ModelError: if the base has no inpainting UNet.
    """
    if (asked := request.in_context) is None:
        raise RequestError("The request asks nothing in pictures.", "Give it in_context.")
    if request.inpaint is not None or request.boxes or request.regions:
        raise RequestError(
            "A question in pictures has no boxes, no regions, and no picture to inpaint.", "Leave them out."
        )
    request = settled(components, request)
    _check(components, request)
    pictures = read_pictures(asked)
    cells = lay_out(asked, pictures, (int(request.width or 0), int(request.height or 0)))
    grid = grid_of(asked)
    patched = [Analogist(grid, _ratio(grid, cells), asked.cloning)] if asked.engine == "analogist" else []
    grids, painter = grid.arrangements()[: asked.ensemble], inpainting_components(components)
    run: dict[str, Any] = {"concepts": concepts, "should_stop": should_stop}
    detail = _settled_detail(painter, cells, request, grids, on_event, **run)
    painted = paint(
        painter,
        cells.expand(request.count, *cells.shape[1:]),
        request,
        grids,
        strength=asked.strength if patched else 1.0,
        follow=not patched,
        detail=[detail] * request.count,
        conditions=[*conditions, *patched],
        on_event=on_event,
        **run,
    )
    size = pictures[-1].size
    answers = [one if one.size == size else one.resize(size, _LANCZOS) for one in to_pictures(painted.answers)]
    told = {"digests": digests(asked), "detail": detail}
    kept = request.model_copy(update={"in_context": asked.model_copy(update=told)})
    return Result(answers, painted.latents, kept, painted.concepts)


def _settled_detail(
    components: Components,
    cells: Tensor,
    request: Request,
    grids: Sequence[Grid],
    on_event: OnEvent,
    **alike: Any,
) -> float:
    """Return the share that was asked for, or the one that answers the example best where details can be put back."""
    if request.in_context is not None and (given := request.in_context.detail) is not None:
        return given
    if not _comparable(request):
        return 0.0
    (detail,) = best_detail(components, cells, request, grids, **alike)
    if detail:
        on_event(Note(f"detail {detail:g}: with details of the query put back the example is answered best."))
    return detail


@dataclass(frozen=True)
class Painted:
    """The contents of the answers' cells.

    Attributes:
        answers: (B, 3, h, w) in [-1, 1].
        latents: (B, C, h / factor, w / factor).
        concepts: those that were used.
    """

    answers: Tensor
    latents: Tensor
    concepts: tuple[Concept, ...] = ()


def paint(
    components: Components,
    cells: Tensor,
    request: Request,
    grids: Sequence[Grid] = (Grid(),),
    *,
    strength: float = 1.0,
    follow: bool = True,
    detail: Sequence[float] = (),
    concepts: Mapping[str, Concept] | None = None,
    conditions: Sequence[Condition] = (),
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Painted:
    """Answer a batch of questions at once.

    Args:
        components: with an inpainting UNet.
        cells: (B, pairs, 2, 3, h, w) in [-1, 1]; what the answer's cell holds is where a strength below 1 starts from.
        request: prompt, sampler, guidance; question i starts from the noise of seed + i.
        grids: arrangements of the same pairs, averaged.
        strength: share of noise to start with.
        follow: whether guidance follows the examples too: its negative branch sees them blank.
        detail: for each question, the share of the steps in which details of its query are put back; none by default.
        concepts: as for `generate`.
        conditions: further ones.
        on_event: as for `generate`.
        should_stop: as for `generate`.
    """
    asked, noise = len(cells), _noise(components, request.seed, cells)
    if any(detail):
        cells, noise = torch.cat((cells, unchanged(cells))), torch.cat((noise, noise))
        cells[:, -1, 1] = cells[:, -1, 0]
    canvases = _canvases(cells, grids, strength, follow and request.guidance.scale != 1, detail)
    count, _, height, width = canvases.images.shape
    result = sample(
        components,
        request.model_copy(update={"in_context": None, "width": width, "height": height, "count": count}),
        concepts=concepts,
        conditions=[canvases, Agreement(grids), *conditions],
        noise=torch.cat([grid.compose(noise) for grid in grids]),
        on_event=on_event,
        should_stop=should_stop,
    )
    shown = torch.stack([to_tensor(picture) for picture in result.pictures])
    cropped = [grid.crop(part[:asked]) for grid, part in zip(grids, shown.chunk(len(grids)), strict=True)]
    return Painted(torch.stack(cropped).mean(0), grids[0].crop(result.latents[:asked]), result.concepts)


def _canvases(cells: Tensor, grids: Sequence[Grid], strength: float, follow: bool, detail: Sequence[float]) -> Canvases:
    """Return the canvases of the questions in each grid in turn, as `paint` describes them."""
    count, height, width = len(cells), *cells.shape[-2:]
    masks = torch.cat([grid.mask(height, width).expand(count, -1, -1, -1) for grid in grids])
    blank = torch.cat((torch.zeros_like(cells[:, :-1]), cells[:, -1:]), 1)
    unguided = torch.cat([grid.compose(blank) for grid in grids]) if follow else None
    images = torch.cat([grid.compose(cells) for grid in grids])
    return Canvases(images, masks, strength, unguided, Detail.beside(detail, len(grids)))


def unchanged(cells: Tensor) -> Tensor:
    """Return the questions (B, pairs, 2, 3, h, w) with examples that change nothing: after is as before."""
    return cells[:, :, :1].expand_as(cells).clone()


def best_detail(
    components: Components, cells: Tensor, request: Request, grids: Sequence[Grid] = (Grid(),), **alike: Any
) -> tuple[float, ...]:
    """Return, for each question, the share of `DETAILS` by which its last example is answered best.

    Args:
        components: with an inpainting UNet.
        cells: (B, pairs, 2, 3, h, w), with one example at least.
        request: sampler and guidance; few steps are enough to choose.
        grids: arrangements of the pairs.
        alike: concepts and `should_stop` of the real run, as `paint` takes them.
    """
    trial = torch.cat((cells[:, :-1], cells[:, -2:-1, :1].expand(-1, -1, 2, -1, -1, -1)), 1)
    quick = request.model_copy(update={"steps": min(TRIAL_STEPS, request.steps or TRIAL_STEPS)})
    errors = [
        (paint(components, trial, quick, grids, detail=[share] * len(cells), **alike).answers)
        .sub(cells[:, -2, 1])
        .abs()
        .flatten(1)
        .mean(1)
        for share in DETAILS
    ]
    return tuple(DETAILS[int(best)] for best in torch.stack(errors).argmin(0))


def _comparable(request: Request) -> bool:
    """Return whether details can be put back: of a question in pictures alone, with a sampler that draws no noise."""
    asked = request.in_context
    in_grid = asked is not None and bool(asked.examples) and asked.engine == "grid"
    return in_grid and not request.prompt and not request.also and not _random(request)


def _random(request: Request) -> str:
    """Return what draws noise at every step, the sampler or its eta; empty if nothing does."""
    if request.scheduler in RANDOM_SAMPLERS:
        return str(request.scheduler)
    return f"eta {request.eta:g}" if request.eta else ""


def _noise(components: Components, seed: int, cells: Tensor) -> Tensor:
    """Return noise (B, pairs, 2, C, h, w) by cell, so that a question starts alike in every arrangement."""
    height, width = (side // components.factor for side in cells.shape[-2:])
    shape = (*cells.shape[1:3], components.channels, height, width)
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(cells))]
    return torch.stack(drawn).to(components.dtype)


# -- the question -----------------------------------------------------------------------------------------------


def settled(components: Components, request: Request) -> Request:
    """Return the request with all fields decided; a cell has the base's native size.

    Analogist halves them, as in the paper, except on `pocket`, whose pictures are small already: its canvas is one
    picture of the base. A grid without words needs no guidance.
    """
    asked, guidance = request.in_context, request.guidance
    side = components.defaults.size
    if asked is not None and asked.engine == "analogist" and components.family.world != "pocket":
        side //= 2
        own = ANALOGIST_GUIDANCE
    else:
        own = Guidance(scale=None if request.prompt else 1.0)
    filled = {
        k: getattr(own, k) if getattr(guidance, k) is None else getattr(guidance, k) for k in ("scale", "rescale")
    }
    update = {
        "guidance": guidance.model_copy(update=filled),
        "width": request.width or side,
        "height": request.height or side,
    }
    return request.model_copy(update=update).resolved(components.defaults)


def grid_of(asked: InContext) -> Grid:
    """Return the grid of a question."""
    vertical, _, horizontal = asked.cell.partition("-")
    top, left = vertical == "top", horizontal == "left"
    # In columns the query's pair is the last column, its answer the lower cell.
    swapped, turned = (top, left) if asked.transposed else (left, top)
    return Grid(max(1, len(asked.examples)), swapped=swapped, reversed=turned, transposed=asked.transposed)


def lay_out(asked: InContext, pictures: Sequence[Image.Image], size: tuple[int, int]) -> Tensor:
    """Return the cells (1, pairs, 2, 3, h, w) of a question; the answer's holds the query.

    Every picture is stretched to the cell: the answer is stretched back to the query's size. Without an example its
    cells are grey.
    """
    shown = torch.stack([to_tensor(one.resize(size, _LANCZOS)) for one in (*pictures, pictures[-1])])
    cells = shown.unflatten(0, (-1, 2))
    if asked.direction == "before":
        cells = torch.cat((cells[:-1].flip(1), cells[-1:]))
    if not asked.examples:
        cells = torch.cat((torch.zeros_like(cells), cells))
    return cells[None]


def read_pictures(asked: InContext) -> list[Image.Image]:
    """Return the pictures of a question, examples first.

    Raises:
        DataError: if one cannot be read or is transparent.
        RequestError: if those of a pair differ in size, or one has changed since the question was answered.
    """
    pictures = [open_opaque(Path(path)) for path in asked.pictures]
    for pair, before, after in zip(asked.examples, pictures[:-1:2], pictures[1::2], strict=True):
        require_same_size(pair, before, after)
    if asked.digests and asked.digests != digests(asked):
        changed = [p for p, old, new in zip(asked.pictures, asked.digests, digests(asked), strict=False) if old != new]
        raise RequestError(
            f"{', '.join(changed) or 'The number of pictures'} changed since the answer was made.",
            "It cannot be repeated; ask anew with studio incontext.",
        )
    return pictures


def require_same_size(pair: ExamplePair, before: Image.Image, after: Image.Image) -> None:
    """Check that the pictures of an example have the same size.

    Raises:
        RequestError: if they differ in size.
    """
    if before.size != after.size:
        raise RequestError(
            f"{pair.before} has {before.width} x {before.height} pixels, {pair.after} {after.width} x {after.height}.",
            "Both pictures of an example must have the same size, and show the same place.",
        )


def digests(asked: InContext) -> tuple[str, ...]:
    """Return the SHA-256 of every picture's file."""
    return tuple(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in asked.pictures)


def open_opaque(path: Path) -> Image.Image:
    """Read a picture without transparency, since hidden colours would become part of the example.

    Raises:
        DataError: if it cannot be read, or is transparent somewhere.
    """
    picture = decoded(path, path.name)
    if picture.mode == "RGBA":
        raise DataError(
            f"{path.name} is transparent in places.",
            "Lay it on the background that it is to have: the model sees that too.",
        )
    return picture


def _check(components: Components, request: Request) -> None:
    for name, value in (("width", int(request.width or 0)), ("height", int(request.height or 0))):
        if value % components.multiple:
            raise RequestError(
                f"The {name} {value} of a cell is no multiple of {components.multiple}, which {components.name} needs.",
                f"Use {max(1, round(value / components.multiple)) * components.multiple}.",
            )
    if request.in_context and request.in_context.ensemble > 1 and (random := _random(request)):
        raise RequestError(
            f"{random} adds noise at every step, which averaging would take away.",
            "Use ddim (eta 0), dpm++2m, unipc or euler with an ensemble.",
        )
    if request.in_context and request.in_context.detail and not _comparable(request):
        why = f"{_random(request)} adds noise at each step" if _random(request) else "prompts say more than the example"
        raise RequestError(
            f"detail {request.in_context.detail:g}: what the model loses of the query cannot be told, as {why}.",
            "Leave the hint out, or use ddim (eta 0), dpm++2m, unipc or euler; or leave detail out.",
        )


def _ratio(grid: Grid, cells: Tensor) -> float:
    rows, columns = grid.shape
    return rows * cells.shape[-2] / (columns * cells.shape[-1])


_LANCZOS = Image.Resampling.LANCZOS


# -- examples ---------------------------------------------------------------------------------------------------


def pairs_in(folder: Path) -> tuple[ExamplePair, ...]:
    """Return the pairs of a folder, in the order of their names; its forms are those of `pipelines.pictures.pairs`.

    Raises:
        DataError: if there are none, or a picture has no other half.
    """
    before, after = halves(folder)
    alone = sorted(before.keys() ^ after.keys())
    if alone:
        side = "after" if alone[0] in before else "before"
        raise DataError(f"{alone[0]!r} of {folder} has no picture {side}.", "Every pair needs both pictures.")
    if not before:
        raise DataError(
            f"{folder} holds no pairs.", "Put pictures into before/ and, with the same names, changed ones into after/."
        )
    return tuple(ExamplePair(before=str(before[name]), after=str(after[name])) for name in sorted(before))
