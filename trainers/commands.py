"""One command for each method, its flags derived from the settings. Needs no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from trainers.methods import methods, summary
from trainers.settings import DataConfig, TrainConfig

if TYPE_CHECKING:
    from trainers.method import Method


def commands(name: str, carry_out: Callable[..., None], more: Mapping[str, Any]) -> App:
    """Return a command line with a command for each method.

    Args:
        name: of the program.
        carry_out: called with the method, its config, `data` and `train`, and one value for each of `more`.
        more: name -> further settings, classes whose fields all have defaults.
    """
    app = App(
        name=name,
        help="Learn a concept from a folder of pictures.",
        help_format="plaintext",
        default_parameter=Parameter(negative_iterable=()),
    )
    for key, method in methods().items():
        app.command(_command(method, carry_out, more), name=key)
    return app


def _command(method: Method[Any], carry_out: Callable[..., None], more: Mapping[str, Any]) -> Any:
    kinds: dict[str, Any] = {"config": method.Settings, "data": DataConfig, "train": TrainConfig, **more}
    needed = ("config", "data")

    def command(**settings: Any) -> None:
        # What nothing was said about is not passed on.
        others = {key: kind() for key, kind in kinds.items() if key not in (*needed, *settings)}
        carry_out(method, **others, **settings)

    parameters = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if key in needed else kind(),
            annotation=Annotated[kind, Parameter(name="*")],
        )
        for key, kind in kinds.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__doc__ = summary(method)
    return command
