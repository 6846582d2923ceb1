"""`studio incontext`: a change shown by examples, done to another picture. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pipelines.errors import RequestError
from pipelines.request import Request
from studio.flags import Asked, given
from studio.settings import Machine


def ask(
    *,
    query: Path,
    pair: Annotated[tuple[tuple[Path, Path], ...], Parameter(name="--example", negative="")] = (),
    folder: Annotated[Path | None, Parameter(name="--examples")] = None,
    nearest: int = 1,
    clip: Path | None = None,
    hint: str = "",
    engine: Literal["grid", "analogist"] = "grid",
    direction: Literal["after", "before"] = "after",
    cell: Literal["bottom-right", "bottom-left", "top-right", "top-left"] = "bottom-right",
    transposed: Annotated[bool, Parameter(negative="")] = False,
    ensemble: Literal[1, 2, 4, 8] = 1,
    cloning: float | None = None,
    strength: float | None = None,
    base: str = "pocket",
    output: Path = Path("outputs"),
    asked: Annotated[Asked, Parameter(name="*")] = Asked(),  # noqa: B008
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Do to a picture what was done in examples.

    Parameters
    ----------
    query
        The picture to be changed; the answer has its size.
    pair
        Two pictures, before and after the change. May be repeated, up to 16 times.
    folder
        A folder of pairs: before/NAME.png and after/NAME.png. The one most like the query is taken.
    nearest
        With --examples: how many.
    clip
        With --examples: folder of a CLIP that compares pictures, instead of pocket's judge.

    Hint:
        What the answer shows, in words; a learned token works too, with --concept.
    engine
        grid for a base trained on grids, analogist for any inpainting model of Stable Diffusion.
    direction
        before undoes the change: the query is a picture as it became.
    cell
        Where the answer is painted.
    transposed
        Pairs stand in columns instead of rows.
    ensemble
        How many arrangements of the grid are averaged.
    cloning
        analogist: how much stronger than the original the cloned relation is (1.3).
    strength
        analogist: share of noise that the copy of the query starts with (0.98).
    base
        pocket (the default), or an inpainting model: a diffusers folder, a .safetensors checkpoint, or a hub id.
    output
        Folder for the answers.
    """
    if bool(pair) == bool(folder):
        raise RequestError(
            "Give either --example BEFORE AFTER or --examples DIR.",
            "For example: studio incontext --example before.png after.png --query new.png",
        )
    pairs = [(str(before), str(after)) for before, after in pair]
    if folder is not None:
        from studio.examples import nearest_pairs

        pairs = nearest_pairs(folder, query, nearest, clip)
    fields: dict[str, Any] = {
        "examples": [{"before": before, "after": after} for before, after in pairs],
        "query": str(query),
        "engine": engine,
        "asked": direction,
        "cell": cell,
        "transposed": transposed,
        "ensemble": ensemble,
    }
    fields |= {k: v for k, v in (("cloning", cloning), ("strength", strength)) if v is not None}
    request = Request.read({"prompt": hint} | given(asked) | {"in_context": fields})
    from studio import runner

    for path in runner.generate(request, base, output, machine):
        print(path)
