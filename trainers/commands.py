"""One command for each method, its flags derived from the settings. Needs no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from cyclopts import App, Group, Parameter
from pydantic import create_model

from pipelines.request.settings import Frozen
from trainers.method import Method
from trainers.methods import methods, summary
from trainers.run import Run
from trainers.settings import DataConfig, Destination, TrainConfig

HEADINGS = {
    "config": "What is learned",
    "data": "Pictures",
    "train": "Training",
    "where": "Base and result",
    "machine": "Machine",
}
"""Headings of the help, by the name of a group of settings."""


def commands(
    name: str, carry_out: Callable[..., None], where: type[Destination], more: Mapping[str, Any] = MappingProxyType({})
) -> App:
    """Return a command line with a command for each method.

    Args:
        name: of the program.
        carry_out: called with the run, and one value for each of `more`.
        where: settings of the base and the result.
        more: name -> further settings, classes whose fields all have defaults; the names are those of `HEADINGS`.
    """
    app = App(
        name=name,
        help="Learn a concept from a folder of pictures.",
        help_format="plaintext",
        default_parameter=Parameter(negative_iterable=()),
    )
    for key, method in methods().items():
        app.command(_command(method, carry_out, where, more), name=key)
    return app


def _without(kind: type[Frozen], unused: frozenset[str]) -> type[Frozen]:
    """Return a class of the settings of another that are of use."""
    if not unused & kind.model_fields.keys():
        return kind
    fields: dict[str, Any] = {name: (one.annotation, one) for name, one in kind.model_fields.items()}
    left = {name: field for name, field in fields.items() if name not in unused}
    return create_model(kind.__name__, __base__=Frozen, __doc__=kind.__doc__, **left)


def _whole(kind: type[Any], given: Frozen) -> Any:
    """Return settings of the whole class, with what was said set."""
    return given if isinstance(given, kind) else kind(**{name: getattr(given, name) for name in given.model_fields_set})


def _command(
    method: Method[Any], carry_out: Callable[..., None], where: type[Destination], more: Mapping[str, Any]
) -> Any:
    shared: dict[str, Any] = {"config": method.Settings, "train": TrainConfig, "data": DataConfig, "where": where}
    kinds = {**{key: _without(kind, method.Settings.unused) for key, kind in shared.items()}, **more}

    def command(**settings: Any) -> None:
        # What nothing was said about is not passed on.
        given = {key: settings[key] if key in settings else kind() for key, kind in kinds.items()}
        run = {key: _whole(kind, given.pop(key)) for key, kind in shared.items()}
        carry_out(Run(method, **run), **given)

    parameters = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if any(one.is_required() for one in kind.model_fields.values()) else kind(),
            annotation=Annotated[kind, Parameter(name="*", group=Group(HEADINGS[key], sort_key=place))],
        )
        for place, (key, kind) in enumerate(kinds.items())
    ]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__doc__ = summary(method)
    return command
