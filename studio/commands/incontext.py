"""`studio incontext`: a change shown by examples and applied to another picture. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import create_model

from pipelines.errors import RequestError
from pipelines.request.request import Frozen, InContext, Request
from studio.commands.flags import Asked, flag, given
from studio.settings import Machine

PICTURES = ("examples", "query", "digests")
"""Fields of a question that are no flags of their own."""

_FIELDS: dict[str, Any] = {name: flag(field) for name, field in InContext.model_fields.items() if name not in PICTURES}
_Manner: Any = create_model("_Manner", __base__=Frozen, **_FIELDS)


class Manner(_Manner):
    """The flags of `InContext`'s other fields."""


def ask(
    *,
    query: Path,
    pair: Annotated[tuple[tuple[Path, Path], ...], Parameter(name="--example", negative="")] = (),
    folder: Annotated[Path | None, Parameter(name="--examples")] = None,
    nearest: int = 1,
    clip: Path | None = None,
    hint: str = "",
    manner: Annotated[Manner, Parameter(name="*")] = Manner(),  # noqa: B008
    base: str = "pocket",
    output: Path = Path("outputs"),
    asked: Annotated[Asked, Parameter(name="*")] = Asked(),  # noqa: B008
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Change a picture as in the examples.

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
        What the answer shows, in words; with --concept a word that was learned from pairs, also without an example.
    base
        pocket (the default), or an inpainting model: a diffusers folder, a .safetensors checkpoint, or a hub id.
    output
        Folder for the answers.
    """
    if bool(pair) + bool(folder) + (bool(hint) and not pair and not folder) != 1:
        raise RequestError(
            "Give either --example BEFORE AFTER or --examples DIR, or a --hint alone that says what to do.",
            "For example: studio incontext --example before.png after.png --query new.png",
        )
    pairs = [(str(before), str(after)) for before, after in pair]
    if folder is not None:
        from studio.commands.incontext_examples import nearest_pairs

        pairs = nearest_pairs(folder, query, nearest, clip)
    question = {
        "examples": [{"before": before, "after": after} for before, after in pairs],
        "query": str(query),
        **{name: getattr(manner, name) for name in manner.model_fields_set},
    }
    request = Request.read({"prompt": hint, **given(asked), "in_context": question})
    from studio.work import runner

    for path in runner.write_pictures(request, base, output, machine):
        print(path)
